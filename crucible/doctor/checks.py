"""The checks of `crucible doctor` on this machine: each one returns what it found and how to fix it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from crucible.agent.health import card_problem, torch_cuda_version
from crucible.agent.nvml import Nvml, visible_gpus
from crucible.errors import CrucibleError
from crucible.formatting import size
from crucible.local import profile, services
from crucible.local.database import SETTING
from crucible.local.state import PROJECT, Home, State
from crucible.store import default_store_uri, store_at
from crucible.store.guarantees import prove_guarantees

MINIMUM_FREE_GIB = 2.0
"""A quickstart writes about 0.2 GiB, the server's database and a few jobs the rest."""

KNOWN_BAD = {
    "fastapi": (Requirement("fastapi<0.151"), "the Prefect server does not start with it"),
    "sqlalchemy": (Requirement("sqlalchemy<2.1"), "schedules produce no runs with it"),
}
"""Versions that Prefect's own bounds admit and that break it; see constraints.txt."""


@dataclass(frozen=True)
class Check:
    """One row of the report."""

    name: str
    ready: bool
    found: str
    fix: str = ""
    """What to do; empty if ready."""
    local: bool = True
    """Whether the `local` pool needs it: the command fails only for such checks."""


def run_all(checks: list[Callable[[], Check]]) -> list[Check]:
    """The rows in order. The checks mostly wait for other programs, so they run at once."""
    import prefect  # noqa: F401 - imported by two threads at once, it reports a deadlock of its plugins' imports

    with ThreadPoolExecutor(max_workers=len(checks)) as threads:
        return [future.result() for future in [threads.submit(check) for check in checks]]


def python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    ready = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("python", ready, f"{version} in {sys.prefix}", "" if ready else "use Python 3.11, 3.12 or 3.13")


def packages() -> Check:
    for name, (allowed, consequence) in KNOWN_BAD.items():
        version = metadata.version(name)
        if not allowed.specifier.contains(version, prereleases=True):
            fix = f"pip install -c {PROJECT / 'constraints.txt'} '{allowed}'"
            return Check("packages", False, f"{name} {version}: {consequence}", fix)
    return Check("packages", True, f"prefect {metadata.version('prefect')}, crucible {metadata.version('crucible')}")


def torch() -> Check:
    """In a separate process: importing torch takes seconds, and a broken driver may crash it."""
    script = (
        "import json, torch; cuda = torch.cuda.is_available();"
        "print(json.dumps([torch.__version__, [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]"
        " if cuda else [], torch.backends.mps.is_available(), torch.get_num_threads()]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        fix = f"pip install -c {PROJECT / 'constraints.txt'} torch"
        return Check("torch", False, f"does not import: {reason[0]}", fix)
    version, gpus, mps, threads = json.loads(done.stdout.splitlines()[-1])
    devices = [*gpus, *(["Apple GPU"] if mps else []), f"CPU with {threads} threads"]
    return Check("torch", True, f"{version}; {', '.join(devices)}")


def gpu() -> Check:
    """NVIDIA's GPUs: the same look that an attempt takes before it starts (`crucible.agent.health`)."""
    cards = (nvml := Nvml.load()) and nvml.cards(visible_gpus())
    if cards is None and Path("/dev/nvidiactl").exists():
        fix = f"pip install -c {PROJECT / 'constraints.txt'} '{PROJECT}[gpu]'"
        return Check("gpu", False, "there is an NVIDIA driver, but nothing to read it with", fix, local=False)
    if not cards:
        return Check("gpu", True, "no NVIDIA GPU", local=False)
    torch_cuda = torch_cuda_version()
    problems = [problem for card in cards if (problem := card_problem(card, torch_cuda))]
    found = "; ".join(
        f"{card.name}, driver {card.driver}, {card.used_bytes / 2**30:.1f} of {card.memory_bytes / 2**30:.1f} GiB used"
        + (f", {card.temperature} °C" if card.temperature is not None else "")
        for card in cards
    )
    if problems:
        fix = "end the programs that hold memory (nvidia-smi lists them), restart the machine, or use another one"
        return Check("gpu", False, "; ".join(problems), fix, local=False)
    if torch_cuda is None:
        fix = f"pip install -c {PROJECT / 'constraints.txt'} torch, from an index with builds for CUDA"
        return Check("gpu", False, f"{found}, which the installed torch cannot use", fix, local=False)
    return Check("gpu", True, found, local=False)


def disk() -> Check:
    home = Home.current().root
    existing = next(folder for folder in [home, *home.parents] if folder.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    ready = free_gib >= MINIMUM_FREE_GIB
    fix = f"free {MINIMUM_FREE_GIB:g} GiB, or set CRUCIBLE_HOME to a folder on another disk"
    return Check("disk", ready, f"{free_gib:.1f} GiB free at {existing}", "" if ready else fix)


def store() -> Check:
    """Whether the default store can be written and keeps the promises that recovery rests on."""
    uri = default_store_uri()
    try:
        prove_guarantees(store_at(uri))
    except CrucibleError as error:
        return Check("store", False, str(error), "make it writable, or set CRUCIBLE_STORE to another address")
    return Check("store", True, f"{uri} is writable; create-only writes, renames and listings hold")


def service(name: str, label: str, answers: Callable[[State], bool]) -> Check:
    """One of the processes that `crucible up` starts."""
    state = State.load(Home.current())
    fix = "crucible up"
    if not state.is_running(name):
        return Check(name, False, f"{label} is not running", fix)
    record = state.services[name]
    if not answers(state):
        return Check(name, False, f"{label} (process {record.pid}) does not answer", "crucible down && crucible up")
    return Check(name, True, f"process {record.pid}" + (f", {state.api_url}" if name == "server" else ""))


def server() -> Check:
    return service("server", "Prefect server", lambda state: services.server_answers(state.api_url or ""))


def database() -> Check:
    """Whether the server reaches its database, and which one that is."""
    home = Home.current()
    state = State.load(home)
    file = home.prefect / "prefect.db"
    if state.database:
        name = state.database
    elif file.exists():
        name = f"SQLite file {file}, {size(file.stat().st_size)}"
    else:
        return Check("database", False, "not there yet", "crucible up")
    if not services.database_answers(state.api_url or ""):
        fix = f"start the database, or check {SETTING}; then: crucible down && crucible up"
        return Check("database", False, f"{name} does not answer", fix if state.database else "crucible up")
    return Check("database", True, name)


def worker() -> Check:
    home = Home.current()
    return service("worker", "Worker", lambda state: services.worker_answers(home, state.api_url or "", since=0))


def watchdog() -> Check:
    return service("watchdog", "Watchdog", lambda _: True)


def prefect_profile() -> Check:
    """Whether plain `prefect` commands in this shell reach the local server."""
    state = State.load(Home.current())
    if state.api_url is None:
        return Check("profile", False, "no local server is set up", "crucible up", local=False)
    if overriding := " ".join(profile.overridden_by(services.client_settings(Home.current(), state.api_url))):
        found = f"set in this shell, wins over the profile: {overriding}"
        return Check("profile", False, found, f"unset {overriding}", local=False)
    if (active := profile.active()) != profile.NAME:
        return Check("profile", False, f"{active} is selected", f"prefect profile use {profile.NAME}", local=False)
    return Check("profile", True, f"{profile.NAME} is selected: `prefect` reaches this server", local=False)


def patches() -> Check:
    """What Crucible replaces in Prefect, or uses of other packages without being promised it, and whether it fits."""
    from crucible.prefect_compat import private_hooks, statuses

    rows, unfit = [], []
    for status in statuses():
        patch = status.patch
        state = "on" if status.on else f"OFF ({status.difference})"
        rows.append(f"{patch.name} {state}, checked with {patch.versions}, upstream: {patch.issue}")
        unfit += [] if status.on else ["prefect"]
    for hook, difference in private_hooks.statuses():
        rows.append(f"{hook.what} {difference or 'as expected'}, checked with {hook.versions}")
        unfit += [hook.package] if difference else []
    fix = f"pip install -c {PROJECT / 'constraints.txt'} {' '.join(dict.fromkeys(unfit))}" if unfit else ""
    return Check("patches", not unfit, "; ".join(rows), fix, local=False)


def machine() -> list[Callable[[], Check]]:
    """All checks of this machine and its services."""
    return [python, packages, patches, torch, gpu, disk, store, server, database, worker, watchdog, prefect_profile]
