"""Notices of a Google Compute Engine machine, from its metadata server.

A spot machine that is to be preempted has TRUE at `instance/preempted`, and 30 s until it is stopped (120 s where it
was created with `--preemption-notice-duration=120s`). A request with `wait_for_change` is answered when the value
changes, so the notice arrives without a pause between two looks. A thread waits for it; `poll` only says what is known.

The server is found under its address, `metadata.google.internal`, or `GCE_METADATA_HOST` as in Google's own libraries.
Sources: Google Cloud, "Create and use Spot VMs" and "About VM metadata" (wait_for_change, timeout_sec, last_etag).
"""

from __future__ import annotations

import os
import threading
import time
import urllib.request
from http.client import HTTPException

from crucible.agent.notices import Notice

DEFAULT_HOST = "metadata.google.internal"
NOTICE_SECONDS = 30.0
WAIT_SECONDS = 60
"""How long the server holds a request open before it answers that nothing has changed."""
RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
_HEADERS = {"Metadata-Flavor": "Google"}
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class GcpMetadataNotices:
    """Waits, in a thread that the first `poll` starts, for the preemption of this machine."""

    def __init__(self, endpoint: str | None = None) -> None:
        found = endpoint or f"http://{os.environ.get('GCE_METADATA_HOST') or DEFAULT_HOST}"
        self.endpoint = found.rstrip("/")
        self._standing: Notice | None = None
        self._thread: threading.Thread | None = None

    def poll(self) -> Notice | None:
        """The notice that stands now, or None. Returns at once and raises nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._wait, name="gcp-notices", daemon=True)
            self._thread.start()
        return self._standing

    def _wait(self) -> None:
        etag, pause = "0", RETRY_SECONDS  # no state has this tag: the first request is answered at once
        while True:
            try:
                value, etag = self._read(etag)
            except (OSError, HTTPException, ValueError):
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_RETRY_SECONDS)
                continue
            pause = RETRY_SECONDS
            if value.strip().upper() == "TRUE":
                self._standing = Notice(
                    source="gcp-spot",
                    reason="Google Cloud preempts this spot machine",
                    deadline=time.time() + NOTICE_SECONDS,
                )
                return

    def _read(self, etag: str) -> tuple[str, str]:
        """The value once it differs from the one with that tag, or after `WAIT_SECONDS`; and its tag."""
        query = f"wait_for_change=true&timeout_sec={WAIT_SECONDS}&last_etag={etag}"
        request = urllib.request.Request(
            f"{self.endpoint}/computeMetadata/v1/instance/preempted?{query}", headers=_HEADERS
        )
        with _direct.open(request, timeout=WAIT_SECONDS + 10) as response:
            if response.headers.get("Metadata-Flavor") != "Google":
                raise ValueError("not Google's metadata server")
            return response.read(1024).decode(), str(response.headers.get("ETag") or "0")
