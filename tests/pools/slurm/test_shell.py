"""What of the worker's environment reaches `ssh` and commands on the cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from crucible.pools.slurm.shell import Shell


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `ssh` that prints its own environment, as if the login node had."""
    program = tmp_path / "ssh"
    program.write_text("#!/bin/sh\necho crucible-begins-here\nenv\ncat >/dev/null\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("KRB5CCNAME", "FILE:/tmp/krb5cc_1000_x")
    monkeypatch.setenv("A_PASSWORD", "very-secret")


@pytest.mark.usefixtures("ssh")
def test_ssh_finds_the_ticket_of_a_kerberos_login_and_jobs_do_not() -> None:
    there = asyncio.run(Shell("me@login").run("true")).output
    assert "KRB5CCNAME=FILE:/tmp/krb5cc_1000_x" in there
    here = asyncio.run(Shell().run("env")).output
    assert "KRB5CCNAME" not in here
    assert "very-secret" not in there + here
