"""The mend of Prefect's server on SQLite: a statement that failed leaves nothing for the garbage collector to close."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import aiosqlite
import pytest

from crucible.local.server import install


@pytest.fixture(autouse=True)
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiosqlite.Cursor, "execute", aiosqlite.Cursor.execute)  # taken back after the test
    install()
    install()


def test_a_cursor_whose_statement_failed_is_closed_in_its_connections_thread(tmp_path: Path) -> None:
    async def fail_as_the_server_does() -> None:
        """Two transactions that have read; the second to write is refused, because the first one has written."""
        database = tmp_path / "prefect.db"
        async with (
            aiosqlite.connect(database, isolation_level=None) as first,
            aiosqlite.connect(database, isolation_level=None) as second,
        ):
            await first.execute("PRAGMA journal_mode = WAL")
            await first.execute("CREATE TABLE run (id)")
            await second.execute("BEGIN DEFERRED")
            await (await second.execute("SELECT id FROM run")).fetchall()
            await first.execute("INSERT INTO run VALUES (1)")
            cursor = await second.cursor()
            with pytest.raises(sqlite3.OperationalError, match="database is locked"):
                await cursor.execute("INSERT INTO run VALUES (2)")
            with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
                await cursor.fetchone()

    asyncio.run(fail_as_the_server_does())


def test_what_succeeds_is_as_before() -> None:
    async def read() -> int:
        async with aiosqlite.connect(":memory:") as connection:
            cursor = await connection.execute("SELECT ?", (42,))
            row = await cursor.fetchone()
            assert row is not None
            return int(row[0])

    assert asyncio.run(read()) == 42
