"""What travels of a folder: real git repositories, real files, real archives."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from crucible.code.command import check_command, named_but_left_out
from crucible.code.data import scan
from crucible.code.folder import pack_folder
from crucible.code.packing import archive_key
from crucible.code.selection import select
from crucible.code.workplace import place_data, unpack
from crucible.errors import ConfigError, DataError, RecordDamaged
from crucible.jobs.records import CodePackage
from crucible.store import Store

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n"


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder without git."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text("print('hello')\n")
    return folder


@pytest.fixture
def repository(plain: Path) -> Path:
    """A repository as nanoGPT's: its data is ignored."""
    git(plain, "init", "-q")
    (plain / ".gitignore").write_text("*.bin\nout/\n")
    (plain / "data").mkdir()
    (plain / "data" / "train.bin").write_bytes(b"12345")
    git(plain, "add", ".")
    git(plain, "commit", "-qm", "all")
    return plain


def test_git_decides_what_travels(repository: Path) -> None:
    (repository / "new.py").write_text("untracked\n")
    (repository / "gone.py").write_text("tracked, then deleted\n")
    git(repository, "add", "gone.py")
    (repository / "gone.py").unlink()
    (repository / "out").mkdir()
    (repository / "out" / "ckpt.pt").write_text("x")
    selection = select(repository)
    assert selection.files == [".gitignore", "new.py", "train.py"]
    assert selection.left_out == ["data/train.bin", "out/"]
    assert "data/train.bin" in selection.describe_left_out()


def test_a_folder_inside_a_repository_travels_alone(repository: Path) -> None:
    (repository / "sub").mkdir()
    (repository / "sub" / "run.py").write_text("x")
    assert select(repository / "sub").files == ["run.py"]
    (repository / ".gitignore").write_text("sub\n")
    assert select(repository / "sub").files == ["run.py"], "a folder that git ignores as a whole is one without git"


def test_without_git_caches_and_environments_stay(plain: Path) -> None:
    for name in ("__pycache__/train.pyc", "env/pyvenv.cfg", "env/lib/torch.py", "src/model.py", "notes.log", "old.bak"):
        (plain / name).parent.mkdir(parents=True, exist_ok=True)
        (plain / name).write_text("x")
    (plain / ".gitignore").write_text("*.log\n")
    (plain / ".crucibleignore").write_text("\ufeff*.bak\n", encoding="utf-8")  # as editors on Windows write it
    selection = select(plain)
    assert selection.files == [".crucibleignore", ".gitignore", "src/model.py", "train.py"]
    assert set(selection.left_out) == {"__pycache__/", "env/", "notes.log", "old.bak"}


def test_include_adds_what_git_ignores_and_data_is_carried_apart(repository: Path) -> None:
    assert "data/train.bin" in select(repository, include=["data/*.bin"]).files
    assert "data/train.bin" in select(repository, include=["data"]).files
    (repository / "data" / "Poe [1845].bin").touch()
    assert "data/Poe [1845].bin" in select(repository, include=["data/Poe [1845].bin"]).files
    (repository / "data" / "Poe [1845].bin").unlink()
    packed = pack_folder(repository, data=["data"])
    assert packed.selection.files == [".gitignore", "train.py"]
    assert packed.selection.left_out == []
    assert [file.path for file in packed.data["data"].files] == ["train.bin"]
    with pytest.raises(ConfigError, match=r"include: '\*.npy' matches nothing"):
        select(repository, include=["*.npy"])
    with pytest.raises(ConfigError, match="data: there is no corpus"):
        pack_folder(repository, data=["corpus"])


def test_equal_content_is_one_object_whoever_packs_it(plain: Path, tmp_path: Path, store: Store) -> None:
    for number in range(200):
        (plain / f"module_{number:03d}.py").write_text(f"x = {number}\n")
    (plain / "run.sh").write_text("#!/bin/sh\n")
    (plain / "run.sh").chmod(0o755)
    first = pack_folder(plain)
    other = tmp_path / "elsewhere" / "copy"
    other.parent.mkdir()
    subprocess.run(["cp", "-r", str(plain), str(other)], check=True)
    names = sorted(other.iterdir())
    random.Random(3).shuffle(names)
    for number, path in enumerate(names):
        os.utime(path, (number, number))
    second = pack_folder(other)
    assert first.package.digest == second.package.digest
    assert first.package.upload(store)
    assert not second.package.upload(store), "it is there already"
    (other / "module_007.py").write_text("x = 8\n")
    assert pack_folder(other).package.digest != first.package.digest

    unpack(store, first.package.digest, tmp_path / "work")
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == sorted(path.name for path in plain.iterdir())
    assert os.access(tmp_path / "work" / "run.sh", os.X_OK)
    (tmp_path / "work" / "train.py").write_text("a copy may be written to")


@pytest.mark.parametrize("name", [".env", ".env.local", "conf/.env.production", ".netrc", "deploy.key", "id_ed25519"])
def test_secrets_are_refused_by_name(plain: Path, name: str) -> None:
    path = plain / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(KEY if "key" in name or "id_" in name else "TOKEN=1\n")
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")) as refused:
        select(plain)
    assert "TOKEN=1" not in str(refused.value)
    (plain / ".crucibleignore").write_text(f"{name}\n")
    assert name not in select(plain).files


def test_what_only_looks_like_a_secret_travels(plain: Path) -> None:
    (plain / ".env.example").write_text("TOKEN=\n")
    (plain / "keys.md").write_text(f"Never commit a file that begins like this:\n{KEY}")
    (plain / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    assert {".env.example", "keys.md", "cert.pem"} <= set(select(plain).files)


def test_too_much_code_is_refused_with_its_largest_files(plain: Path) -> None:
    with (plain / "weights.pt").open("wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(ConfigError, match=r"weights\.pt \(31[45]") as refused:
        select(plain)
    assert "data:" in str(refused.value)
    assert select(plain, data=["weights.pt"]).files == ["train.py"]


def test_two_hundred_files_travel_and_one_of_300_mb_as_data(plain: Path) -> None:
    for number in range(199):
        (plain / f"module_{number}.py").write_text(f"N = {number}\n")
    with (plain / "weights.bin").open("wb") as file:
        file.truncate(300 << 20)  # takes no disk
    with pytest.raises(ConfigError, match=r"weights\.bin \(314.6 MB\)"):
        pack_folder(plain)
    packed = pack_folder(plain, data=["weights.bin"])
    assert (packed.package.files, packed.data["weights.bin"].bytes) == (200, 300 << 20)


def test_links_that_leave_the_folder_are_refused_and_others_travel(plain: Path, tmp_path: Path, store: Store) -> None:
    (plain / "current.py").symlink_to("train.py")
    (tmp_path / "secret.txt").write_text("x")
    packed = pack_folder(plain)
    packed.package.upload(store)
    unpack(store, packed.package.digest, tmp_path / "work")
    assert (tmp_path / "work" / "current.py").readlink() == Path("train.py")
    for target in ("../secret.txt", str(tmp_path / "secret.txt")):
        link = plain / "outside"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(ConfigError, match=r"outside → .*secret.txt is a link that leaves"):
            select(plain)
        assert pack_folder(plain, data=["outside"]).data["outside"].bytes == 1, "as data, its content travels"


def test_submodules_travel_if_they_are_there(repository: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    (library / "layers.py").write_text("x = 1\n")
    (library / ".gitignore").write_text("*.o\n")
    git(library, "add", ".")
    git(library, "commit", "-qm", "all")
    git(repository, "submodule", "add", "-q", str(library), "lib")
    git(repository, "commit", "-qm", "with a library")
    (repository / "lib" / "new.py").write_text("untracked\n")
    (repository / "lib" / "a.o").write_text("ignored there\n")
    selection = select(repository)
    assert {"lib/layers.py", "lib/new.py", ".gitmodules"} <= set(selection.files)
    assert "lib/a.o" in selection.left_out

    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    with pytest.raises(ConfigError, match=r"submodule lib is not checked out.*git submodule update --init lib"):
        select(clone)
    (clone / ".crucibleignore").write_text("lib/\n")
    assert "lib" not in select(clone).files


def test_a_file_that_keeps_changing_is_refused_by_name(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = plain / "log.txt"
    log.write_text("x")
    look = os.fstat

    def written_meanwhile(descriptor: int) -> os.stat_result:
        found = look(descriptor)
        if found.st_ino == log.stat().st_ino and found.st_size < limit:
            with log.open("a") as file:
                file.write("x")
        return found

    limit = 3
    monkeypatch.setattr("crucible.code.packing.os.fstat", written_meanwhile)
    pack_folder(plain)  # it is read again, and comes to rest
    limit = 1000
    with pytest.raises(ConfigError, match=r"log\.txt changes while it is packed"):
        pack_folder(plain)


def test_special_files_are_refused(plain: Path) -> None:
    os.mkfifo(plain / "pipe")
    with pytest.raises(ConfigError, match="pipe is neither a file nor a folder"):
        select(plain)


def test_a_file_that_cannot_be_read_is_named(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plain / "locked.txt").write_text("x")
    opened = Path.open

    def refused(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "locked.txt":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ConfigError, match=r"code: locked\.txt cannot be read: Permission denied"):
        pack_folder(plain)


def test_data_may_have_links_to_folders_beside_each_other(plain: Path) -> None:
    (plain / "data" / "v3").mkdir(parents=True)
    (plain / "data" / "v3" / "a.bin").write_bytes(b"a")
    (plain / "data" / "latest").symlink_to("v3")
    assert [file.path for file in scan(plain, "data").files] == ["latest/a.bin", "v3/a.bin"]
    (plain / "data" / "v3" / "up").symlink_to("..")
    with pytest.raises(ConfigError, match="data links to itself"):
        scan(plain, "data")


def test_data_that_is_written_while_it_is_uploaded_leaves_nothing_under_its_name(
    plain: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain / "a.bin").write_bytes(b"a")
    packed = pack_folder(plain, data=["a.bin"])
    upload = store.upload

    def written_meanwhile(path: Path, key: str) -> None:
        path.write_bytes(b"b")
        upload(path, key)
        path.unlink()

    monkeypatch.setattr(store, "upload", written_meanwhile)
    with pytest.raises(ConfigError, match="changed while it was uploaded"):
        packed.upload(store)
    assert list(store.list("data/files")) == []


def test_data_is_uploaded_once_and_lies_in_its_place(plain: Path, tmp_path: Path, store: Store) -> None:
    (plain / "data" / "deep").mkdir(parents=True)
    (plain / "data" / "a.bin").write_bytes(b"a" * 1000)
    (plain / "data" / "deep" / "b.bin").write_bytes(b"b" * 1000)
    packed = pack_folder(plain, data=["data"])
    uploads: list[str] = []
    record = packed.upload(store, uploads.append)
    assert len(uploads) == 2
    pack_folder(plain, data=["data"]).upload(store, uploads.append)
    assert len(uploads) == 2, "the same content is not uploaded again"

    cache = tmp_path / "cache"
    for attempt in ("one", "two"):
        work = tmp_path / attempt
        unpack(store, record.digest, work)
        place_data(store, record.data, work, cache)
        assert (work / "data" / "deep" / "b.bin").read_bytes() == b"b" * 1000
        (work / "data" / "cache.idx").write_text("a script may write beside its data")
        # A script that runs as root may write through the link; the next attempt must not see that.
        cached = next(path for path in cache.iterdir() if path.suffix == "" and path.read_bytes()[:1] == b"b")
        cached.chmod(0o644)
        cached.write_bytes(b"c" * 1000)


def test_a_damaged_package_is_not_unpacked(plain: Path, tmp_path: Path, store: Store) -> None:
    package = pack_folder(plain).package
    store.write(archive_key(package.digest), package.archive[:-4])
    with pytest.raises(DataError, match="damaged"):
        unpack(store, package.digest, tmp_path / "one")
    with pytest.raises(ConfigError, match="no package"):
        unpack(store, "0" * 64, tmp_path / "two")


@pytest.mark.parametrize("changed", [{"path": "../../outside"}, {"path": "/etc/outside"}, {"sha256": "../../outside"}])
def test_a_hostile_data_set_stays_in_its_folder(tmp_path: Path, store: Store, changed: dict[str, str]) -> None:
    write(tmp_path / "project", corpus="text")
    packed = pack_folder(tmp_path / "project", data=["corpus"])
    package = packed.upload(store)
    (listed,) = store.list("data/sets")
    entries = [entry | changed for entry in store.read_json(listed.key)["files"]]
    store.write_json(listed.key, {"files": entries})
    with pytest.raises(RecordDamaged, match="data/sets/"):
        place_data(store, package.data, tmp_path / "here" / "work", tmp_path / "here" / "cache")
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize(
    "damaged", [{"data": {"../outside": "a" * 64}}, {"data": {"in": "../outside"}}, {"digest": "../outside"}]
)
def test_a_package_on_record_names_digests_and_paths_inside(damaged: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CodePackage.model_validate({"digest": "a" * 64} | damaged)


@pytest.mark.parametrize("pattern", ["***", "", "/etc/*"])
def test_what_is_no_pattern_is_refused_in_a_sentence(plain: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"include: .* is no pattern of paths in the folder"):
        select(plain, [pattern])


def test_a_hostile_archive_stays_in_its_folder(tmp_path: Path, store: Store) -> None:
    import hashlib

    for name in ("../outside.py", "/tmp/outside.py"):
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
        digest = hashlib.sha256(plain.getvalue()).hexdigest()
        store.write(archive_key(digest), gzip.compress(plain.getvalue()))
        if name.startswith("/"):
            unpack(store, digest, tmp_path / "absolute")
            assert (tmp_path / "absolute" / "tmp" / "outside.py").exists(), "it lands inside"
        else:
            with pytest.raises(DataError, match="outside"):
                unpack(store, digest, tmp_path / "climbing")
            assert not (tmp_path / "outside.py").exists()


GOOD = [["python", "train.py"], ["python", "-u", "-W", "ignore", "train.py"], ["python3", "-m", "json.tool"]]
GOOD += [
    ["python", "-c", "1"],
    ["bash", "-c", "true"],
    ["python", "./train.py"],
    ["python", "-m", "pkg.run"],
    ["./go.sh"],
]
BAD = [
    (["python", "trian.py"], "no file trian.py .* did you mean train.py"),
    (["python"], "without a file"),
    (["python", "-m", "pkgs.run"], "no module 'pkgs.run'"),
    (["pyhton", "train.py"], "no program 'pyhton'"),
    (["go.sh"], "no program 'go.sh' .* write ./go.sh"),
    (["./gone.sh"], "no file ./gone.sh"),
    (["bash", "gone.sh"], "no file gone.sh"),
    (["python", "/elsewhere/train.py"], "not in "),
]


@pytest.fixture
def runnable(plain: Path) -> Path:
    (plain / "go.sh").write_text("#!/bin/sh\n")
    (plain / "pkg").mkdir()
    (plain / "pkg" / "run.py").write_text("")
    return plain


@pytest.mark.parametrize("command", GOOD, ids=" ".join)
def test_commands_that_can_run(runnable: Path, command: list[str]) -> None:
    check_command(command, select(runnable), installs=False, here=True)


@pytest.mark.parametrize(("command", "message"), BAD, ids=[" ".join(command) for command, _ in BAD])
def test_commands_that_cannot_run_are_refused(runnable: Path, command: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_command(command, select(runnable), installs=False, here=True)


def test_an_argument_may_be_a_long_text(plain: Path) -> None:
    command = ["python", "train.py", "--prompt=" + "数" * 100, "a/" * 2000]
    assert named_but_left_out(command, [], select(plain)) == {}


def test_ignored_files_that_the_command_names_are_noticed(repository: Path) -> None:
    (repository / "out").mkdir()
    (repository / "out" / "old.pt").write_text("x")
    selection = select(repository)
    command = ["python", "train.py", "--data=data", "data/train.bin", "--out", "out", "--lr=1e-3", "."]
    assert named_but_left_out(command, ["out/ckpt.pt"], selection) == {
        "data": ["data/train.bin"],
        "data/train.bin": ["data/train.bin"],
    }
    (repository / ".crucibleignore").write_text("*.bin\n")
    assert named_but_left_out(command, ["out"], select(repository)) == {}, "left behind by choice"
    assert named_but_left_out(command, ["out"], select(repository, data=["data"])) == {}
