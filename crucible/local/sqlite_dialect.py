"""SQLAlchemy dialect for the SQLite database of the local Prefect server: `sqlite+crucible:///path`.

`sqlite+aiosqlite`, which Prefect uses by default, has two faults when several clients write at once:

1. **Refused writes.** Prefect reads before it writes in one deferred transaction. If another connection has written in
   between, SQLite refuses the write at once, whatever the timeout, and the client gets a 503 ("database is locked").
   This dialect begins such a transaction with the right to write, so that it waits for its turn instead.
   Upstream: https://github.com/PrefectHQ/prefect/issues/18934
2. **Standstill.** A statement that fails leaves its cursor open. The garbage collector closes it later, in any thread,
   and closing takes the lock of the connection. In the event loop's thread that stops the whole server for as long as
   the connection waits for the database: up to a minute. Here a failed cursor closes itself in its connection's thread.
   Upstream: none found.

Nothing of Prefect, SQLAlchemy or aiosqlite is replaced: the dialect is found through SQLAlchemy's entry point
`sqlalchemy.dialects`, and only a server whose connection URL names it uses it.
"""

from __future__ import annotations

import sqlite3
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.engine.url import URL


@dataclass
class _Transaction:
    connection: object
    is_open: bool = True


_current: ContextVar[_Transaction | None] = ContextVar("crucible_sqlite_transaction", default=None)
"""The transaction that this task, or the task that started it, has open."""


class Dialect(SQLiteDialect_aiosqlite):
    """`sqlite+aiosqlite` whose writers wait for each other."""

    supports_statement_cache = True

    def create_connect_args(self, url: URL) -> Any:
        positional, named = super().create_connect_args(url)
        return positional, {**named, "factory": _Connection}

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        outer = _current.get()
        if statement not in ("BEGIN DEFERRED", "BEGIN IMMEDIATE") or (outer and outer.is_open):
            # A transaction within another one would wait for the lock that the outer one holds: it begins as Prefect
            # wants it to.
            super().do_execute(cursor, statement, parameters, context)  # type: ignore[no-untyped-call]
            return
        super().do_execute(cursor, "BEGIN IMMEDIATE", parameters, context)  # type: ignore[no-untyped-call]
        _current.set(_Transaction(context.root_connection.connection.dbapi_connection))

    def do_commit(self, dbapi_connection: Any) -> None:
        super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]
        _end(dbapi_connection)

    def do_rollback(self, dbapi_connection: Any) -> None:
        _end(dbapi_connection)
        super().do_rollback(dbapi_connection)  # type: ignore[no-untyped-call]

    def do_terminate(self, dbapi_connection: Any) -> None:
        _end(dbapi_connection)
        super().do_terminate(dbapi_connection)


def _end(connection: Any) -> None:
    """Note the end of the transaction on `connection`, which the pool may have wrapped."""
    current = _current.get()
    if current is not None and current.connection is getattr(connection, "dbapi_connection", connection):
        current.is_open = False


class _Cursor(sqlite3.Cursor):
    def execute(self, *args: Any) -> sqlite3.Cursor:  # type: ignore[override]
        try:
            return super().execute(*args)
        except BaseException:
            self.close()
            raise


class _Connection(sqlite3.Connection):
    """Closes its cursors in its own thread: after a failed statement, and what a cancelled request left behind."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        cursor = super().cursor(_Cursor)
        self._cursors.add(cursor)
        return cursor

    def rollback(self) -> None:
        for cursor in list(self._cursors):
            cursor.close()
        super().rollback()
