"""The report of a sweep: one markdown page that carries its own picture."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from crucible.formatting import UNKNOWN, as_prose, duration, markdown_table, money
from crucible.jobs.metrics import Metrics
from crucible.reports.evaluation import evaluation_summary, read_evaluation
from crucible.reports.picture import data_uri
from crucible.reports.sweep_picture import MOST_LINES, Curve, sweep_picture
from crucible.store import store_option
from crucible.sweeps.kinds import as_yaml
from crucible.sweeps.leaderboard import state_label
from crucible.sweeps.sweep import Sweep
from crucible.sweeps.trials import Trial, best_trial

MOST_ROWS = 200
"""Of the leaderboard on the page; the command line has all of them."""


@dataclass
class Curves:
    """What decides, over the trials' steps; read again only for those that went on."""

    sweep: Sweep
    _known: MutableMapping[int, tuple[tuple[int, int], Curve]] = field(default_factory=dict, repr=False)

    def of(self, trials: Sequence[Trial]) -> dict[int, Curve]:
        """A curve for each trial that reported it."""
        metric = self.sweep.read_spec().objective.metric
        for trial in trials:
            stamp = (trial.attempts, trial.steps)
            if trial.attempts and (trial.number not in self._known or self._known[trial.number][0] != stamp):
                rows = Metrics(self.sweep.job(trial.number)).rows()
                self._known[trial.number] = stamp, [(row["step"], row[metric]) for row in rows if metric in row]
        return {number: curve for number, (_, curve) in self._known.items() if curve}


def sweep_report(sweep: Sweep, ranked: Sequence[Trial], curves: Curves | None = None) -> str:
    """The page, from the trials as they are now (best first). Whoever calls again gives the same `curves`."""
    shown = (curves or Curves(sweep)).of(ranked[:MOST_LINES])
    parts = [f"# Sweep {sweep.sweep_id}", headline(sweep, ranked)]
    if (status := sweep.read_status()) is not None and status.reason:
        parts.append(as_prose(status.reason))
    if any(trial.losses for trial in ranked):
        picture = sweep_picture(ranked, sweep.read_space().dimensions, shown)
        parts.append(f"![settings and losses of the trials, and their learning curves]({data_uri(picture)})")
    best = best_trial(ranked)
    if best is not None:
        parts += ["## Best" if sweep.is_over() else "## Best so far", _best(sweep, best)]
    if ranked:
        parts += ["## Leaderboard", leaderboard_table(sweep, ranked[:MOST_ROWS])]
    if len(ranked) > MOST_ROWS:
        shown_by = f"`crucible sweeps show {sweep.sweep_id}{store_option(sweep.root)}`"
        parts.append(f"The first {MOST_ROWS} of {len(ranked):,}; {shown_by} has all.")
    if best is not None:
        described = as_yaml(sweep.read_kind().describe(best.values))
        parts += [f"## Configuration of trial {best.number}", f"```yaml\n{described}```"]
    return "\n\n".join(parts) + "\n"


def headline(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """State, trials, steps, time and cost on one line of markdown."""
    status, limits = sweep.read_status(), sweep.read_limits()
    spec = sweep.read_spec()
    steps, whole = sum(trial.steps for trial in trials), len(trials) * spec.ladder[-1] * spec.knows_total_steps
    failed = sum(bool(trial.failure) for trial in trials)
    facts = [
        f"**{status.state.value.capitalize() if status else 'Not started'}**",
        f"{len(trials)} of {limits.max_trials} trials" + (f", {failed} failed" if failed else ""),
        f"{steps:,} steps" + (f" ({steps / whole:.0%} of training all to the end)" if whole else ""),
        f"{duration(sum(trial.seconds for trial in trials))} of machine time",
        money(sum(t.cost_usd for t in trials)) + (f" of {money(limits.max_cost_usd)}" if limits.max_cost_usd else ""),
    ]
    return " · ".join(facts)


def leaderboard_table(sweep: Sweep, ranked: Sequence[Trial]) -> str:
    """One row for each trial. Cells have several lines, so that the table fits on a telephone."""
    names, over = sweep.read_space().names, sweep.is_over()
    rows = [
        [
            f"**{place}**",
            f"trial {trial.number}<br>`{trial.job_id}`",
            "<br>".join(f"{name} {_value(trial.values, name)}" for name in names),
            (UNKNOWN if trial.value is None else f"**{trial.value:.4f}**") + f"<br>step {trial.shown_step:,}",
            state_label(trial, over)
            + (f": {as_prose(trial.failure)}" if trial.failure else "")
            + f"<br>{money(trial.cost_usd)}",
        ]
        for place, trial in enumerate(ranked, start=1)
    ]
    metric = sweep.read_spec().objective.metric.replace("_", " ")
    return markdown_table(["rank", "trial", "settings", metric, "state"], rows)


def _best(sweep: Sweep, best: Trial) -> str:
    parts = [
        f"Trial {best.number} (job `{best.job_id}`): {best.objective.label} {best.value:.4f} at step "
        f"{best.shown_step:,}, {money(best.cost_usd)}.",
    ]
    evaluation = read_evaluation(sweep.job(best.number))
    if evaluation is not None:
        parts.append(evaluation_summary(evaluation))
    return "\n\n".join(parts)


def _value(values: Mapping[str, object], name: str) -> str:
    value = values.get(name, UNKNOWN)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
