"""What a `modal` pool accepts, and how it says no."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crucible.errors import ConfigError
from crucible.pools.common.reach import obstacle
from crucible.pools.modal.configuration import ModalJobConfiguration
from crucible.pools.modal.worker import ModalWorker


def configuration(**variables: Any) -> ModalJobConfiguration:
    template = ModalWorker.get_default_base_job_template()
    return asyncio.run(ModalJobConfiguration.from_template_and_values(template, variables, client=object()))


def test_the_default_is_a_cpu_for_as_long_as_modal_allows() -> None:
    default = configuration()
    assert (default.gpu, default.timeout_seconds, default.max_restarts) == ([], 86400, 0)


@pytest.mark.parametrize("gpu", ["H100:8, A100-80GB", ["H100:8", "A100-80GB"]])
def test_gpus_are_a_list_or_a_text_with_commas(gpu: Any) -> None:
    assert configuration(gpu=gpu).gpu == ["H100:8", "A100-80GB"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"gpu": ["H100 x 8"]}, "job variable gpu: 'H100 x 8' is no GPU of Modal's"),
        ({"gpu": ["H100:16"]}, "up to 8 of it"),
        ({"timeout_seconds": 90000}, "job variable timeout_seconds: .*86400.*got 90000"),
        ({"tags": {"team": "a b"}}, "job variable tags: team='a b': Modal takes letters"),
        ({"cpu": -1, "memory_mib": 0}, "job variable cpu: .*; job variable memory_mib: "),
    ],
)
def test_a_wrong_value_is_named_with_what_to_write_instead(variables: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configuration(**variables)


def test_a_token_is_not_repeated_when_it_is_wrong() -> None:
    with pytest.raises(ConfigError) as error:
        configuration(credentials={"token_id": "ak-1", "token_secret": {"as": "very-secret"}})
    assert "job variable credentials.token_secret" in str(error.value)
    assert "very-secret" not in str(error.value)


@pytest.mark.parametrize(("region", "factor"), [([], 1.0), ("us", 1.5), (["us", "eu-west"], 1.75)])
def test_staying_in_a_region_costs_more(region: Any, factor: float) -> None:
    assert configuration(region=region).price_multiplier == factor


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "is not set"),
        ("http://127.0.0.1:4200/api", "the worker's own machine"),
        ("http://localhost:4200/api", "the worker's own machine"),
        ("http://10.0.0.7:4200/api", "a private network"),
        ("http://prefect-server:4200/api", "a private network"),
        ("http://prefect.example.org/api", "is not encrypted"),
        ("http://8.8.8.8:4200/api", "is not encrypted"),
        ("https://admin:canary@prefect.example.org/api", "holds a password"),
        ("https://prefect.example.org/api", None),
    ],
)
def test_an_address_that_modal_cannot_reach_is_refused_before_it_costs(url: str, words: str | None) -> None:
    problem = obstacle(url, "https://api.modal.com")
    assert problem is None if words is None else problem is not None and words in problem
    assert "canary" not in str(problem)
    assert obstacle(url, "http://127.0.0.1:21000") is None
