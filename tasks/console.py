"""The console of a flow run: it may go away before the run ends, and it shows no password.

The flow run's log lines go to the Prefect server, and through a pipe to the worker's console. When the worker is gone,
the pipe is broken. Rich, which Prefect's console handler prints with, then raises `SystemExit` in the thread that logs
next, which ends that thread, or the whole flow run, without a message.

Prefect prints all parameters of a run that it refuses, and with them the password of a URL, into the worker's log.
"""

from __future__ import annotations

import logging
from functools import partial

from prefect.logging.handlers import PrefectConsoleHandler

from crucible.formatting import without_credentials


def outlive_the_console() -> None:
    """Stop printing to the console once nobody reads it any more, and go on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            # Rich documents this method as the one to override; Prefect makes the console, so it is set on the object.
            handler.console.on_broken_pipe = partial(setattr, handler.console, "quiet", True)  # type: ignore[method-assign]


def hide_url_credentials(record: logging.LogRecord) -> bool:
    """A log filter: users and passwords of URLs are taken out of the message."""
    record.msg, record.args = without_credentials(record.getMessage()), ()
    return True


# Every flow imports this before Prefect looks at its parameters.
logging.getLogger("prefect.flows").addFilter(hide_url_credentials)
