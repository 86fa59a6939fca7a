"""What a process may use: the limits of its container count, not only what the host has."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from crucible.container import available_memory_bytes, total_memory_bytes, usable_cpus

MIB = 1 << 20


def group(folder: Path, names: tuple[str, str, str], limit: str, used: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, (limit, str(used), f"anon 1\n{names[2]} {cache}\n"), strict=True):
        (folder / ("memory.stat" if name == names[2] else name)).write_text(content)


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.mark.parametrize(("names", "line", "mount"), [(V2, "0::{}", "."), (V1, "4:cpu,memory:{}", "memory")])
def test_a_containers_limit_counts(tmp_path: Path, names: tuple[str, str, str], line: str, mount: str) -> None:
    own = tmp_path / "own"
    own.write_text("1:name=systemd:/x\n" + line.format("/pod/task") + "\n")
    group(tmp_path / mount / "pod" / "task", names, "max" if names is V2 else str(2**63 - 4096), 1, 0)
    assert available_memory_bytes(tmp_path, own) == pytest.approx(psutil.virtual_memory().available, rel=0.5)
    group(tmp_path / mount / "pod", names, str(100 * MIB), 80 * MIB, 30 * MIB)
    assert available_memory_bytes(tmp_path, own) == 50 * MIB, "the group above limits it; its file cache can go"
    group(tmp_path / mount / "pod" / "task", names, str(10 * MIB), 12 * MIB, 0)
    assert available_memory_bytes(tmp_path, own) == 0
    # In a container of its own name space, the path is that of the host, and the limit lies at the mount itself.
    own.write_text(line.format("/not/visible") + "\n")
    group(tmp_path / mount, names, str(64 * MIB), 24 * MIB, 0)
    assert available_memory_bytes(tmp_path, own) == 40 * MIB


@pytest.mark.parametrize(("names", "line", "mount"), [(V2, "0::{}", "."), (V1, "4:cpu,memory:{}", "memory")])
def test_the_memory_of_the_machine_is_what_its_container_allows(
    tmp_path: Path, names: tuple[str, str, str], line: str, mount: str
) -> None:
    own = tmp_path / "own"
    own.write_text(line.format("/pod/task") + "\n")
    assert total_memory_bytes(tmp_path, own) == psutil.virtual_memory().total
    group(tmp_path / mount / "pod", names, str(100 * MIB), 80 * MIB, 30 * MIB)
    assert total_memory_bytes(tmp_path, own) == 100 * MIB


@pytest.mark.parametrize("version", [1, 2])
def test_a_share_of_cpu_time_counts(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    own = tmp_path / "own"
    own.write_text("0::/pod/task\n" if version == 2 else "2:cpu,cpuacct:/pod/task\n")
    folder = (tmp_path if version == 2 else tmp_path / "cpu") / "pod"
    (folder / "task").mkdir(parents=True)

    def limit(group: Path, quota: str) -> None:
        (group / "cpu.max").write_text(f"{quota} 100000\n")
        (group / "cpu.cfs_quota_us").write_text(f"{'-1' if quota == 'max' else quota}\n")
        (group / "cpu.cfs_period_us").write_text("100000\n")

    limit(folder / "task", "max")
    assert usable_cpus(tmp_path, own) == 8
    limit(folder, "150000")
    assert usable_cpus(tmp_path, own) == 2
    limit(folder / "task", "20000")
    assert usable_cpus(tmp_path, own) == 1


def test_no_control_groups(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path, tmp_path / "nothing") > 0
    assert available_memory_bytes() > 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux ties a process to processors")
def test_taskset_counts() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)
