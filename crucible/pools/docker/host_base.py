"""A base image from this machine's own files, for places where no registry answers.

It holds a shell with a few tools, this Python, the packages of `images/requirements.txt` as they are installed here,
the libraries all of these are linked to, and this machine's certificates. It is for running and testing here: what is
pushed to a registry is better built from a public base.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING

from crucible.errors import ServiceError

if TYPE_CHECKING:
    from docker import DockerClient

OnLine = Callable[[str], None]
REPOSITORY = "crucible-base"
TOOLS = ("sh", "cat", "chmod", "cp", "env", "id", "ls", "mkdir", "rm", "sleep", "stat", "test", "touch")
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
_STDLIB, _PACKAGES = f"/usr/local/lib/{PYTHON}", f"/opt/venv/lib/{PYTHON}/site-packages"
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "lib2to3"}
_NOT_NEEDED = re.compile(r"torch/(include|share|test)/|.*/tests/")
"""A third of all files: headers for building extensions, and the packages' own tests."""
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_TEXTS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "/opt/venv/pyvenv.cfg": f"home = /usr/local/bin\nversion = {sys.version.split()[0]}\n",
}
_FOLDERS = {"/tmp": 0o1777, "/root": 0o700, "/var/tmp": 0o1777, "/run": 0o755, "/etc": 0o755}
_LINKS = {
    "/usr/local/bin/python3": PYTHON,
    "/usr/local/bin/python": PYTHON,
    "/opt/venv/bin/python": f"/usr/local/bin/{PYTHON}",
    "/opt/venv/bin/python3": "python",
}
_SETTINGS = (
    "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
    "ENV LANG=C.UTF-8",
    f"ENV SSL_CERT_FILE={_CERTIFICATES} PIP_CERT={_CERTIFICATES}",  # pip has certificates of its own otherwise
)


def ensure_host_base(client: DockerClient, requirements: Path | None, on_line: OnLine = lambda line: None) -> str:
    """The reference of the base image, made unless the engine has it; without `requirements` it has no packages.

    With packages it takes some ten seconds and 1.2 GB, without them two seconds and 80 MB.

    Raises `ServiceError` on a system whose files this does not know, or where a package is missing.
    """
    files = dict(_files(requirements, on_line))
    reference = f"{REPOSITORY}:{_digest(files)}"
    if not client.images.list(name=reference):
        _import(files, reference)
    return reference


def _files(requirements: Path | None, on_line: OnLine) -> Iterator[tuple[str, Path]]:
    """Path in the image → file here."""
    if sys.platform != "linux" or shutil.which("ldd") is None:
        raise ServiceError(
            "no registry answers, and only on Linux can a base image be made from this machine's own files; name one "
            "that this engine has: crucible images build --base IMAGE"
        )
    programs = {tool: path for tool in TOOLS if (path := shutil.which(tool))}
    interpreter = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    stdlib = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))
    packages = dict(_packages(requirements, on_line)) if requirements else {}
    torch = Path(str(metadata.distribution("torch").locate_file("torch/lib"))).glob("*.so*")  # for the C++ runtime
    linked = [*map(Path, programs.values()), interpreter, *stdlib.glob("lib-dynload/*.so"), *torch]
    yield from _libraries(linked)
    yield from ((f"/bin/{tool}", Path(path).resolve()) for tool, path in programs.items())
    yield f"/usr/local/bin/{PYTHON}", interpreter
    for folder, folders, names in os.walk(stdlib):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith("config-")]
        for name in names:
            file = Path(folder, name)
            if not name.endswith((".opt-1.pyc", ".opt-2.pyc")):
                yield f"{_STDLIB}/{file.relative_to(stdlib)}", file
    yield from packages.items()
    yield str(_CERTIFICATES), _CERTIFICATES


def _libraries(programs: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """The shared libraries the programs are linked to, under the names by which the loader looks for them."""
    done = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False)
    for name in sorted(set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.MULTILINE))):
        path = Path(name)
        if "site-packages" in path.parts:
            continue
        # The loader's own path is fixed in every program; all others are found in /usr/lib by their name.
        yield (name if path.name.startswith("ld-") else f"/usr/lib/{path.name}"), path.resolve()


def _packages(requirements: Path, on_line: OnLine) -> Iterator[tuple[str, Path]]:
    """The files of every locked package, as installed here. Raises `ServiceError` when one is missing.

    Another version than the locked one is reported and used: the image is for this machine, and what must be equal is
    pinned in constraints.txt. Were it refused, a release of any package on the index would stop every build here.
    """
    for name, version in locked(requirements):
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            package = None
        if package is None:
            raise ServiceError(
                f"no registry answers, and {name} {version} is not installed: pip install -c constraints.txt "
                "'.[aws,docker]', or name a base image with --base"
            )
        if package.version.partition("+")[0] != version:
            on_line(f"{name} is taken as it is installed here, {package.version}; locked is {version}")
        site_packages = package.locate_file("")
        for file in package.files or ():
            if _NOT_NEEDED.match(name := str(file)):
                continue
            path = Path(f"{site_packages}/{name}")
            if name.startswith("../../../bin/"):
                yield f"/opt/venv/bin/{path.name}", path
            elif not name.startswith("..") and path.is_file():
                yield f"{_PACKAGES}/{name}", path


def locked(requirements: Path) -> list[tuple[str, str]]:
    """Name and version of every package of the lock."""
    return re.findall(r"^([\w.-]+)==(\S+)", requirements.read_text(), re.MULTILINE)


def _digest(files: dict[str, Path]) -> str:
    """Changes when a file does; by size and time of change, because reading a gigabyte takes longer than using it."""
    digest = hashlib.sha256(repr((_TEXTS, _FOLDERS, _LINKS, _SETTINGS)).encode())
    for name, path in sorted(files.items()):
        status = path.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:12]


def _import(files: dict[str, Path], reference: str) -> None:
    changes = [part for setting in _SETTINGS for part in ("--change", setting)]
    command = ["docker", "import", *changes, "-", reference]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=False
    ) as importing:
        assert importing.stdin is not None
        assert importing.stdout is not None
        try:
            with importing.stdin as stream:
                _write_tar(files, stream)
        except BrokenPipeError:
            pass  # the engine ended it, and says why
        said = importing.stdout.read().decode(errors="replace")
    if importing.returncode:
        raise ServiceError(f"docker import failed: {said.strip()}")


def _write_tar(files: dict[str, Path], stream: IO[bytes]) -> None:
    packaged = any(name.startswith("/opt/venv/") for name in files)
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, mode in _FOLDERS.items():
            entry = _entry(name, mode)
            entry.type = tarfile.DIRTYPE
            tar.addfile(entry)
        for name, target in _LINKS.items():
            if name.startswith("/opt/venv/") and not packaged:
                continue
            entry = _entry(name, 0o777)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
        for name, text in _TEXTS.items():
            if name.startswith("/opt/venv/") and not packaged:
                continue
            _add_bytes(tar, name, text.encode(), 0o644)
        for name, path in sorted(files.items()):
            if name.startswith("/opt/venv/bin/"):
                script = re.sub(rb"^#!.*python.*\n", b"#!/opt/venv/bin/python\n", path.read_bytes(), count=1)
                _add_bytes(tar, name, script, 0o755)
                continue
            entry = _entry(name, 0o755 if os.access(path, os.X_OK) else 0o644)
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                # Bytecode counts only for a source with the time it was compiled from; else every start compiles anew.
                entry.size, entry.mtime = status.st_size, int(status.st_mtime)
                tar.addfile(entry, file)


def _entry(name: str, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name.lstrip("/"))
    entry.mode = mode
    return entry


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = _entry(name, mode)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
