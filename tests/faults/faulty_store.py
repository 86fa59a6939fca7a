"""A store around a real one, in which a process can die or the network fail at any single operation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from crucible.store import ObjectInfo, Store

Hook = Callable[[str, str], None]
"""Called with the operation's name and key; what it raises takes the operation's place."""


class FaultyStore(Store):
    """Calls `before` and `after` around every operation of `inner`; parts of it (`child`) share both."""

    def __init__(self, inner: Store, before: Hook, after: Hook | None = None) -> None:
        self.inner, self.uri = inner, inner.uri
        self._before, self._after = before, after or (lambda operation, key: None)

    def child(self, prefix: str) -> FaultyStore:
        return FaultyStore(self.inner.child(prefix), self._before, self._after)

    def read(self, key: str) -> bytes:
        self._before("read", key)
        data = self.inner.read(key)
        self._after("read", key)
        return data

    def write(self, key: str, data: bytes) -> None:
        self._before("write", key)
        self.inner.write(key, data)
        self._after("write", key)

    def create(self, key: str, data: bytes) -> None:
        self._before("create", key)
        self.inner.create(key, data)
        self._after("create", key)

    def size(self, key: str) -> int:
        self._before("size", key)
        size = self.inner.size(key)
        self._after("size", key)
        return size

    def folders(self, prefix: str = "") -> list[str]:
        self._before("folders", prefix)
        found = self.inner.folders(prefix)
        self._after("folders", prefix)
        return found

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        self._before("list", prefix)
        found = self.inner.list(prefix)
        self._after("list", prefix)
        return found

    def delete(self, key: str) -> None:
        self._before("delete", key)
        self.inner.delete(key)
        self._after("delete", key)

    def upload(self, path: Path, key: str) -> None:
        self._before("upload", key)
        self.inner.upload(path, key)
        self._after("upload", key)

    def download(self, key: str, path: Path) -> None:
        self._before("download", key)
        self.inner.download(key, path)
        self._after("download", key)


class Died(BaseException):
    """The process is gone; no handler of the code under test may mistake this for an error it can treat."""


class DiesAfter:
    """A hook that lets `operations` through and then is dead: whatever is still tried does not happen."""

    def __init__(self, operations: int) -> None:
        self.left = operations
        self.died = False
        self._lock = threading.Lock()

    def __call__(self, operation: str, key: str) -> None:
        with self._lock:
            self.left -= 1
            if self.left < 0:
                self.died = True
                raise Died(f"before {operation} {key}")
