"""A flow run outlives the worker that started it.

What it logs goes to the Prefect server and, for people who watch the worker, through a pipe to the worker's console.
When the worker is gone, that pipe is broken, and rich, which Prefect's console handler prints with, ends whoever
prints next by `SystemExit`: one thread without a word, or the whole flow run.
"""

from __future__ import annotations

import logging
from functools import partial

from prefect.logging.handlers import PrefectConsoleHandler


def outlive_the_console() -> None:
    """Go on without it once nobody reads there any more."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            # rich asks for a subclass, but it is Prefect that makes the console.
            handler.console.on_broken_pipe = partial(setattr, handler.console, "quiet", True)  # type: ignore[method-assign]
