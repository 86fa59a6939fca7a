"""The local Prefect server: `python -m crucible.local.server --port 4200`.

What `prefect server start` runs, from the same public parts, with Crucible's own SQLAlchemy dialect for SQLite, with a
limit on requests that leaves WebSockets out, and with `crucible.local.guard` in front. `--no-services` starts one of
several replicas of the API; scheduler and automations then run in `prefect server services start`. With
`CRUCIBLE_ACCESS_LOG=1` it prints every request (`crucible.local.access_log`).
"""

from __future__ import annotations

import argparse
import os

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import (
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_CORS_ALLOWED_ORIGINS,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    PREFECT_UI_API_URL,
    PREFECT_UI_URL,
    temporary_settings,
)
from sqlalchemy.dialects import registry
from sqlalchemy.engine import make_url

from crucible.local import access_log
from crucible.local.access_log import AccessLog
from crucible.local.guard import Guard
from crucible.prefect_compat.request_limit import let_websockets_pass

KEEP_ALIVE_SECONDS = 5


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--no-services", action="store_true", help="only the API and the UI: one of several replicas")
    options = parser.parse_args()
    settings = {
        PREFECT_SERVER_DATABASE_CONNECTION_URL: connection_url(),
        PREFECT_UI_API_URL: "/api",  # of the address that the page came from: no other origin is involved
        PREFECT_SERVER_CORS_ALLOWED_ORIGINS: f"http://127.0.0.1:{options.port}",
    }
    with temporary_settings(settings):
        prefect = create_app(webserver_only=options.no_services, final=True)
        let_websockets_pass(prefect)
        app = Guard(prefect, PREFECT_SERVER_API_AUTH_STRING.value(), PREFECT_UI_URL.value())
        uvicorn.run(
            AccessLog(app) if os.environ.get(access_log.SETTING) else app,
            host=options.host,
            port=options.port,
            log_level="warning",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )


def connection_url() -> str:
    """Prefect's connection URL, with `crucible.local.sqlite_dialect` where it names a SQLite file."""
    url = make_url(PREFECT_SERVER_DATABASE_CONNECTION_URL.value())
    if url.get_backend_name() == "sqlite":
        registry.register("sqlite.crucible", "crucible.local.sqlite_dialect", "Dialect")
        url = url.set(drivername="sqlite+crucible")
    return url.render_as_string(hide_password=False)


if __name__ == "__main__":
    main()
