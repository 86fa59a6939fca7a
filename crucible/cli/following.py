"""What a terminal shows of a run that is followed: a progress bar, and the last lines that the script printed."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer

from crucible.formatting import duration, money, printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from crucible.local.follow import Standing
    from crucible.store import Store

LINES = 8
LOG_SECONDS = 1.0


class ServerNotices:
    """Messages for a person who follows a run: that the server stopped answering, and that it answers again."""

    def __init__(self, what: str, look: str) -> None:
        """`look`: the command that shows the run later."""
        self._what, self._look, self._away = what, look, False

    def new(self, unanswered: str) -> str:
        """The message to print now; empty where there is nothing new. `unanswered`: see `RunState`."""
        was_away, self._away = self._away, bool(unanswered)
        if self._away and not was_away:
            return (
                f"warning: {unanswered}; {self._what} goes on without it, and this command keeps waiting. Press Ctrl-C "
                f"to detach; look at it later with: {self._look}"
            )
        return "the Prefect server answers again" if was_away and not self._away else ""


class Screen:
    """A bar with log lines under it on a terminal; elsewhere the stages and the lines, one after another."""

    def __init__(self, store: Store, job: str) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        from crucible.agent.last_lines import LastLines
        from crucible.jobs.job import Job
        from crucible.jobs.printed import PrintedLines

        self._console = Console(stderr=True, markup=False, highlight=False)
        self._lines: deque[str] = deque(maxlen=LINES)
        self._last = LastLines()
        self._log, self._looked, self._stage = PrintedLines(Job(store, job)), 0.0, ""
        self._server = ServerNotices(job, f"crucible jobs show {job}")
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task("waiting for the worker", total=None, figures="")
        self._group = Group
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, standing: Standing) -> None:
        """Bring the screen up to date."""
        from rich.text import Text

        from crucible.local.follow import FINAL

        if notice := self._server.new(standing.unanswered):
            self.say(notice)
        new: list[str] = []
        if standing.state in FINAL or time.monotonic() - self._looked > LOG_SECONDS:
            new, self._looked = [printable(line.text) for line in self._log.read_new()], time.monotonic()
        for line in new:
            self._last.add(line)
        if self._console.is_terminal:
            self._lines.extend(new)
            show(self._bar, self._task, standing)
            width = max(20, self._console.width - 2)
            shown = [Text(f"  {line}"[:width], style="dim") for line in self._lines]
            self._live.update(self._group(self._bar, *shown), refresh=True)
            return
        if standing.stage != self._stage:
            self._stage = standing.stage
            self._console.print(self._stage, soft_wrap=True)
        for line in new:
            self._console.print(f"  {line}", soft_wrap=True)

    def ask_stop(self) -> bool:
        """Whether the person who pressed Ctrl-C wants the job to stop; without a terminal: no, they detach."""
        self._live.stop()
        if not sys.stdin.isatty():
            return False
        try:
            answer = typer.prompt(
                "\nDetach (the job goes on) or stop it? [d/s]", default="d", show_default=False, err=True
            )
        except (typer.Abort, KeyboardInterrupt):
            return False
        stops = str(answer).strip().lower().startswith("s")
        if stops and self._console.is_terminal:  # what is printed under a live display goes away with it
            self._live.start()
        return stops

    def leave_last_lines(self) -> None:
        """Print what the script printed last, a traceback whole; without a terminal every line is there already."""
        if self._console.is_terminal:
            self._live.stop()
            for line in self._last.tail():
                self._console.print(f"  {line}", soft_wrap=True, style="dim")

    def say(self, message: str) -> None:
        """Print a message that stays."""
        self._console.print(message, soft_wrap=True)


def show(progress: Progress, bar: TaskID, standing: Standing) -> None:
    """Bring the bar up to date. Time and cost are there also for a script that reports no steps."""
    summary, figures = standing.summary, ""
    if summary and summary.attempts:
        parts = []
        if summary.step:
            of_all = f"/{summary.total_steps:,} steps" if summary.total_steps else ""
            parts.append(f"{summary.step:,}{of_all}" if of_all else f"step {summary.step:,}")
            progress.update(bar, completed=summary.step, total=summary.total_steps)
        parts += [f"train loss {summary.train_loss:.3f}"] if summary.train_loss is not None else []
        parts += [f"val loss {summary.val_loss:.3f}"] if summary.val_loss is not None else []
        left = f"{duration(summary.seconds_left)} left" if summary.seconds_left else ""
        parts += [left or duration(summary.seconds)] if left or summary.seconds else []
        parts.append(money(summary.cost_usd))
        figures = " · ".join(parts)
    progress.update(bar, description=standing.stage, figures=figures)
