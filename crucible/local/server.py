"""Prefect's server on SQLite without its standstills: `python -m crucible.local.server` is `prefect` with one mend.

A statement that fails, because another connection has just written, leaves its cursor open (SQLAlchemy 2.0 on aiosqlite
0.22). Python's garbage collector closes it later, in whatever thread it runs in, and closing takes the lock of its
connection. If that is the event loop's thread while the connection's own one waits for the database, for which it has a
minute (Prefect's busy_timeout), the loop stands still for as long, and with it whoever was to give the database free.
Here such a cursor is closed at once, in the thread of its connection.
"""

from __future__ import annotations

import sys
from typing import Any


def install() -> None:
    """Mend aiosqlite in this process; again does nothing. Raises RuntimeError if it is not the aiosqlite known here."""
    import aiosqlite

    cursor_type: Any = aiosqlite.Cursor
    execute = cursor_type.execute
    if getattr(execute, "closes_after_failure", False):
        return
    if not hasattr(aiosqlite.Connection, "_execute") or "_tx" not in aiosqlite.Connection.__init__.__code__.co_names:
        raise RuntimeError("aiosqlite has changed: check crucible/local/server.py")

    async def execute_or_close(cursor: Any, sql: str, parameters: Any = None) -> Any:
        try:
            return await execute(cursor, sql, parameters)
        except BaseException:  # a cancelled request leaves it open as well
            cursor._conn._tx.put_nowait((None, cursor._cursor.close))
            raise

    execute_or_close.closes_after_failure = True  # type: ignore[attr-defined]
    cursor_type.execute = execute_or_close


def main() -> None:
    """`prefect`, with the mend in place."""
    from prefect.cli import app

    install()
    sys.argv[0] = "prefect"
    app()


if __name__ == "__main__":
    main()
