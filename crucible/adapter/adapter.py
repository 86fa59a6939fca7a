"""The life of a script under the adapter: restore, start, watch, stop, exit code.

0     the script ended with 0, and what it saved or left as output is in a checkpoint
75    stopped, and something new was saved in this attempt
143   stopped (as by SIGTERM), and nothing new was saved
1     the script ended with 0 and there is nothing to keep
else  the script's own exit code: it failed
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from crucible.adapter.child import Child
from crucible.adapter.contract_saves import ContractSaves
from crucible.adapter.copying import copy
from crucible.adapter.lines import Line
from crucible.adapter.metrics import FileLooks, MetricsWriter, printed_metrics, written_metrics
from crucible.adapter.restoring import OUTPUT, Restored, keep_output, new_files, restore
from crucible.adapter.steps import Steps
from crucible.adapter.taking import FILES, Save, Taking
from crucible.contract import (
    ADAPTER_LINE,
    EXIT_DONE,
    EXIT_SAVED,
    OUTPUT_OF_STEP,
    PARTIAL_SUFFIX,
    STATE_FILE,
    StopReason,
    Variable,
    step_name,
)
from crucible.errors import CheckpointError
from crucible.formatting import duration
from crucible.script_config import CheckpointFiles, ScriptConfig

LOOK_SECONDS = 0.1
NOTHING_SAVED = 1
NOT_SAVED = 128 + signal.SIGTERM
HOOKS = Path(__file__).with_name("hooks")
STOP_SHARE = 0.4
"""Of the time until the machine goes, for a save that the script is expected to make; the rest is for its upload."""
STOP_SECONDS = 10.0
"""The same where it is not known when the machine goes."""
WRITING_SECONDS = 5.0
"""For a save that the script is in the middle of, if there is time."""


class Adapter:
    """Runs one script once."""

    def __init__(self, script: ScriptConfig, environment: Mapping[str, str], cwd: Path) -> None:
        self._script, self._cwd = script, cwd
        self._environment = dict(environment)
        self._folder = Path(environment[Variable.CHECKPOINT_DIR])
        self._resume_from = Path(place) if (place := environment.get(Variable.RESUME_FROM)) else None
        stop_at = environment.get(Variable.STOP_AT_STEP)
        self._stop_at_step = int(stop_at) if stop_at else None
        self._metrics = MetricsWriter(Path(environment[Variable.METRICS_FILE]))
        self._printed = printed_metrics(script.metrics, script.total_steps)
        self._written = FileLooks(None)  # until everything is in place that is there before the script
        self._steps: Steps | None = None
        self._saves: Taking | ContractSaves
        self._saved = 0
        """Checkpoints of this attempt."""
        self._saved_before_stop = 0
        self._stopping = self._asked = self._killed = False
        self._give_up_at: float | None = None
        self._began = time.time()

    def request_stop(self, *_: object) -> None:
        """Handles SIGTERM and SIGINT: the next look acts on it."""
        self._stopping = True

    def run(self) -> int:
        """Run the script to its end; the exit code for the agent."""
        command = list(self._script.command)
        restored = None
        if self._resume_from and self._script.checkpoint:
            restored = restore(self._resume_from, self._cwd, self._script.checkpoint)
        if self._resume_from:
            place = restored.path if restored else str(self._resume_from)
            command += [argument.replace("{checkpoint}", place) for argument in self._script.resume]
        self._prepare_saves(self._script.checkpoint, restored)
        self._written = FileLooks(written_metrics(self._script.metrics, self._cwd))
        if self._stopping:
            return NOT_SAVED
        child = Child(command, self._child_environment(), self._cwd, self._handle_line)
        while child.running():
            time.sleep(LOOK_SECONDS)
            self._look(child)
            self._stop_if_asked(child)
        code = child.end()
        self._look(child, ended_well=code in (EXIT_DONE, EXIT_SAVED) and not self._killed)
        return self._conclude(code if code >= 0 else 128 - code)

    # Before

    def _prepare_saves(self, files: CheckpointFiles | None, restored: Restored | None) -> None:
        if files is None:
            self._saves = ContractSaves(self._folder, keep=bool(self._script.output))
            return
        self._steps = Steps(files, restored.step if restored else None, say)
        self._steps.hurried = lambda: self._stopping
        self._saves = Taking(self._cwd, files, self._folder, self._steps, say)

    def _child_environment(self) -> dict[str, str]:
        environment = dict(self._environment)
        if isinstance(self._saves, ContractSaves):
            environment[Variable.CHECKPOINT_DIR] = str(self._saves.own)
        else:  # the adapter saves and restores
            for name in (Variable.CHECKPOINT_DIR, Variable.RESUME_FROM):
                environment.pop(name, None)
        hooks: dict[str, str] = {}
        if self._script.reseed and self._resume_from:
            hooks["CRUCIBLE_RESEED"] = environment.get(Variable.ATTEMPT, "1")
        if self._script.metrics.format == "lightning":
            hooks["CRUCIBLE_PRINTED_BAR"] = "1"
        if hooks:
            before = environment.get("PYTHONPATH")
            environment |= {**hooks, "PYTHONPATH": f"{HOOKS}{os.pathsep}{before}" if before else str(HOOKS)}
        return environment

    # While it runs

    def _handle_line(self, line: Line) -> None:
        """In the thread that reads what the script prints."""
        if line.passed_on:
            _write(line.text)
        if self._steps:
            self._steps.handle_line(line.text)
        if self._printed and (point := self._printed.read(line.text)):
            with suppress(OSError):  # the agent removed its folder
                self._metrics.write(*point)

    def _look(self, child: Child, ended_well: bool | None = None) -> None:
        with suppress(OSError):
            for step, values in self._written.look(last=ended_well is not None):
                self._metrics.write(step, values)
        if save := self._saves.look(child.processes, ended_well, self._metrics.take_val_loss):
            self._saved += 1
            self._report(save)

    def _report(self, save: Save) -> None:
        figures = {"checkpoint_write_seconds": save.copy_seconds}
        if save.interval_seconds is not None:
            figures["checkpoint_interval_seconds"] = save.interval_seconds
        with suppress(OSError):
            self._metrics.write(save.step, {name: round(value, 3) for name, value in figures.items()})

    def _stop_if_asked(self, child: Child) -> None:
        files = isinstance(self._saves, Taking)
        reached = files and self._stop_at_step is not None and self._step() >= self._stop_at_step
        if not self._stopping and not reached:
            return
        if self._give_up_at is None:
            self._saved_before_stop = self._saved
            self._give_up_at = self._last_moment()
        if self._script.handles_sigterm:
            if not self._asked:
                self._asked = True
                child.request_stop()
        elif self._saved > self._saved_before_stop or reached or time.time() >= self._give_up_at:
            self._killed = True
            child.kill()

    def _step(self) -> int:
        """For a stop at a step: what is saved; what was reached, if the script can be asked to save."""
        assert self._steps is not None
        if not self._script.handles_sigterm:
            return self._steps.newest if self._saved else 0
        return max(self._steps.newest, self._steps.printed_step() or 0, self._metrics.newest_step or 0)

    def _last_moment(self) -> float:
        """Until when a script that is not sent SIGTERM may still save, in Unix seconds."""
        now = time.time()
        if not isinstance(self._saves, Taking):
            return now
        deadline = None
        with suppress(OSError, ValueError, KeyError):
            deadline = StopReason.read(Path(self._environment[Variable.STOP_REASON_FILE])).deadline
        until = now + (STOP_SECONDS if deadline is None else STOP_SHARE * max(0.0, deadline - now))
        expected = self._saves.next_save_at()
        if expected is not None and now - 1.0 <= expected <= until:
            say(f"asked to stop; the script's next save is expected in {duration(max(0.0, expected - now))}")
            return min(until, expected + max(1.0, 0.2 * (expected - now)))
        return min(until, now + WRITING_SECONDS) if self._saves.being_saved() else now

    # The end

    def _conclude(self, code: int) -> int:
        if (self._killed or self._asked) and not self._finished_anyway(code):
            if isinstance(self._saves, ContractSaves) and code in (EXIT_DONE, EXIT_SAVED):
                return self._finish() if code == EXIT_DONE else code
            if isinstance(self._saves, ContractSaves) and self._saved == self._saved_before_stop:
                return code
            if self._asked and self._saved == self._saved_before_stop:
                say("the script ended after SIGTERM without a new save; its newest one counts")
            return EXIT_SAVED if self._saved else NOT_SAVED
        return self._finish() if code == EXIT_DONE else code

    def _finished_anyway(self, code: int) -> bool:
        """It came to its end just as it was asked to stop."""
        total = self._script.total_steps
        step = max(self._metrics.newest_step or 0, self._steps.newest if self._steps else 0)
        return code == EXIT_DONE and total is not None and step >= total

    def _finish(self) -> int:
        try:
            patterns = self._script.output or self._unnamed_output()
            missing = self._keep_output(patterns) if patterns else []
        except (OSError, CheckpointError) as error:
            say(f"finished, but the output cannot be kept: {error}")
            return NOTHING_SAVED
        if missing:
            say(f"finished, but output: {', '.join(missing)} does not exist in {self._cwd.name or 'its folder'}")
            return NOTHING_SAVED
        if not self._saved and not self._resume_from and not self._reports_are_enough():
            say("finished, nothing saved: name what to keep with checkpoint: or output:")
            return NOTHING_SAVED
        return EXIT_DONE

    def _reports_are_enough(self) -> bool:
        """An evaluation is done by what it reports; so is a trial of a sweep, if it has reported anything."""
        if Variable.SWEEP in self._environment:
            with suppress(OSError):
                return Path(self._environment[Variable.METRICS_FILE]).stat().st_size > 0
        return Variable.EVALUATE in self._environment

    def _unnamed_output(self) -> list[str]:
        """Patterns for what a script wrote of which nothing else would remain: its folder goes with the attempt."""
        if self._saved or self._resume_from or self._script.checkpoint or self._cwd.parent != self._folder.parent:
            return []
        found = new_files(self._cwd, self._began)
        if found:
            say(f"no output: is named, so what it wrote is kept: {', '.join(found[:3])}{', …' if found[3:] else ''}")
        return [glob.escape(name) for name in found]

    def _keep_output(self, patterns: list[str]) -> list[str]:
        """A last checkpoint: the newest content with the output beside it. Returns patterns that match nothing."""
        newest = self._saves.newest
        partial = self._folder / f"output{PARTIAL_SUFFIX}"
        shutil.rmtree(partial, ignore_errors=True)
        missing = keep_output(patterns, self._cwd, partial / OUTPUT)
        if not (partial / OUTPUT).exists():
            return missing
        state: dict[str, object] = {}
        if isinstance(self._saves, ContractSaves) and newest:
            copy(self._saves.kept, partial)
            with suppress(OSError, ValueError):
                state = json.loads((partial / STATE_FILE).read_text())
        elif newest and (self._cwd / newest.name).exists():
            copy(self._cwd / newest.name, partial / FILES / Path(newest.name).name)
            state = {"step_source": "file", "saved_as": newest.name}
        elif self._resume_from:
            for name in self._resume_from.iterdir():
                if name.name != OUTPUT:
                    copy(name, partial / name.name)
            with suppress(OSError, ValueError):
                state = json.loads((self._resume_from / STATE_FILE).read_text())
        reached, step = self._last_step()
        numbers = {"step": step, OUTPUT_OF_STEP: reached}
        (partial / STATE_FILE).write_text(json.dumps(state | numbers), encoding="utf-8")
        partial.rename(self._folder / step_name(step))
        self._saved += 1
        return missing

    def _last_step(self) -> tuple[int, int]:
        """What was reached, and a number after that of every checkpoint there is: each has one of its own."""
        before = self._saves.newest.step if self._saves.newest else None
        if before is None and self._resume_from:
            match = re.match(r"step-(\d+)", self._resume_from.name)
            before = int(match[1]) if match else None
        reached = max(before or 0, self._metrics.newest_step or 0)
        return reached, max(1 if before is None else before + 1, reached)


def say(message: str) -> None:
    """A log line of the adapter among those of the script."""
    _write(f"{ADAPTER_LINE}{message}")


def _write(text: str) -> None:
    with suppress(OSError):  # nobody reads any more
        sys.stdout.buffer.write(text.encode(errors="replace") + b"\n")
        sys.stdout.buffer.flush()
