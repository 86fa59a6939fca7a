"""What `crucible cleanup` removes of packages, data and shared files: what nobody needs, and nothing else."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from typer.testing import CliRunner

from crucible.cleanup.plan import CleanupRequest, clean_up, plan_cleanup
from crucible.cleanup.removal import Kind
from crucible.cli.main import build_app
from crucible.code.folder import pack_folder
from crucible.code.packing import archive_key
from crucible.code.pruning import find_unused
from crucible.code.workplace import place_data, unpack
from crucible.jobs.job import Job
from crucible.jobs.records import CodePackage, JobSpec
from crucible.script_config import ScriptConfig
from crucible.store import Store

WEEK = timedelta(days=7)


def upload(store: Store, folder: Path, code: str, **data: str) -> CodePackage:
    """Pack and upload a folder with a script and these files of data."""
    folder.mkdir()
    (folder / "train.py").write_text(code)
    (folder / "data").mkdir()
    for name, text in data.items():
        (folder / "data" / name).write_text(text)
    return pack_folder(folder, data=["data"]).upload(store)


def age(store: Store, days: float) -> None:
    """Let everything in the store be so many days older."""
    root = Path(store.uri.removeprefix("file://"))
    for path in root.rglob("*"):
        if path.is_file():
            written = path.stat().st_mtime - 86400 * days
            os.utime(path, (written, written))


def test_only_what_no_record_names_and_nobody_used_for_a_week_goes(store: Store, tmp_path: Path) -> None:
    named = upload(store, tmp_path / "a", "print(1)", shared="both", own="a")
    unnamed = upload(store, tmp_path / "b", "print(2)", shared="both", other="b" * 1000)
    of_sweep = upload(store, tmp_path / "c", "print(3)", third="c")
    script = ScriptConfig(command=["python", "train.py"])
    Job.create(store, JobSpec(job_id="one", script=script, code=named))
    store.write_json("sweeps/s/sweep.json", {"sweep_id": "s", "made_by": "a newer release", "code": of_sweep.digest})
    assert find_unused(store, WEEK) == [], "all of it is young"
    age(store, 8)
    young = upload(store, tmp_path / "d", "print(4)", other="b" * 1000)
    found = {entry.name for entry in find_unused(store, WEEK)}
    assert f"code/{unnamed.digest}" in found
    assert not [name for name in found if named.digest in name or of_sweep.digest in name or young.digest in name]
    done = CliRunner().invoke(build_app(), ["cleanup", "--only", "packages", "--store", store.uri])
    assert "would be removed" in done.output
    assert {entry.name for entry in find_unused(store, WEEK)} == found, "a dry run removes nothing"
    done = CliRunner().invoke(build_app(), ["cleanup", "--only", "packages", "--apply", "--store", store.uri])
    assert done.exit_code == 0, done.output
    assert not store.exists(archive_key(unnamed.digest))
    assert find_unused(store, WEEK) == []
    for number, package in enumerate((named, young)):
        unpack(store, package.digest, tmp_path / f"work-{number}")
        place_data(store, package.data, tmp_path / f"work-{number}", tmp_path / f"cache-{number}")
    assert (tmp_path / "work-0" / "data" / "shared").read_text() == "both"
    assert (tmp_path / "work-1" / "data" / "other").read_text() == "b" * 1000


def test_a_run_of_an_old_package_makes_it_young_again(store: Store, tmp_path: Path) -> None:
    upload(store, tmp_path / "a", "print(1)", own="a")
    age(store, 30)
    assert find_unused(store, WEEK)
    pack_folder(tmp_path / "a", data=["data"]).upload(store)
    assert find_unused(store, WEEK) == []


def test_what_is_used_again_after_the_plan_stays(store: Store, tmp_path: Path) -> None:
    package = upload(store, tmp_path / "a", "print(1)", own="a")
    other = upload(store, tmp_path / "b", "print(2)", other="b")
    age(store, 30)
    plan = plan_cleanup(store, CleanupRequest(kinds=[Kind.PACKAGES]), tmp_path / "scratch")
    pack_folder(tmp_path / "a", data=["data"]).upload(store)  # a run that was started meanwhile
    result = clean_up(plan)
    assert (len(result.removed), len(result.needed_after_all)) == (3, 3)
    assert store.exists(archive_key(package.digest))
    assert not store.exists(archive_key(other.digest))


def test_a_shared_file_goes_once_its_link_has_expired(store: Store, tmp_path: Path) -> None:
    for name in ("old", "renewed"):
        store.write(f"shared/{name}.tar", b"packed")
    age(store, 8)
    store.write("shared/new.tar", b"packed")
    plan = plan_cleanup(store, CleanupRequest(kinds=[Kind.SHARED]), tmp_path / "scratch")
    store.write("shared/renewed.tar", b"packed again")
    assert [removal.name for removal in clean_up(plan).removed] == ["shared/old.tar"]
    assert {info.key for info in store.list("shared")} == {"shared/new.tar", "shared/renewed.tar"}


def test_a_damaged_record_keeps_what_it_names(store: Store, tmp_path: Path) -> None:
    package = upload(store, tmp_path / "a", "print(1)", own="a")
    text = f'{{"code": {{"digest": "{package.digest}", "data": {{"data": "{package.data["data"]}"'
    store.write("jobs/cut-off/job.json", text.encode())
    age(store, 30)
    assert find_unused(store, WEEK) == []


def test_a_record_that_cannot_be_read_keeps_packages_and_nothing_else(store: Store, tmp_path: Path) -> None:
    """What it names is not known."""
    upload(store, tmp_path / "a", "print(1)", own="a")
    store.write("jobs/cut-off/job.json/inside", b"a folder in its place")
    store.write("shared/model.tar", b"m")
    age(store, 30)
    plan = plan_cleanup(store, CleanupRequest(), tmp_path / "scratch")
    assert [removal.kind for removal in plan.removals] == [Kind.SHARED]
    assert any(what.startswith("packages: ") and "cut-off/job.json" in what for what in plan.left_alone)
