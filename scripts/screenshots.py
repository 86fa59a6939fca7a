"""Take the pictures of the Prefect UI that the documentation shows.

    python -m scripts.screenshots JOB [--sweep SWEEP] [--out docs/images]
    python -m scripts.screenshots --sample            (`make screenshots`)

Needs a server that `crucible up` started, and Chromium (`apt install chromium`). The first form shows a finished job of
that name; the second one writes records of jobs that never ran (`scripts.sample_jobs`) into a store of their own,
publishes their pages on the server as the flows do, and shows those: overview, reports, sweep, costs. The browser
runs without a screen and is driven over its DevTools protocol: a page is taken once the text that matters is really
there.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from crucible.errors import CrucibleError
from crucible.local import access
from crucible.local.state import Home, State
from tasks.reporting import artifact_key

WIDTH, HEIGHT = 1440, 860
PATIENCE_SECONDS = 240.0
"""For a page, on a machine that is busy with training."""
SETTLED_SECONDS = 1.5
"""A page that looks the same after so long is taken."""
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Page:
    """One tab of a running Chromium."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._numbers = connection, itertools.count(1)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Do it, and return the answer; events that come before it are passed over."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(timeout=PATIENCE_SECONDS))
            if answer.get("id") == number:
                if "error" in answer:
                    raise CrucibleError(f"Chromium refused {method}: {answer['error']['message']}")
                return dict(answer["result"])

    def evaluate(self, expression: str) -> Any:
        return self.send("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def open(self, url: str, needed: str) -> None:
        """Open `url` and wait for the text or selector `needed`."""
        self.send("Page.navigate", url=url)
        self._wait_for(needed)

    def take(self, url: str, needed: str, path: Path, tallest: int = HEIGHT, width: int = WIDTH) -> None:
        """Open `url`, wait for the text or selector `needed` to be there and the page to settle, and write a PNG.

        A page whose contents are taller than the window gets a window of their height, up to `tallest`.
        """
        self._size(width, HEIGHT)
        self.open(url, needed)
        picture = self._settled()
        inside = "[...document.querySelectorAll('main, div')].map(e => e.scrollHeight)"
        height = int(self.evaluate(f"Math.max(document.documentElement.scrollHeight, ...{inside})"))
        if height > HEIGHT and tallest > HEIGHT:
            self._size(width, min(height, tallest))
            picture = self._settled()
        path.write_bytes(_smaller(picture))
        print(f"{path}  ({path.stat().st_size / 1e3:.0f} kB)  {url}")

    def _size(self, width: int, height: int) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def _wait_for(self, needed: str) -> None:
        shown = f"document.body?.innerText.includes({json.dumps(needed)})"
        wanted = f"!!document.querySelector({json.dumps(needed)})" if needed.startswith("img") else shown
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._holds(wanted):
            if time.monotonic() > deadline:
                seen = self.evaluate("document.body?.innerText") or "nothing"
                raise CrucibleError(
                    f"{needed!r} did not appear within {PATIENCE_SECONDS:.0f} s; there is: {seen[:300]}"
                )
            time.sleep(0.2)

    def _holds(self, expression: str) -> bool:
        try:
            return bool(self.evaluate(expression))
        except CrucibleError:
            return False  # the page has just gone to another address, as after logging in

    def _settled(self) -> bytes:
        """The page as a PNG, once it looks the same twice: pictures, fonts and the run's graph come late."""
        before, deadline = b"", time.monotonic() + PATIENCE_SECONDS
        while True:
            time.sleep(SETTLED_SECONDS)
            now = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
            if now == before or time.monotonic() > deadline:
                return now
            before = now


@contextmanager
def chromium() -> Iterator[Page]:
    """A tab of a Chromium of its own. Raises `CrucibleError` if there is none to start."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise CrucibleError("Chromium is not installed; on Debian: apt install chromium")
    with tempfile.TemporaryDirectory(prefix="screenshots-", ignore_cleanup_errors=True) as profile:
        command = [program, *QUIET, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = _port(Path(profile) / "DevToolsActivePort", process)
            tabs = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json()
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(address, max_size=None, proxy=None) as connection:
                yield Page(connection)
        finally:
            process.terminate()
            process.wait(timeout=20)


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.1)
    raise CrucibleError("Chromium did not start; run it by hand to see why")


def _smaller(picture: bytes) -> bytes:
    """The same in 256 colours, which a page of text and lines does not exceed by much: a third of the size."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        buffer, format="png", optimize=True
    )
    return buffer.getvalue()


def take_all(home: Home, job: str, sweep: str | None, out: Path) -> None:
    """The pipeline's run, the job's report, its evaluation, the list of its runs, and a sweep's page."""
    api_url = State.load(home).api_url
    if api_url is None:
        raise CrucibleError("no local server is running; run: crucible up")
    ui = api_url.removesuffix("/api") + "/v2"
    tag = f"job:{job}"
    with access.connect(home, api_url) as api:
        runs = _answer(api, "/flow_runs/filter", {"flow_runs": {"tags": {"all_": [tag, "stage:pipeline"]}}})
        if not runs:
            raise CrucibleError(f"job: {api_url} has no run of a pipeline with the tag {tag!r}")
        report = _newest_artifact(api, artifact_key("job", job))
        evaluation = _newest_artifact(api, artifact_key("evaluation", job))
        searched = _newest_artifact(api, artifact_key("sweep", sweep)) if sweep else None
    out.mkdir(parents=True, exist_ok=True)
    with chromium() as page:
        page.open(access.login_link(home, f"{ui}/dashboard"), "Flow Runs")
        page.take(f"{ui}/runs?tags={quote(tag)}", runs[0]["name"], out / "runs.png", 1080)
        page.take(f"{ui}/runs/flow-run/{runs[0]['id']}", "train-nanogpt", out / "flow-run.png")
        if report:
            page.take(f"{ui}/artifacts/artifact/{report}", "img[src^='data:image/png']", out / "report.png", 1750)
        if evaluation:
            page.take(f"{ui}/artifacts/artifact/{evaluation}", "perplexity", out / "evaluation.png", 1750)
        if searched:
            page.take(f"{ui}/artifacts/artifact/{searched}", "img[src^='data:image/png']", out / "sweep.png", 1750)


COMPARED = ("baseline", "shakespeare-spot", "gpt2-small-try")


def publish_sample(home: Home, api_url: str, comparison: Path) -> dict[str, str]:
    """Publish the pages of the sample's jobs; returns the artifact's id of each picture's name.

    `comparison`: where to write the page of `crucible compare --out`, which is no artifact.
    """
    from datetime import UTC, datetime, timedelta

    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from crucible.billing.budgets import BudgetLimit, budget_state
    from crucible.billing.costs import attempt_costs
    from crucible.catalog.offers import load_catalog
    from crucible.jobs.job import Job
    from crucible.prefect_compat.live_artifacts import LiveArtifact
    from crucible.reports import job_report
    from crucible.reports.compare import compare, comparison_page
    from crucible.reports.costs import cost_page
    from crucible.reports.html import html_page
    from crucible.reports.overview import OverviewReader
    from crucible.reports.overview_page import overview_page
    from crucible.reports.sweep import sweep_report
    from crucible.store import store_at
    from crucible.sweeps.sweep import Sweep
    from scripts import sample_jobs

    with tempfile.TemporaryDirectory(prefix="crucible-sample-") as folder:
        store = store_at(Path(folder, "store").as_uri())
        os.environ["CRUCIBLE_STORE"] = store.uri  # else every page names its address, a temporary folder
        sample_jobs.make(store)
        now = datetime.now(UTC)
        costs = attempt_costs(store, {offer.key: offer for offer in load_catalog()})
        limits = [
            BudgetLimit("shakespeare-monthly", 1.5, project="shakespeare"),
            BudgetLimit("ablations-monthly", 1.0, project="ablations", stop_jobs=True),
            BudgetLimit("ada-daily", 2.0, period="day", owner="ada"),
        ]
        states = [budget_state(limit, costs, now) for limit in limits]
        compared = comparison_page(compare([Job(store, name) for name in COMPARED]))
        comparison.write_text(html_page(compared, "A comparison"), encoding="utf-8")
        sweep = Sweep(store, "rates")
        pages = {
            "overview": ("overview", overview_page(OverviewReader(store).read())),
            "report-running": ("job-shakespeare-large", job_report(Job(store, "shakespeare-large"))),
            "report-five-attempts": ("job-shakespeare-spot", job_report(Job(store, "shakespeare-spot"))),
            "sweep-running": ("sweep-rates", sweep_report(sweep, sweep.ranked())),
            "cost-report": ("cost-report-week", cost_page(costs, "Costs", now - timedelta(days=7), now, states)),
        }
    settings = {PREFECT_API_URL: api_url, PREFECT_API_AUTH_STRING: access.auth_string(home)}
    with temporary_settings(updates=settings):
        return {
            name: str(LiveArtifact(key, "markdown").publish(page, "Made from sample records"))
            for name, (key, page) in pages.items()
        }


def take_sample(home: Home, out: Path) -> None:
    """The pages of the sample, on a wide window and on a telephone, and the form of a deployment's parameters."""
    api_url = State.load(home).api_url
    if api_url is None:
        raise CrucibleError("no local server is running; run: crucible up")
    ui = api_url.removesuffix("/api") + "/v2"
    with access.connect(home, api_url) as api:
        named = _answer(api, "/deployments/filter", {"deployments": {"name": {"any_": ["train-script"]}}})
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="crucible-compare-") as folder, chromium() as page:
        comparison = Path(folder, "compare.html")
        pages = publish_sample(home, api_url, comparison)
        page.take(comparison.as_uri(), "img[src^='data:image/png']", out / "compare.png", 1400)
        page.open(access.login_link(home, f"{ui}/dashboard"), "Flow Runs")
        for name, artifact in pages.items():
            page.take(f"{ui}/artifacts/artifact/{artifact}", "img[src^='data:image/png']", out / f"{name}.png", 1750)
        telephone = out / "overview-telephone.png"
        page.take(f"{ui}/artifacts/artifact/{pages['overview']}", "img[src^='data:image/png']", telephone, 1750, 390)
        if named:
            form = f"{ui}/deployments/deployment/{named[0]['id']}/run"
            page.take(form, "Parameters", out / "parameter-form.png", 1280)


def _newest_artifact(api: httpx.Client, key: str) -> str | None:
    found = _answer(
        api, "/artifacts/filter", {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
    )
    return str(found[0]["id"]) if found else None


def _answer(api: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = api.post(f"{api.base_url}{path.removeprefix('/')}", json=body)
    answer.raise_for_status()
    return list(answer.json())


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", nargs="?", help="name of a finished job")
    parser.add_argument("--sample", action="store_true", help="pages of jobs that never ran, instead of a job's")
    parser.add_argument("--sweep", help="name of a finished sweep, for a picture of its page")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder for the pictures")
    options = parser.parse_args()
    if bool(options.job) == options.sample:
        parser.error("give a job or --sample")
    try:
        if options.sample:
            take_sample(Home.current(), options.out)
        else:
            take_all(Home.current(), options.job, options.sweep, options.out)
    except (CrucibleError, httpx.HTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
