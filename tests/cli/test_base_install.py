"""What works after `make quickstart`, which installs none of the optional packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

WITHOUT_EXTRAS = """
import contextlib, io, json, sys
from crucible.extras import _EXTRA_OF
sys.modules.update(dict.fromkeys(_EXTRA_OF))  # importing any of them is a ModuleNotFoundError
from crucible.cli.main import main
found = {}
for line in json.load(sys.stdin):
    out, code = io.StringIO(), 0
    sys.argv = ["crucible", *line.split()]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            out.write(repr(error))
            code = -1
    found[line] = [code, out.getvalue()]
print(json.dumps(found))
"""
WORKS = ("down", "jobs ls", "sweeps ls", "cost", "estimate --preset gpt2-124m --tokens 1M", "doctor --json")
POOL = "modal pool --name gpu"
NEEDS = {
    "drill --pool ec2-spot": "rehearsal",
    "drill --pool modal": "rehearsal",
    "drill --pool docker-gpu": "rehearsal",
    "drill --s3": "rehearsal",
    "rehearse aws": "rehearsal",
    "jobs ls --store s3://bucket/prefix": "aws",
    "aws status": "aws",
    "docker pool": "docker",
}


def test_the_base_installation_works_and_names_the_extra_that_a_command_needs(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS],
        input=json.dumps([*WORKS, *NEEDS, POOL]),
        capture_output=True,
        text=True,
        env={**os.environ, "CRUCIBLE_HOME": str(tmp_path / "home"), "PREFECT_HOME": str(tmp_path / "prefect")},
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    for line in WORKS:
        code, output = found[line]
        assert code in (0, 1), (line, output)
        assert "ModuleNotFound" not in output, (line, output)
    assert found["down"][0] == 0, found["down"]
    for line, extra in NEEDS.items():
        code, output = found[line]
        assert code == 1, (line, code, output)
        assert f"[{extra}]'" in output.replace("\n", ""), (line, output)
    assert found[POOL] == [1, "error: no Prefect server is selected; run `crucible up`, or set PREFECT_API_URL\n"]
