"""The SQLite dialect of the local server: writers wait for each other, and a failed statement leaves nothing open."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import registry

from crucible.local.sqlite_dialect import _Connection

if TYPE_CHECKING:  # all of Prefect's server, in each process that collects this file
    from prefect.server.database.configurations import AioSqliteConfiguration


@asynccontextmanager
async def server_database(file: Path) -> AsyncIterator[tuple[AioSqliteConfiguration, Any]]:
    """Prefect's own database code on the dialect, as the server uses it, and a table `run`."""
    from prefect.server.database.configurations import AioSqliteConfiguration

    registry.register("sqlite.crucible", "crucible.local.sqlite_dialect", "Dialect")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE run (id)")
    config = AioSqliteConfiguration(connection_url=f"sqlite+crucible:///{file}")
    engine = await config.engine()
    try:
        yield config, engine
    finally:
        await engine.dispose()


def rows(file: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM run ORDER BY id")]


def test_a_transaction_that_reads_first_may_write_whatever_others_try_meanwhile(tmp_path: Path) -> None:
    async def read_then_write(file: Path) -> None:
        async with (
            server_database(file) as (config, engine),
            await config.session(engine) as session,
            config.begin_transaction(session),
        ):
            await session.execute(sa.text("SELECT id FROM run"))
            with (
                contextlib.closing(sqlite3.connect(file, timeout=0)) as other,
                pytest.raises(sqlite3.OperationalError, match="database is locked"),
            ):
                other.execute("INSERT INTO run VALUES (1)")
            # What the server opens within a transaction must not wait for the end of it.
            async with await config.session(engine) as within, config.begin_transaction(within):
                await within.execute(sa.text("SELECT id FROM run"))
            async with await config.session(engine) as within:
                await within.execute(sa.text("SELECT id FROM run"))
            await session.execute(sa.text("INSERT INTO run VALUES (2)"))

    file = tmp_path / "prefect.db"
    asyncio.run(read_then_write(file))
    assert rows(file) == [2]


def test_writers_that_read_first_all_succeed(tmp_path: Path) -> None:
    """On Prefect's own dialect most of these are refused: "database is locked"."""

    async def write(config: AioSqliteConfiguration, engine: Any, number: int) -> None:
        for _ in range(2):  # the second transaction of a task waits like the first
            async with await config.session(engine) as session, config.begin_transaction(session):
                await session.execute(sa.text("SELECT id FROM run"))
                await asyncio.sleep(0)
                await session.execute(sa.text("INSERT INTO run VALUES (:id)"), {"id": number})

    async def write_all(file: Path) -> None:
        async with server_database(file) as (config, engine):
            await asyncio.gather(*(write(config, engine, number) for number in range(8)))

    file = tmp_path / "prefect.db"
    asyncio.run(write_all(file))
    assert rows(file) == sorted([*range(8)] * 2)


def test_a_task_started_within_a_transaction_does_not_wait_for_it(tmp_path: Path) -> None:
    async def read_beside(file: Path) -> list[Any]:
        async with (
            server_database(file) as (config, engine),
            await config.session(engine) as session,
            config.begin_transaction(session),
        ):
            await session.execute(sa.text("INSERT INTO run VALUES (1)"))

            async def read() -> list[Any]:
                async with await config.session(engine) as within, config.begin_transaction(within):
                    return list((await within.execute(sa.text("SELECT id FROM run"))).all())

            return await asyncio.create_task(read())

    assert asyncio.run(read_beside(tmp_path / "prefect.db")) == []


def test_a_failed_statement_leaves_no_cursor_open(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db", factory=_Connection)) as connection:
        cursor = connection.cursor()
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            cursor.execute("SELECT id FROM nowhere")
        with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
            cursor.fetchone()


def test_the_end_of_a_transaction_closes_what_a_cancelled_request_left(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db", factory=_Connection)) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT 1 UNION SELECT 2")
        connection.rollback()
        with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
            cursor.fetchone()
