"""Which database the local Prefect server uses.

The default is SQLite in `$CRUCIBLE_HOME/prefect/prefect.db`. To use another one, for example your own PostgreSQL, set
`PREFECT_SERVER_DATABASE_CONNECTION_URL` in the environment of `crucible up` or in the Prefect profile `crucible`.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from crucible.errors import ConfigError
from crucible.local import profile

SETTING = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
SECRET_SETTINGS = (
    SETTING,
    "PREFECT_API_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_DATABASE_PASSWORD",
    "PREFECT_API_DATABASE_PASSWORD",
)
"""Settings that hold the database's password: for the server only, never for workers and flow runs."""


def configured_url() -> str | None:
    """The connection URL that the user chose; None for the default. Raises `ConfigError` if it is none."""
    url = os.environ.get(SETTING) or profile.setting(SETTING)
    if not url:
        return None
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres", "sqlite"):
        raise ConfigError(
            f"{SETTING}: expected postgresql+asyncpg://USER:PASSWORD@HOST:PORT/DATABASE or sqlite+aiosqlite:///FILE"
        )
    # What other programs call the same database; Prefect needs the asynchronous driver.
    return f"postgresql+asyncpg://{rest}" if scheme.startswith("postgres") else url


def describe(url: str) -> str:
    """The database without user and password: "PostgreSQL database prefect at db.example.com:5432"."""
    if url.startswith("sqlite"):
        return f"SQLite file {url.partition(':///')[2]}"
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2] or "a local socket"
    return f"PostgreSQL database {parts.path.removeprefix('/')} at {address}"
