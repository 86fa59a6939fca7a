import logging
import os

from prefect.logging.handlers import PrefectConsoleHandler

from tasks.console import outlive_the_console


def test_a_console_that_nobody_reads_any_more_ends_nothing() -> None:
    reader, writer = os.pipe()
    handler = PrefectConsoleHandler(stream=os.fdopen(writer, "w"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        outlive_the_console()
        root.warning("the worker hears this")
        assert b"the worker hears this" in os.read(reader, 1000)
        os.close(reader)
        for _ in range(2):
            root.warning("and never this")
    finally:
        root.removeHandler(handler)
