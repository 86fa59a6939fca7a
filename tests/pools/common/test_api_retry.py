"""Which answers of the Prefect API are waited out."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from crucible.pools.common import api_retry
from crucible.pools.common.api_retry import retry_while_away


def refusal(status: int) -> PrefectHTTPStatusError:
    answer = httpx.Response(status, request=httpx.Request("POST", "http://server/api/flow_runs"), json={})
    return PrefectHTTPStatusError.from_httpx_error(httpx.HTTPStatusError("no", request=answer.request, response=answer))


def calls(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> str:
    left = list(errors)

    async def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    async def at_once(seconds: float) -> None:
        return

    monkeypatch.setattr(api_retry.asyncio, "sleep", at_once)
    return asyncio.run(retry_while_away(call))


def test_a_server_that_is_away_or_asked_too_often_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [httpx.ConnectError("refused"), refusal(503), refusal(429), refusal(408)]
    assert calls(monkeypatch, *errors) == "done"


@pytest.mark.parametrize("status", [400, 401, 409, 422])
def test_a_refusal_is_one(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PrefectHTTPStatusError):
        calls(monkeypatch, refusal(status))
