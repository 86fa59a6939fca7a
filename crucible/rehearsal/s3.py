"""moto's S3 server with creation as S3 promises it: of several writers of one object exactly one wins.

moto looks whether an object is there and stores it later: two requests with `If-None-Match: *` that meet in between are
both answered that they created it.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer


def s3_server(host: str, port: int) -> ThreadedMotoServer:
    """A server that is yet to be started; port 0 takes a free one."""
    responses: Any = S3Response
    put_object = responses.put_object
    if not hasattr(put_object, "__wrapped__"):
        one_at_a_time = threading.Lock()

        @functools.wraps(put_object)
        def put(response: Any) -> Any:
            with one_at_a_time:
                return put_object(response)

        responses.put_object = put
    return ThreadedMotoServer(host, port, verbose=False)
