"""What a partition would never run, by what `scontrol` and `sacctmgr` print (22.05)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from crucible.pools.slurm.configuration import SlurmJobConfiguration
from crucible.pools.slurm.inventory import never_starts
from crucible.pools.slurm.shell import Shell

SHOWN = """\
PartitionName=lab AllowGroups=ALL AllowAccounts=lab,guests AllowQos=normal Default=YES QoS=N/A MaxNodes=2 \
MaxTime=08:00:00 State=UP
PartitionName=open AllowGroups=ALL DenyAccounts=guests AllowQos=ALL Default=NO QoS=N/A MaxNodes=UNLIMITED \
MaxTime=UNLIMITED State=UP
"""
NO_ACCOUNTING, PLAIN, OVERRIDING = None, "\nDenyOnLimit\n", "\nDenyOnLimit,PartitionTimeLimit,PartitionMaxNodes\n"


@pytest.mark.parametrize(
    ("fields", "flags", "words"),
    [
        ({"time_limit_minutes": 481}, NO_ACCOUNTING, "481 is over the maximum of partition lab, 480"),
        ({"time_limit_minutes": 481}, PLAIN, "481 is over the maximum of partition lab, 480"),
        ({"time_limit_minutes": 481}, OVERRIDING, None),
        ({"time_limit_minutes": 480}, NO_ACCOUNTING, None),
        ({"time_limit_minutes": 481, "partition": "lab,open"}, NO_ACCOUNTING, None),
        ({"time_limit_minutes": 481, "partition": "open"}, NO_ACCOUNTING, None),
        ({"time_limit_minutes": 481, "partition": "hidden"}, NO_ACCOUNTING, None),
        ({"nodes": "3..4"}, NO_ACCOUNTING, "3 are more than a job on partition lab may have, 2"),
        ({"nodes": "2..4"}, NO_ACCOUNTING, None),
        ({"account": "me"}, NO_ACCOUNTING, "me may not use partition lab (it allows lab, guests)"),
        ({"account": "me"}, PLAIN, None),
        ({"account": "Lab"}, NO_ACCOUNTING, None),
        ({"account": "guests", "partition": "open"}, NO_ACCOUNTING, "(it denies guests)"),
        ({"qos": "high"}, PLAIN, "high may not use partition lab (it allows normal)"),
        ({}, NO_ACCOUNTING, None),
    ],
    ids=str,
)
def test_what_a_partition_would_never_run_is_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], flags: str | None, words: str | None
) -> None:
    programs = {"scontrol": SHOWN, "sacctmgr": flags}
    for name, printed in programs.items():
        says = "exit 1" if printed is None else f"cat <<'END'\n{printed}END"
        (tmp_path / name).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = asyncio.run(never_starts(Shell(), SlurmJobConfiguration(command="true", **fields)))
    assert (found is None) == (words is None), found
    assert words is None or words in str(found)
