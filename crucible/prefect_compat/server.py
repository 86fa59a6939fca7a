"""Prefect's server on SQLite with concurrent writers: `python -m crucible.prefect_compat.server` is `prefect`, patched.

**No standstill.** A statement that fails leaves its cursor open (SQLAlchemy 2.0 on aiosqlite 0.22). Python's garbage
collector closes it later, in whatever thread it runs in, and closing takes the lock of its connection. If that is the
event loop's thread while the connection's own one waits for the database, for which it has a minute (Prefect's
busy_timeout), the loop stands still for as long, and with it whoever was to give the database free. Here such a cursor
is closed at once, in the thread of its connection.

**No refusal.** Prefect reads before it writes in one deferred transaction. If anybody has written in between, SQLite
refuses the write at once, whatever the timeout, and the client gets a 503: with a few writers many new runs and
deployments, some after all their retries. Here a transaction asks for the right to write when it begins, and waits.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


def install() -> None:
    """Make both mends in this process; again does nothing. Raises RuntimeError if aiosqlite is not as known here."""
    _close_after_failure()
    _begin_immediately()


def _close_after_failure() -> None:
    import aiosqlite

    cursor_type: Any = aiosqlite.Cursor
    execute = cursor_type.execute
    if getattr(execute, "closes_after_failure", False):
        return
    if not hasattr(aiosqlite.Connection, "_execute") or "_tx" not in aiosqlite.Connection.__init__.__code__.co_names:
        raise RuntimeError("aiosqlite has changed: check crucible/prefect_compat/server.py")

    async def execute_or_close(cursor: Any, sql: str, parameters: Any = None) -> Any:
        try:
            return await execute(cursor, sql, parameters)
        except BaseException:  # a cancelled request leaves it open as well
            cursor._conn._tx.put_nowait((None, cursor._cursor.close))
            raise

    execute_or_close.closes_after_failure = True  # type: ignore[attr-defined]
    cursor_type.execute = execute_or_close


def _begin_immediately() -> None:
    from prefect.server.database import configurations

    sqlite: Any = configurations.AioSqliteConfiguration
    mode = configurations.SQLITE_BEGIN_MODE
    begin = sqlite.begin_transaction
    if getattr(begin, "begins_immediately", False):
        return

    @asynccontextmanager
    async def begin_transaction(config: Any, session: Any, with_for_update: bool = False) -> AsyncIterator[Any]:
        # One within another would wait for the right that the outer one has; it begins as Prefect says.
        outermost = mode.get() is None
        async with begin(config, session, with_for_update or outermost) as transaction:
            await session.connection()  # begins now: what is opened meanwhile must not ask for the right as well
            within = mode.set("DEFERRED")
            try:
                yield transaction
            finally:
                mode.reset(within)

    begin_transaction.begins_immediately = True  # type: ignore[attr-defined]
    sqlite.begin_transaction = begin_transaction


def main() -> None:
    """`prefect`, with the mends in place."""
    from prefect.cli import app

    install()
    sys.argv[0] = "prefect"
    app()


if __name__ == "__main__":
    main()
