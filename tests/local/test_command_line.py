"""The `crucible` command as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from crucible import __version__

COMMAND = Path(sys.executable).with_name("crucible")


def crucible(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False)


def test_version() -> None:
    assert crucible("--version").stdout == f"crucible {__version__}\n"


def test_help_lists_the_commands_without_loading_what_they_need() -> None:
    script = (
        "import sys; from crucible.cli.main import main; sys.argv = ['crucible', '--help']\n"
        "try: main()\n"
        "finally: print('loaded', {'torch', 'prefect', 'pandas', 'boto3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "loaded set()" in done.stdout
    for command in ("up", "down", "env", "doctor", "quickstart"):
        assert f" {command} " in done.stdout


def test_an_expected_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = crucible("up", "--project", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {tmp_path}/prefect.yaml does not exist; name the folder that holds it with --project\n"
    )


def test_wrong_usage_is_exit_code_2() -> None:
    assert crucible("up", "--no-such-option").returncode == 2


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    from crucible.cli import main

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "build_app", interrupted)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 130
