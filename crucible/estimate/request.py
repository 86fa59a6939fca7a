"""From what a person asks (`crucible estimate`, the recommend flow) to a recommendation: reads files, store, clock."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from crucible.catalog.offers import Offer, load_catalog, stale_warning
from crucible.catalog.this_machine import with_own_machine
from crucible.config import TrainConfig, preset_names
from crucible.errors import ConfigError, StoreError
from crucible.estimate import history
from crucible.estimate.needs import Needs, needs_of
from crucible.estimate.ranking import PoolState, Preferences, Recommendation, recommend, why_nothing_fits
from crucible.estimate.script import ScriptNeeds, read_script, script_needs
from crucible.estimate.speed import Speed, speed_record
from crucible.settings import explain_validation_error
from crucible.store import Store, default_store_uri, store_at

_GPT2_VOCABULARY, _CHARACTERS = 50257, 65
_DURATION = r"([0-9]+(?:\.[0-9]+)?)\s*(h|min|d)"
_HOURS = {"h": 1.0, "min": 1 / 60, "d": 24.0}
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Question:
    """What is asked, as typed; see `crucible estimate --help` for the meaning of each."""

    preset: str | None = None
    config: Path | None = None
    changes: tuple[str, ...] = ()
    tokens: str | None = None
    vocab_size: int | None = None
    dataset: Path | None = None
    script: Path | None = None
    hours: float | None = None
    measured_on: str | None = None
    gpu_memory_gib: float | None = None
    optimize_for: str = "balanced"
    value_of_hour_usd: float = 1.0
    pools: tuple[str, ...] | None = None
    dedicated: bool = False
    uninterrupted: bool = False
    max_cost_usd: float | None = None
    longest_hours: float = 336.0
    finish_by: str | None = None
    offers: Path | None = None
    store: str | None = None
    probe: bool = False


@dataclass(frozen=True)
class Answer:
    """What was found."""

    needs: Needs | ScriptNeeds
    recommendation: Recommendation
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"needs": describe(self.needs), **self.recommendation.to_dict(), "warnings": list(self.warnings)}


def answer(
    question: Question,
    say: Callable[[str], None] = lambda message: None,
    pools: Mapping[str, PoolState] | None = None,
) -> Answer:
    """Estimate and rank.

    Raises:
        ConfigError: a value that makes no sense, named; or no offer fits, with the most frequent reasons.
    """
    offers = with_own_machine(load_catalog(question.offers))
    preferences = _preferences(question, offers)
    needs = _needs(question, offers)
    store = store_at(question.store or default_store_uri())
    warnings: list[str] = []
    try:
        records = history.speeds(store)
    except StoreError as error:
        records = []
        warnings.append(f"the history of past runs cannot be read, estimates go without it: {error}")
    probed = _probed(question, needs, offers, store, say) if question.probe else None
    recommendation = recommend(needs, offers, preferences, records, probed, pools)
    if recommendation.best is None:
        raise ConfigError(why_nothing_fits(recommendation))
    listed = [entry.estimate.offer for entry in recommendation.ranked]
    if (warning := stale_warning(listed, datetime.now(UTC).date())) is not None:
        warnings.append(warning)
    return Answer(needs, recommendation, tuple(warnings))


def past_accuracy(store: str | None) -> list[history.EstimateRecord]:
    """Every estimate of the past beside what came of it."""
    return history.estimates(store_at(store or default_store_uri()))


def describe(needs: Needs | ScriptNeeds) -> dict[str, Any]:
    """The needs in plain values."""
    if isinstance(needs, ScriptNeeds):
        return {
            "hours": needs.hours,
            "measured_on": needs.measured_on.instance,
            "gpu_memory_gib": needs.gpu_memory_gib,
            "uses_gpu": needs.facts.uses_gpu,
            "distributed": needs.facts.distributed,
            "frameworks": list(needs.facts.frameworks),
            "precision": needs.facts.precision,
            "inferred": list(needs.inferred),
        }
    return {
        "parameters": needs.parameters,
        "flops_per_token": needs.flops_per_token,
        "flops": needs.flops,
        "tokens": needs.tokens,
        "steps": needs.steps,
        "vocab_size": needs.vocab_size,
        "gpu_memory_gib": needs.gpu_memory_gib("bfloat16"),
        "checkpoint_bytes": needs.checkpoint_bytes,
        "dataset_bytes": needs.dataset_bytes,
        "inferred": list(needs.inferred),
    }


def parse_count(text: str, field: str) -> int:
    """`300M`, `1.5B`, `1e9`, `2_000_000` as a whole number of 1 or more. Raises ConfigError otherwise."""
    match = re.fullmatch(r"([0-9][0-9_]*\.?[0-9]*(?:e[0-9]+)?)([kmbgt]?)", text.strip().lower())
    count = float(match[1].replace("_", "")) * _MULTIPLES[match[2]] if match else 0
    if not 1 <= count < 1e18:
        raise ConfigError(f"{field} is {text!r}: it must be a number such as 300M, 1.5B or 2_000_000")
    return round(count)


def hours_until(deadline: str, now: datetime) -> float:
    """Hours from `now` until `12h`, `90min`, `2d` from then, or until a time such as 2026-05-07T18:00 (UTC if it says
    no zone). Raises ConfigError for anything else, or a time that is over.
    """
    if match := re.fullmatch(_DURATION, deadline.strip()):
        hours = float(match[1]) * _HOURS[match[2]]
    else:
        try:
            moment = datetime.fromisoformat(deadline.strip())
        except ValueError:
            wanted = "12h, 90min, 2d or a time such as 2026-05-07T18:00"
            raise ConfigError(f"finish_by is {deadline!r}: it must be {wanted}") from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        hours = (moment - now).total_seconds() / 3600
    if hours <= 0:
        raise ConfigError(f"finish_by is {deadline!r}, which is over; give a time to come")
    return hours


def moment_to_come(deadline: str, now: datetime | None) -> datetime:
    """The moment that `deadline` names, an ISO time with its zone; later than `now`, if that is given.

    Raises ConfigError for anything else.
    """
    wanted = "give a time with its zone, such as 2026-05-07T18:00+02:00 or 2026-05-07T16:00Z"
    try:
        moment = datetime.fromisoformat(deadline.strip())
    except ValueError:
        raise ConfigError(f"finish_by is {deadline!r}, which is no time; {wanted}") from None
    if moment.tzinfo is None:
        raise ConfigError(f"finish_by is {deadline!r}, which says no time zone; {wanted}")
    if now is not None and moment <= now:
        raise ConfigError(f"finish_by is {deadline!r}, which is over (it is {now:%Y-%m-%dT%H:%MZ} now); {wanted}")
    return moment.astimezone(UTC)


def moment_ago(text: str, now: datetime) -> datetime:
    """The moment `7d`, `24h` or `90min` before `now`, or a date or time (UTC if it says none). Raises ConfigError."""
    if match := re.fullmatch(_DURATION, text.strip()):
        return now - timedelta(hours=float(match[1]) * _HOURS[match[2]])
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(f"since is {text!r}: it must be 7d, 24h, 90min or a date such as 2026-05-01") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _needs(question: Question, offers: list[Offer]) -> Needs | ScriptNeeds:
    given = [name for name in ("preset", "config", "script") if getattr(question, name) is not None]
    if len(given) != 1:
        told = f"{' and '.join(given)} are given" if given else "none is given"
        raise ConfigError(f"one of --preset ({', '.join(preset_names())}), --config or --script is needed; {told}")
    if question.script is not None:
        facts = read_script(question.script)
        return script_needs(facts, question.hours, question.measured_on, offers, question.gpu_memory_gib)
    overrides = {}
    for change in question.changes:
        key, separator, value = change.partition("=")
        if not separator:
            raise ConfigError(f"--set {change} is not of the form key=value")
        overrides[key.strip()] = value.strip()
    config = (
        TrainConfig.from_file(question.config)
        if question.config is not None
        else TrainConfig.preset(question.preset or "")
    ).with_overrides(overrides)
    tokens = None if question.tokens is None else parse_count(question.tokens, "tokens")
    if question.dataset is not None:
        from crucible.datasets.meta import load_meta

        meta = load_meta(question.dataset)
        data_bytes, val_tokens = meta.tokens * meta.token_bytes, meta.splits["val"].tokens
        return needs_of(config, meta.vocab_size, tokens, data_bytes, val_tokens)
    if question.vocab_size is not None:
        return needs_of(config, question.vocab_size, tokens)
    gpt2 = (question.preset or "").startswith("gpt2")
    vocabulary, name = (_GPT2_VOCABULARY, "GPT-2's") if gpt2 else (_CHARACTERS, "the characters of tiny Shakespeare")
    note = f"vocabulary: {vocabulary}, {name}; --dataset or --vocab-size says otherwise"
    return needs_of(config, vocabulary, tokens, inferred=(note,))


def _preferences(question: Question, offers: list[Offer]) -> Preferences:
    known = {offer.pool for offer in offers}
    for pool in question.pools or ():
        if pool not in known:
            raise ConfigError(f"pools has {pool!r}, for which there is no offer; known: {', '.join(sorted(known))}")
    deadline = None if question.finish_by is None else hours_until(question.finish_by, datetime.now(UTC))
    try:
        return Preferences(
            optimize_for=question.optimize_for,
            value_of_hour_usd=question.value_of_hour_usd,
            pools=question.pools,
            privacy="dedicated" if question.dedicated else "any",
            uninterrupted=question.uninterrupted,
            max_cost_usd=question.max_cost_usd,
            longest_hours=question.longest_hours,
            finish_within_hours=deadline,
        )
    except ValidationError as error:
        raise ConfigError(explain_validation_error(error)) from None


def _probed(
    question: Question, needs: Needs | ScriptNeeds, offers: list[Offer], store: Store, say: Callable[[str], None]
) -> dict[str, Speed]:
    """Probe this machine; its speed is remembered for later estimates."""
    from crucible.estimate.probe import probe

    if isinstance(needs, ScriptNeeds):
        raise ConfigError("--probe runs Crucible's own trainer; it cannot probe a script")
    on_gpu = needs.config.device != "cpu" and any(offer.pool == "docker-gpu" and not offer.missing for offer in offers)
    key = "docker-gpu" if on_gpu else "local"
    own = next((offer for offer in offers if offer.pool == key), None)
    if own is None:
        raise ConfigError(f"--probe runs on this machine, but the offers have no row of pool {key}")
    say(f"probing {own.key}: a few steps of {needs.parameters:,} parameters")
    found = probe(needs, question.dataset)
    history.remember_speed(store, speed_record(needs, own, found.seconds_per_step, found.steps, "probe"))
    return {own.key: found.speed()}
