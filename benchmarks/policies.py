"""What deadline policies cost on recorded spot availability: the project's own against the published ones.

    python -m benchmarks.policies FOLDER_WITH_TRACES [--quick]

FOLDER holds traces of github.com/skypilot-org/spot-traces (the files of the paper "Can't Be Late", NSDI 2024). The
figures are given over all zones and over those that the policy's four numbers were not fitted to. Bars: nobody late,
cheaper than Uniform Progress and greedy at every deadline, excess over the omniscient bound at least 25 % smaller than
Uniform Progress's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.results import FOLDER, write_result
from crucible.placement.simulate import Row, load_traces, simulate, summarise
from crucible.reports.simulation_picture import save_plot

DEADLINES = (1.1, 1.3, 1.6)
FITTED_ZONES = ("us-east-1a", "us-east-1d", "us-east-2a", "us-west-2a", "us-west-2c")
"""Zones whose spot runs and outages the two laws in `crucible.placement.lookahead` were fitted to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path, help="folder with the traces")
    parser.add_argument("--quick", action="store_true", help="fewer start points")
    options = parser.parse_args()
    rows = simulate(
        load_traces(options.traces),
        job_hours=24,
        on_demand_ratio=3,
        changeover_hours=0.1,
        deadline_ratios=DEADLINES,
        start_every_hours=19 if options.quick else 3,
        progress=print,
    )
    held_out = [row for row in rows if not row.trace.startswith(FITTED_ZONES)]
    figures = {"all zones": compare(rows), "zones not fitted to": compare(held_out)}
    for zones, lines in figures.items():
        for line in lines:
            print(
                f"{zones}, deadline {line['deadline_ratio']}: crucible {line['crucible']:.4f}, "
                f"Uniform Progress {line['uniform-progress']:.4f}, greedy {line['greedy']:.4f}, "
                f"bound {line['omniscient']:.4f}; excess is {line['excess_ratio']:.2f} of Uniform Progress's, "
                f"{line['missed']} late"
            )
    if not options.quick:
        save_plot(summarise(rows), FOLDER / "policies.png")
        print(write_result("policies", figures))


def compare(rows: list[Row]) -> list[dict[str, Any]]:
    """Per deadline: each policy's mean cost, late runs of all policies, and the ratio of the two excesses."""
    lines = []
    for ratio in DEADLINES:
        here = {line.policy: line for line in summarise(rows) if line.deadline_ratio == ratio}
        lines.append(
            {
                "deadline_ratio": ratio,
                **{policy: line.cost for policy, line in here.items()},
                "excess_ratio": here["crucible"].excess / here["uniform-progress"].excess,
                "missed": sum(line.missed for line in here.values()),
            }
        )
    return lines


if __name__ == "__main__":
    main()
