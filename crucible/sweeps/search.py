"""A search as somebody asks for it, turned into what a sweep's record holds."""

from __future__ import annotations

from crucible.errors import ConfigError
from crucible.script_config import ScriptConfig
from crucible.sweeps.records import TO_THE_END, SweepSpec
from crucible.sweeps.schedules import hyperband_brackets, ladder
from crucible.sweeps.searchable import COLUMNS, ScriptPlaceholders, Searchable, filled
from crucible.sweeps.space import Space
from crucible.tune_config import EXAMPLE, SOME_TRIALS, SearchSettings, TuneSettings


def read_space(search: SearchSettings, sweep: str, settings: Searchable | None = None) -> Space:
    """The space, as given or from its file. Raises `ConfigError` unless exactly one of them is given and valid."""
    if search.space and search.space_file:
        raise ConfigError("space and space_file are both given; give one of them")
    if search.space_file:
        return Space.from_file(search.space_file, settings)
    if not search.space:
        raise ConfigError(
            f"space is empty, and there is no sweep {sweep!r} to continue; name at least one setting to search, such "
            f"as {EXAMPLE}"
        )
    return Space.parse(search.space, settings)


def read_script_space(search: TuneSettings, sweep: str, script: ScriptConfig) -> Space:
    """The space of a script, all of whose trials are valid. Raises `ConfigError` as `read_space` does."""
    space = read_space(search, sweep, ScriptPlaceholders(script))
    if search.metric in (*COLUMNS, *space.names):
        raise ConfigError(f"metric: {search.metric!r} is a column of the leaderboard; report it by another name")
    for dimension in space.dimensions:
        if dimension.when and f"{{{dimension.name}}}" in script.command:
            raise ConfigError(
                f"space: {dimension.name} has `when`, so its argument is left out of some trials; write it as one "
                f"word, such as --{dimension.name}={{{dimension.name}}}"
            )
    space.require_valid_trials(lambda values: filled(script, space.names, values), search.sampler)
    return space


def rungs(search: SearchSettings, total_steps: int | None) -> list[int]:
    """The rungs in steps, ascending; the last one is the whole training. None: only its end is known."""
    if total_steps is None:
        if search.min_steps is not None:
            raise ConfigError(
                f"min_steps = {search.min_steps} needs total_steps, the steps of the whole training; set both, or none"
            )
        return list(TO_THE_END)
    if search.schedule == "none":
        return [total_steps]
    first = min(search.min_steps or max(1, total_steps // 9), total_steps)
    return ladder(total_steps, first, search.reduction_factor)


def all_trials(spec: SweepSpec, space: Space) -> int:
    """How many trials there are where no number is given."""
    if spec.sampler == "grid":
        return len(space.grid())
    if spec.schedule == "hyperband":
        return sum(bracket.trials or 0 for bracket in hyperband_brackets(len(spec.ladder), spec.reduction_factor))
    return SOME_TRIALS
