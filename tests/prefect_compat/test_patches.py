"""Patches are applied only where their self-check passes, and those of this version pass with what is installed."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from crucible import prefect_compat
from crucible.doctor import checks
from crucible.prefect_compat import private_hooks
from crucible.prefect_compat.patches import NONE_FOUND, Patch, apply_all, check


def a_patch(applied: list[str], name: str = "example") -> Patch:
    return Patch(
        name=name,
        fault="it goes wrong",
        issue=NONE_FOUND,
        versions="example 1.0",
        delete_when="example 2.0",
        self_check=lambda: None,
        apply=lambda: applied.append(name),
    )


def test_a_patch_that_fits_is_applied() -> None:
    applied: list[str] = []
    assert [status.on for status in apply_all([a_patch(applied, "one"), a_patch(applied, "two")])] == [True, True]
    assert applied == ["one", "two"]


def differs() -> str | None:
    return "example has no door"


def breaks() -> str | None:
    raise AttributeError("door")


@pytest.mark.parametrize("self_check", [differs, breaks])
def test_a_patch_that_does_not_fit_stays_off_with_a_warning(
    self_check: object, caplog: pytest.LogCaptureFixture
) -> None:
    applied: list[str] = []
    unfit = replace(a_patch(applied), self_check=self_check)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        assert [status.on for status in apply_all([unfit])] == [False]
    assert not applied
    assert "Patch example stays OFF" in caplog.text
    assert "door" in caplog.text


def test_every_patch_fits_the_installed_versions() -> None:
    assert {status.patch.name: status.difference for status in prefect_compat.statuses() if not status.on} == {}


def test_the_private_hooks_of_the_installed_versions_are_as_expected() -> None:
    found = private_hooks.statuses()
    assert {hook.package for hook, _ in found} == {"prefect", "prefect-docker", "prefect-aws", "modal"}
    assert {hook.what: difference for hook, difference in found if difference} == {}


def test_doctor_names_a_private_hook_that_changed_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect.workers.base.BaseJobConfiguration._base_flow_run_command", lambda self: "prefect")
    row = checks.patches()
    assert not row.ready
    assert "takes self, checked with prefect 3.8.8" in row.found
    assert row.fix.endswith(" prefect")


def test_every_patch_says_what_it_is_for() -> None:
    for patch in prefect_compat.all_patches():
        assert patch.issue == NONE_FOUND or patch.issue.startswith("https://github.com/"), patch.name
        assert all([patch.fault, patch.versions, patch.delete_when]), patch.name


def test_doctor_lists_the_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    row = checks.patches()
    assert row.ready
    assert "process-start on, checked with prefect 3.8.8" in row.found
    assert "https://github.com/PrefectHQ/prefect/issues/" in row.found
    monkeypatch.setattr(prefect_compat, "statuses", lambda: [check(replace(a_patch([]), self_check=differs))])
    row = checks.patches()
    assert not row.ready
    assert "example OFF (example has no door)" in row.found
