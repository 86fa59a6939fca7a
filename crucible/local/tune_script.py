"""Start a search over a script of your own: as `run_script`, with the deployment `tune-script`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from crucible.errors import ConfigError
from crucible.local.run_script import ScriptRun, plan_run
from crucible.run_config import RunConfig
from crucible.sweeps.search import read_script_space, rungs
from crucible.sweeps.searchable import filled
from crucible.sweeps.space import Space
from crucible.sweeps.sweep import checked_sweep_id
from crucible.tune_config import TuneSettings

OF_A_JOB = ("job", "max_attempts")
"""What `train-script` takes and a search does not."""


@dataclass(frozen=True, kw_only=True)
class SweepOfScript(ScriptRun):
    """A search that has passed every check this machine can do by itself; `job` is the sweep's name."""

    search: TuneSettings
    space: Space
    ladder: list[int]

    @property
    def deployment(self) -> str:
        return "tune-script"

    def parameters(self) -> dict[str, Any]:
        """What the deployment `tune-script` is given."""
        script = {name: value for name, value in super().parameters().items() if name not in OF_A_JOB}
        search = self.search.model_dump(mode="json", exclude_unset=True, exclude={"space_file"})
        return {**script, **search, "space": self.space.as_json(), "sweep": self.job}


def plan_sweep(config: RunConfig, folder: Path, name: str = "") -> SweepOfScript:
    """Check and pack. Raises `ConfigError` with the first thing that is wrong; nothing has been started by then."""
    search = config.tune
    if search is None or not (search.space or search.space_file):
        raise ConfigError(
            "space: there is none; write --space 'lr: {loguniform: [1e-4, 1e-2]}', or tune: {space: …} in crucible.yaml"
        )
    if search.space_file:
        search = search.model_copy(update={"space_file": str(folder / search.space_file)})
    script = config.script()
    space = read_script_space(search, name, script)
    first = filled(script, space.names, space.corners()[0])  # its files can be looked for, those of {name} cannot
    run = plan_run(config.model_copy(update={"command": first.command}), folder, name)
    checked_sweep_id(run.job)
    run = replace(run, config=config, script=script)
    given = {field.name: getattr(run, field.name) for field in fields(run)}
    return SweepOfScript(**given, search=search, space=space, ladder=rungs(search, script.total_steps))
