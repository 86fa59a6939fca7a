"""The overview as a markdown page for the Prefect UI; it carries its small curves itself."""

from __future__ import annotations

from collections.abc import Sequence

from crucible.formatting import UNKNOWN, as_prose, counted, duration, markdown_table, money
from crucible.reports.curve import bar, small_curve
from crucible.reports.overview import JobLine, Overview, SweepLine
from crucible.reports.picture import data_uri

MOST_ENDED = 25
"""Rows of what has ended; `crucible jobs ls` has all of them."""
STORE_WIDTH = 18
"""Characters of a store's address in a line of a cell; longer ones are broken after a slash."""


def overview_page(overview: Overview) -> str:
    """The page: what needs a person, what runs, the sweeps, what ended within the last days."""
    running = [line for line in overview.jobs if line.running]
    ended = [line for line in overview.jobs if not line.running]
    parts = ["# Overview", headline(overview)]
    if overview.needing:
        parts += ["## Needs you", "\n".join(f"- **{name}** {_line(what)}" for name, what in overview.needing)]
    if running:
        parts += ["## Running", jobs_table(running)]
    if overview.sweeps:
        parts += ["## Sweeps", sweeps_table(overview.sweeps)]
    if ended:
        parts += ["## Ended within a week", jobs_table(ended[:MOST_ENDED])]
    if overview.damaged:
        parts += ["## Cannot be read", "\n".join(f"- {_line(what)}" for what in overview.damaged)]
    if not overview.jobs and not overview.sweeps:
        parts.append("Nothing has run within a week. Start with `crucible quickstart`.")
    left_out = max(0, len(ended) - MOST_ENDED) + overview.older
    if left_out:
        parts.append(f"{counted(left_out, 'more job')} ended before: `crucible jobs ls`.")
    return "\n\n".join(parts) + "\n"


def headline(overview: Overview) -> str:
    """How many run, what they cost, and when that was."""
    running = sum(line.running for line in overview.jobs)
    searching = sum(line.running for line in overview.sweeps)
    facts = [f"**{counted(running, 'job')} running**" if running else "**Nothing is running**"]
    facts += [f"**{counted(searching, 'sweep')} running**"] if searching else []
    if overview.needing:
        facts.append(f"**{len(overview.needing)} need{'s' if len(overview.needing) == 1 else ''} you**")
    spent = f"{money(overview.cost_usd)} spent"
    facts.append(spent + (f", about {money(overview.cost_left_usd)} left" if overview.cost_left_usd else ""))
    facts.append(f"{overview.at:%Y-%m-%d %H:%M:%S} UTC")
    return " · ".join(facts)


def jobs_table(lines: Sequence[JobLine]) -> str:
    """One row for each job. Cells have several lines, so that the table fits on a telephone."""
    rows = [[_job(line), progress_cell(line), _loss(line), _cost(line)] for line in lines]
    return markdown_table(["job", "progress", "loss", "cost"], rows)


def sweeps_table(lines: Sequence[SweepLine]) -> str:
    """One row for each sweep."""
    rows = [
        [
            "<br>".join(
                filter(
                    None,
                    [
                        f"**{line.sweep}**",
                        f"{line.state or 'not started'} on {line.pool}",
                        _store(line),
                        as_prose(line.why),
                    ],
                )
            ),
            _trials(line),
            UNKNOWN if line.best is None else f"**{line.best:.4f}**<br>{line.metric}, trial {line.best_trial}",
            f"**{money(line.cost_usd)}**" + (f"<br>of {money(line.max_cost_usd)}" if line.max_cost_usd else ""),
        ]
        for line in lines
    ]
    return markdown_table(["sweep", "trials", "best", "cost"], rows)


def _job(line: JobLine) -> str:
    where = f"{line.pool} {line.instance}".strip()
    attempt = f"attempt {line.attempts}" if line.running else counted(line.attempts, "attempt")
    return "<br>".join(
        filter(None, [f"**{line.job}**", f"{line.activity}, {attempt}", where, _store(line), as_prose(line.why)])
    )


def _line(message: str) -> str:
    """A message as an entry of a list, whose next one begins with the next line."""
    return as_prose(" ".join(message.split()))


def _store(line: JobLine | SweepLine) -> str:
    """The address of another store than the default one, in lines that fit a telephone's column."""
    lines = [""]
    for part in line.store.replace("/", "/\n").split("\n"):
        if lines[-1].strip("/") and len(lines[-1] + part) > STORE_WIDTH:
            lines.append("")
        lines[-1] += part
    return "<br>".join(filter(None, lines))


def progress_cell(line: JobLine) -> str:
    """A bar where the number of steps is known, the steps, and the time left or taken."""
    steps = f"{line.step:,}" + (f" of {line.total_steps:,}" if line.total_steps else " steps")
    left = f"{duration(line.seconds_left)} left" if line.running and line.seconds_left is not None else ""
    shown = [f"{bar(line.share)} {line.share:.0%}" if line.share is not None else "", steps]
    return "<br>".join(filter(None, [*shown, left or (duration(line.seconds) if line.seconds else "")]))


def _loss(line: JobLine) -> str:
    curve = f"![loss]({data_uri(small_curve(line.curve))})" if len(line.curve) > 1 else ""
    value = UNKNOWN if line.loss is None else f"**{line.loss:.4f}** {line.loss_name}"
    return "<br>".join(filter(None, [value, curve]))


def _cost(line: JobLine) -> str:
    spent = f"**{money(line.cost_usd)}**"
    allowed = f"of {money(line.max_cost_usd)}" if line.max_cost_usd is not None else ""
    left = f"{money(line.cost_left_usd)} left" if line.running and line.cost_left_usd else ""
    return "<br>".join(filter(None, [spent, allowed, left]))


def _trials(line: SweepLine) -> str:
    share = f"{bar(line.done / line.max_trials)}<br>" if line.max_trials else ""
    most = f" of {line.max_trials}" if line.max_trials else ""
    return f"{share}{line.done}{most} done" + (f", {line.failed} failed" if line.failed else "")
