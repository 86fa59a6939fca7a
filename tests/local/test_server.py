"""Prefect's server on SQLite, mended: a failed statement leaves no cursor open, and who begins may write."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import aiosqlite
import pytest
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration

from crucible.prefect_compat.server import install


@pytest.fixture(autouse=True)
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiosqlite.Cursor, "execute", aiosqlite.Cursor.execute)  # taken back after the test
    monkeypatch.setattr(AioSqliteConfiguration, "begin_transaction", AioSqliteConfiguration.begin_transaction)
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


def test_a_transaction_that_reads_first_may_write_whatever_others_try_meanwhile(tmp_path: Path) -> None:
    async def read_then_write(database: Path) -> None:
        config = AioSqliteConfiguration(connection_url=f"sqlite+aiosqlite:///{database}")
        engine = await config.engine()
        try:
            async with await config.session(engine) as session, config.begin_transaction(session):
                await session.execute(sa.text("SELECT id FROM run"))
                with (
                    contextlib.closing(sqlite3.connect(database, timeout=0)) as other,
                    pytest.raises(sqlite3.OperationalError, match="database is locked"),
                ):
                    other.execute("INSERT INTO run VALUES (1)")
                # What the server opens within a transaction must not wait for the end of it.
                async with await config.session(engine) as within, config.begin_transaction(within):
                    await within.execute(sa.text("SELECT id FROM run"))
                async with await config.session(engine) as within:
                    await within.execute(sa.text("SELECT id FROM run"))
                await session.execute(sa.text("INSERT INTO run VALUES (2)"))
        finally:
            await engine.dispose()

    database = tmp_path / "prefect.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE run (id)")
        asyncio.run(read_then_write(database))
        assert connection.execute("SELECT id FROM run").fetchall() == [(2,)]
