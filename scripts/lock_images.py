"""Lock the packages of the images: `python -m scripts.lock_images`.

Run it after a change of pyproject.toml or constraints.txt. It needs uv (`pip install uv`) and the package index.
Versions on record stay as long as they fit; `--upgrade` takes the newest. It writes three files of exact versions with
the sha256 sums of everything that the index has of them, so that a build installs these very files or fails:

    images/requirements.txt       everything but torch's builds; torch itself without sums, because its CPU builds come
                                  from PyTorch's own index and have sums of their own
    images/requirements-gpu.txt   torch as the package index has it, with the CUDA packages it needs
    images/requirements-uv.txt    the uv that installs them

The base image is locked by its digest, in images/Dockerfile and crucible/pools/docker/bases.py. The newest one:

    docker buildx imagetools inspect python:3.11-slim-bookworm
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]
COMPILE = (
    "uv pip compile --constraint constraints.txt --python-version 3.11.16 --generate-hashes --no-annotate --no-header "
    "--no-emit-index-url --no-emit-find-links --quiet --output-file"
)
UV = "uv==0.13.9\n"
EVERYWHERE, GPU, INSTALLER = (PROJECT / f"images/requirements{kind}.txt" for kind in ("", "-gpu", "-uv"))
ONLY_GPU = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
HEADER = "# Made by `python -m scripts.lock_images`; not to be edited.\n"


def main(options: list[str]) -> None:
    """Write the files. `options` are more of uv's, such as `--upgrade`."""
    before = "".join(path.read_text() for path in (GPU, EVERYWHERE) if path.is_file())
    lock = _compiled(before, "pyproject.toml", "--extra", "aws", "--extra", "docker", "--extra", "gpu", *options)
    everywhere, gpu = split(lock)
    EVERYWHERE.write_text(HEADER + everywhere)
    GPU.write_text(HEADER + gpu)
    INSTALLER.write_text(HEADER + _compiled("", "-", stdin=UV))


def _compiled(before: str, *arguments: str, stdin: str = "") -> str:
    """What uv resolves to; versions in `before`, a lock, are kept if possible."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "lock.txt"
        lock.write_text(before)
        command = [*COMPILE.split(), str(lock), *arguments]
        done = subprocess.run(command, cwd=PROJECT, input=stdin, stdout=subprocess.DEVNULL, text=True, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        return lock.read_text()


def split(lock: str) -> tuple[str, str]:
    """The lines of the lock for every image, and those for the GPU image alone."""
    everywhere, gpu = [], []
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        if not ONLY_GPU.match(entry):
            everywhere.append(entry)
            continue
        gpu.append(entry)
        if entry.startswith("torch=="):
            everywhere.append(entry.split(" ", 1)[0])
    return "\n".join(everywhere) + "\n", "\n".join(gpu) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
