"""`crucible estimate` and the recommend flow: from a request to ranked offers. Reads files, the store and the clock."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from crucible.catalog.offers import Offer, load_catalog, stale_warning
from crucible.catalog.this_machine import with_own_machine
from crucible.config import ConfigDraft, TrainConfig, preset_names
from crucible.datasets.meta import load_meta
from crucible.errors import ConfigError, StoreError
from crucible.estimate import history
from crucible.estimate.for_job import job_needs
from crucible.estimate.needs import Needs, needs_of
from crucible.estimate.ranking import PoolState, Preferences, Recommendation, recommend, why_nothing_fits
from crucible.estimate.script import ScriptNeeds, read_script, script_needs
from crucible.estimate.speed import Speed, speed_record
from crucible.moments import hours_until
from crucible.settings import Settings
from crucible.store import Store, default_store_uri, store_at

_GPT2_VOCABULARY, _CHARACTERS = 50257, 65
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_MOST_HOURS = 1e6
_MOST_USD = 1e9


class EstimateRequest(Settings):
    """What to estimate and by what to rank; see `crucible estimate --help` for the meaning of each field."""

    preset: str | None = None
    config: Path | None = None
    changes: tuple[str, ...] = ()
    tokens: str | None = None
    vocab_size: int | None = Field(None, ge=1, le=10**8)
    dataset: Path | None = None
    script: Path | None = None
    hours: float | None = Field(None, gt=0, le=_MOST_HOURS)
    measured_on: str | None = None
    gpu_memory_gib: float | None = Field(None, gt=0, le=1e5)
    optimize_for: Literal["cost", "time", "balanced"] = "balanced"
    value_of_hour_usd: float = Field(1.0, ge=0, le=_MOST_USD)
    pools: tuple[str, ...] | None = None
    dedicated: bool = False
    uninterrupted: bool = False
    max_cost_usd: float | None = Field(None, gt=0, le=_MOST_USD)
    longest_hours: float = Field(336.0, gt=0, le=_MOST_HOURS)
    finish_by: str | None = None
    offers: Path | None = None
    store: str | None = None
    probe: bool = False


@dataclass(frozen=True)
class EstimateResult:
    """What the run needs, the ranked offers, and what makes the estimate less certain than it could be."""

    needs: Needs | ScriptNeeds
    recommendation: Recommendation
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"needs": self.needs.to_dict(), **self.recommendation.to_dict(), "warnings": list(self.warnings)}


def run_estimate(
    request: EstimateRequest,
    progress: Callable[[str], None] = lambda message: None,
    pools: Mapping[str, PoolState] | None = None,
) -> EstimateResult:
    """Estimate every offer and rank those that fit.

    Raises:
        ConfigError: a value that makes no sense, named; or no offer fits, with the most frequent reasons.
    """
    offers = with_own_machine(load_catalog(request.offers))
    preferences = _preferences(request, offers)
    needs = _needs(request, offers)
    store = store_at(request.store or default_store_uri())
    warnings: list[str] = []
    try:
        records = history.speeds(store, warnings.append)
    except StoreError as error:
        records = []
        warnings.append(f"the history of past runs cannot be read, so the estimate goes without it: {error}")
    probed = _probe(request, needs, offers, store, progress) if request.probe else None
    recommendation = recommend(needs, offers, preferences, records, probed, pools)
    if recommendation.best is None:
        raise ConfigError(why_nothing_fits(recommendation))
    listed = [entry.estimate.offer for entry in recommendation.ranked]
    if (warning := stale_warning(listed, datetime.now(UTC).date())) is not None:
        warnings.append(warning)
    return EstimateResult(needs, recommendation, tuple(warnings))


def estimate(what: str | TrainConfig | Path, **request: Any) -> EstimateResult:
    """Where a job could run, what it would cost and how long it would take; `crucible estimate` in Python.

    Args:
        what: a preset's name, a `TrainConfig`, or the path of a script of your own.
        request: further fields of `EstimateRequest`: `tokens`, `vocab_size`, `optimize_for`, `pools`, `max_cost_usd`,
            `finish_by`, …; for a script `hours` and `measured_on`.

    Raises:
        ConfigError: a value that makes no sense, or no offer fits.
    """
    if isinstance(what, TrainConfig):
        changes = tuple(f"{key}={value}" for key, value in what.model_dump(mode="json").items())
        return run_estimate(EstimateRequest.parse({"preset": "cpu-small", "changes": changes, **request}))
    return run_estimate(EstimateRequest.parse({"script" if isinstance(what, Path) else "preset": what, **request}))


def parse_count(text: str, field: str) -> int:
    """`300M`, `1.5B`, `1e9`, `2_000_000` as a whole number of 1 or more. Raises `ConfigError` otherwise."""
    match = re.fullmatch(r"([0-9][0-9_]*\.?[0-9]*(?:e[0-9]{1,2})?)([kmbgt]?)", text.strip().lower())
    count = float(match[1].replace("_", "")) * _MULTIPLES[match[2]] if match else 0
    if not 1 <= count < 1e18:
        raise ConfigError(f"{field} is {text!r}: it must be a number such as 300M, 1.5B or 2_000_000")
    return round(count)


def _needs(request: EstimateRequest, offers: list[Offer]) -> Needs | ScriptNeeds:
    given = [name for name in ("preset", "config", "script") if getattr(request, name) is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} are given" if given else "none is given"
        raise ConfigError(f"one of --preset ({', '.join(preset_names())}), --config or --script is needed; {found}")
    if request.script is not None:
        facts = read_script(request.script)
        return script_needs(facts, request.hours, request.measured_on, offers, request.gpu_memory_gib)
    config, rows = _config(request)
    tokens = None if request.tokens is None else parse_count(request.tokens, "tokens")
    if request.dataset is not None:
        return job_needs(config, load_meta(request.dataset), tokens)
    if request.vocab_size is not None:
        return needs_of(config, request.vocab_size, tokens)
    if rows is not None:
        return needs_of(config, rows, tokens, inferred=(f"vocabulary: {rows:,}, of the weights in init_from",))
    gpt2 = (request.preset or "").startswith("gpt2")
    vocabulary, name = (_GPT2_VOCABULARY, "GPT-2's") if gpt2 else (_CHARACTERS, "the characters of tiny Shakespeare")
    note = f"vocabulary: {vocabulary}, {name}; set it with --dataset or --vocab-size"
    return needs_of(config, vocabulary, tokens, inferred=(note,))


def _config(request: EstimateRequest) -> tuple[TrainConfig, int | None]:
    """The configuration, and the number of tokens of the weights that it starts from; None where it has none."""
    overrides = {}
    for change in request.changes:
        key, separator, value = change.partition("=")
        if not separator:
            raise ConfigError(f"--set {change} is not of the form key=value")
        overrides[key.strip()] = value.strip()
    draft = ConfigDraft.from_file(request.config) if request.config else ConfigDraft.preset(request.preset or "", {})
    draft = draft.with_overrides(overrides)
    if (init_from := draft.init_from) is None:
        return draft.config(), None
    from crucible.checkpoints.initial import read_weights  # imports torch

    with tempfile.TemporaryDirectory() as work:
        initial = read_weights(store_at(request.store or default_store_uri()), init_from, Path(work))
    values = {**initial.settings(draft.base, draft.stated), "init_from": init_from}
    return TrainConfig.parse(values, draft.source), initial.rows


def _preferences(request: EstimateRequest, offers: list[Offer]) -> Preferences:
    known = {offer.pool for offer in offers}
    for pool in request.pools or ():
        if pool not in known:
            raise ConfigError(f"pools has {pool!r}, for which there is no offer; known: {', '.join(sorted(known))}")
    return Preferences(
        optimize_for=request.optimize_for,
        value_of_hour_usd=request.value_of_hour_usd,
        pools=request.pools,
        privacy="dedicated" if request.dedicated else "any",
        uninterrupted=request.uninterrupted,
        max_cost_usd=request.max_cost_usd,
        longest_hours=request.longest_hours,
        finish_within_hours=hours_until(request.finish_by, datetime.now(UTC)) if request.finish_by else None,
    )


def _probe(
    request: EstimateRequest,
    needs: Needs | ScriptNeeds,
    offers: list[Offer],
    store: Store,
    progress: Callable[[str], None],
) -> dict[str, Speed]:
    """Probe this machine; its speed is remembered for later estimates."""
    from crucible.estimate.probe import probe

    if isinstance(needs, ScriptNeeds):
        raise ConfigError("--probe runs Crucible's own trainer; it cannot probe a script")
    on_gpu = needs.config.device != "cpu" and any(offer.pool == "docker-gpu" and not offer.missing for offer in offers)
    pool = "docker-gpu" if on_gpu else "local"
    own = next((offer for offer in offers if offer.pool == pool), None)
    if own is None:
        raise ConfigError(f"--probe runs on this machine, but the offers have no row of pool {pool}")
    progress(f"probing {own.key}: a few steps of {needs.parameters:,} parameters")
    found = probe(needs, request.dataset)
    history.remember_speed(store, speed_record(needs, own, found.seconds_per_step, found.steps, "probe"))
    return {own.key: found.speed()}
