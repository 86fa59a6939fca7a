"""Where text comes from: the standard library's sources, local files, https, s3. A source makes its text local.

Documents come in a fixed pseudo-random order, by the sha256 of their names, so that the validation split, the end of
the text, is a fair sample of them all.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from crucible.datasets.config import SHAKESPEARE_SHA256, SHAKESPEARE_URL, DatasetConfig
from crucible.datasets.disk import require_free_space, writing_to
from crucible.datasets.download import fetch_url
from crucible.datasets.progress import Progress, ProgressCallback
from crucible.datasets.text import Document, find_cut, read_blocks
from crucible.errors import DataError
from crucible.formatting import url_label
from crucible.home import local_path

STDLIB_BYTES = 4_000_000
"""How much of the standard library the default source uses: enough to learn from, read within a second."""

_S3_BATCH = 64
"""Objects asked for at once: small ones would otherwise cost a round trip each."""


class Source(ABC):
    """Text somewhere. `description` goes into the dataset's meta.json."""

    description: dict[str, Any]
    content_sha256: str | None = None
    """The digest of the content, if it is known without reading it."""

    @abstractmethod
    def documents(self, work: Path, progress: ProgressCallback) -> list[Document]:
        """Make the text local, in `work` if it is not yet. Raises DataError."""

    def request(self) -> dict[str, Any] | None:
        """What identifies the content without reading it, or None."""
        return None


class LocalSource(Source):
    """A file or a folder on this machine."""

    def __init__(self, path: Path, config: DatasetConfig) -> None:
        self.path, self._config = path, config
        self.description = {"kind": "local", "path": str(path)}

    def documents(self, work: Path, progress: ProgressCallback) -> list[Document]:
        if self.path.is_file():
            return [Document.at(self.path, self.path.name)]
        if not self.path.is_dir():
            raise DataError(
                f"source {str(self.path)!r} does not exist on this machine; give the path of a file or folder, or one "
                f"of python-stdlib, shakespeare, s3://…, https://…"
            )
        names = (file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file())
        return [Document.at(self.path / name, name) for name in _chosen(names, self._config, str(self.path))]


class PythonStdlib(Source):
    """The top-level modules of this Python's standard library that are pure ASCII, so that the character vocabulary
    stays below 100. Equal for equal Python versions, whatever the operating system's build adds."""

    def __init__(self) -> None:
        self.folder = Path(sysconfig.get_path("stdlib"))
        self.description = {"kind": "python-stdlib", "python": platform.python_version()}

    def documents(self, work: Path, progress: ProgressCallback) -> list[Document]:
        files = [file for file in self.folder.glob("*.py") if not file.name.startswith("_sysconfigdata")]
        found = [Document.at(file, file.name) for file in files if file.read_bytes().isascii()]
        if not found:
            raise DataError(
                f"this Python keeps no sources of its standard library in {self.folder}; give the path of a text as "
                f"source"
            )
        return _shuffled(found)


class HttpsSource(Source):
    """One file from the web, kept under `$CRUCIBLE_HOME/cache/downloads` by its sha256."""

    def __init__(self, url: str, sha256: str) -> None:
        self.url, self.content_sha256 = url, sha256
        self.description = {"kind": "https", "url": url_label(url), "sha256": sha256}

    def documents(self, work: Path, progress: ProgressCallback) -> list[Document]:
        assert self.content_sha256 is not None
        name = PurePosixPath(urlsplit(self.url).path).name or "download"
        return [Document.at(fetch_url(self.url, self.content_sha256, progress), name)]


class S3Source(Source):
    """The objects below a prefix of a bucket; credentials and endpoint come from the environment."""

    def __init__(self, uri: str, config: DatasetConfig) -> None:
        from crucible.datasets.s3 import S3Prefix

        self._prefix = S3Prefix(uri)
        self._names = _chosen(self._prefix.objects, config, uri)
        self.description = {"kind": "s3", "uri": uri, "objects": len(self._names)}

    def request(self) -> dict[str, Any]:
        """The ETags of the objects: they change whenever the content does."""
        objects = self._prefix.objects
        return {"s3": [[name, objects[name].etag, objects[name].size] for name in self._names]}

    def documents(self, work: Path, progress: ProgressCallback) -> list[Document]:
        sizes = {name: self._prefix.objects[name].size for name in self._names}
        total = sum(sizes.values())
        require_free_space(work, total, f"downloading {self.description['uri']}")
        folder = work / "source"
        with writing_to(folder):
            folder.mkdir(exist_ok=True)  # the step may be a second try
        paths = [folder / f"{number:08d}" for number in range(len(self._names))]
        done = 0
        for start in range(0, len(paths), _S3_BATCH):
            batch = slice(start, start + _S3_BATCH)
            self._prefix.download(self._names[batch], paths[batch])
            done += sum(sizes[name] for name in self._names[batch])
            progress(Progress("download", done, total))
        return [Document.at(path, name) for path, name in zip(paths, self._names, strict=True)]


def open_source(config: DatasetConfig) -> Source:
    """The source that the config names. Raises DataError when it is not there."""
    scheme = urlsplit(config.source).scheme
    if config.source == "python-stdlib":
        return PythonStdlib()
    if config.source == "shakespeare":
        return HttpsSource(SHAKESPEARE_URL, config.sha256 or SHAKESPEARE_SHA256)
    if scheme == "https":
        assert config.sha256 is not None  # the config's own check
        return HttpsSource(config.source, config.sha256)
    if scheme == "s3":
        return S3Source(config.source, config)
    local = url2pathname(unquote(urlsplit(config.source).path)) if scheme == "file" else config.source
    return LocalSource(local_path(local, "source"), config)


def limited(documents: list[Document], max_bytes: int | None) -> list[Document]:
    """The first documents up to about `max_bytes` in all; the last one is shortened to a line end after the limit."""
    if max_bytes is None:
        return documents
    kept: list[Document] = []
    for document in documents:
        if max_bytes <= 0:
            break
        length = document.length
        if length > max_bytes:
            length = find_cut(document, max_bytes, length)
        kept.append(replace(document, length=length))
        max_bytes -= length
    return kept


def content_digest(documents: list[Document], hashes: list[str]) -> str:
    """One sha256 for the whole source: a single file's own, whatever its name; else over all names and hashes."""
    if len(documents) == 1:
        return hashes[0]
    lines = (f"{sha256} {document.name}\n" for document, sha256 in zip(documents, hashes, strict=True))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def hash_documents(documents: list[Document], progress: ProgressCallback) -> list[str]:
    """The sha256 of each whole file."""
    total, done, hashes = sum(document.length for document in documents), 0, []
    for document in documents:
        digest = hashlib.sha256()
        for block in read_blocks(document, 0, document.length, 8 << 20):
            digest.update(block)
            done += len(block)
            progress(Progress("hash", done, total))
        hashes.append(digest.hexdigest())
    return hashes


def _chosen(names: Iterable[str], config: DatasetConfig, where: str) -> list[str]:
    """The names that the patterns choose, shuffled. Raises DataError if there are none."""
    every = sorted(names)
    chosen = [
        name
        for name in every
        if not any(part.startswith(".") for part in PurePosixPath(name).parts)
        and any(_matches(name, pattern) for pattern in config.include)
        and not any(_matches(name, pattern) for pattern in config.exclude)
    ]
    if not chosen:
        raise DataError(
            f"source {where} holds no file to use: {len(every)} files in all, none left by "
            f"include = {list(config.include)} and exclude = {list(config.exclude)} (hidden files are never used)"
        )
    return sorted(chosen, key=_shuffle_key)


def _matches(name: str, pattern: str) -> bool:
    """The name itself, or a shell pattern over the whole relative path: `*` crosses folders, a leading `**/` may match
    none."""
    return name == pattern or fnmatchcase(name, pattern) or fnmatchcase(name, pattern.removeprefix("**/"))


def _shuffled(documents: list[Document]) -> list[Document]:
    return sorted(documents, key=lambda document: _shuffle_key(document.name))


def _shuffle_key(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
