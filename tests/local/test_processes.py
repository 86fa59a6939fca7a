"""Processes that outlive their command: found again for certain, and stopped with all they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from crucible.local.processes import ProcessRecord, process_start, start_detached, stop_tree

PARENT_WITH_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}])
print(child.pid, flush=True)
child.wait()
"""
SAVES_ON_SIGTERM = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path("saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
pathlib.Path("listening").touch()
time.sleep(600)
"""
IGNORES_SIGTERM = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("listening").touch()
time.sleep(600)
"""


def eventually(condition: Callable[[], bool]) -> None:
    while not condition():  # pytest's time limit ends a wait in vain
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], ProcessRecord]]:
    """Start a Python script detached; whatever is left of it at the end of the test is killed."""
    records: list[ProcessRecord] = []

    def start(script: str) -> ProcessRecord:
        command = [sys.executable, "-c", script]
        records.append(start_detached(command, log=tmp_path / "log", cwd=tmp_path, env=os.environ))
        return records[-1]

    yield start
    for record in records:
        if process := record.find():
            stop_tree(process, grace_seconds=0)


def test_a_record_finds_its_process_and_survives_being_written_down(start: Callable[[str], ProcessRecord]) -> None:
    record = start("import time; time.sleep(600)")
    again = ProcessRecord.model_validate_json(record.model_dump_json())
    found = again.find()
    assert found is not None
    assert found.pid == record.pid


def test_a_pid_that_was_given_to_another_process_is_not_ours(start: Callable[[str], ProcessRecord]) -> None:
    record = start("import time; time.sleep(600)")
    stranger = record.model_copy(update={"pid": os.getpid()})
    assert stranger.find() is None
    restarted = record.model_copy(update={"start": process_start(os.getpid()), "created": record.created - 3600})
    assert restarted.find() is None


def test_a_process_is_found_after_the_clock_was_set(
    start: Callable[[str], ProcessRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux counts a start from the boot, and psutil adds a boot time that follows the wall clock."""
    record = start("import time; time.sleep(600)")
    created = record.created + 3600
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created)
    assert record.find() is not None


def test_a_record_of_an_earlier_version_finds_its_process(start: Callable[[str], ProcessRecord]) -> None:
    record = start("import time; time.sleep(600)").model_copy(update={"start": None})
    assert record.find() is not None
    assert record.model_copy(update={"created": record.created - 3600}).find() is None


def test_a_process_that_shows_no_command_line_yet_is_found(
    start: Callable[[str], ProcessRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux lets the parent go on a moment before the child's arguments can be read."""
    record = start("import time; time.sleep(600)")
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: [])
    assert record.find() is not None


def test_a_process_that_ended_is_not_found(start: Callable[[str], ProcessRecord]) -> None:
    record = start("")
    eventually(lambda: record.find() is None)


def test_stopping_takes_children_along_even_those_that_ignore_sigterm(
    start: Callable[[str], ProcessRecord], tmp_path: Path
) -> None:
    record = start(PARENT_WITH_CHILD.format(child=IGNORES_SIGTERM))
    eventually((tmp_path / "listening").exists)
    child = psutil.Process(int((tmp_path / "log").read_text()))
    parent = record.find()
    assert parent is not None
    stop_tree(parent)
    assert record.find() is None
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_children_may_save_before_their_parent_is_stopped(
    start: Callable[[str], ProcessRecord], tmp_path: Path
) -> None:
    record = start(PARENT_WITH_CHILD.format(child=SAVES_ON_SIGTERM))
    eventually((tmp_path / "listening").exists)
    parent = record.find()
    assert parent is not None
    stop_tree(parent, children_first_seconds=30)
    assert (tmp_path / "saved").exists()
    assert record.find() is None


def test_sigint_reaches_a_service_started_by_a_background_script(tmp_path: Path) -> None:
    """`crucible up &` in a script runs with SIGINT ignored; a worker that inherits that can never be stopped."""
    script = (
        "import os, pathlib, sys\n"
        "from crucible.local.processes import start_detached\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "command = [sys.executable, '-c', 'import signal; print(signal.getsignal(signal.SIGINT))']\n"
        "start_detached(command, log=here / 'log', cwd=here, env=os.environ)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        check=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    eventually(lambda: bool((tmp_path / "log").read_text().strip()))
    assert "default_int_handler" in (tmp_path / "log").read_text()


def test_a_process_that_ends_by_itself_in_the_same_moment_is_stopped(start: Callable[[str], ProcessRecord]) -> None:
    record = start("import time; time.sleep(1)")
    process = psutil.Process(record.pid)
    eventually(lambda: not psutil.pid_exists(record.pid))
    stop_tree(process, children_first_seconds=0.1)
