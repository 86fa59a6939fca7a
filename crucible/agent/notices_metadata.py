"""What the notices of all clouds share: a metadata service on the host, asked every few seconds without getting in the
way of anything else."""

from __future__ import annotations

import abc
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import ClassVar

from crucible.agent.notices import Notice

REQUEST_TIMEOUT_SECONDS = 0.9  # the service is on the host: an answer takes milliseconds, or there is none

# Neither proxies nor redirects belong between an instance and its own metadata.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class MetadataNotices(abc.ABC):
    """Watches one machine's metadata service for its end.

    `interval_seconds` is how often the service is asked; `poll` may be called more often and then repeats what is
    known. A notice stands until the machine goes: every later `poll` returns it again, an equal object.
    """

    silent_retry_seconds: ClassVar[float] = 60.0
    """The longest pause while the service has never answered: it is most likely not there."""

    def __init__(self, endpoint: str, *, interval_seconds: float = 3.0) -> None:
        if not 0 < interval_seconds <= 60:
            raise ValueError(f"interval_seconds = {interval_seconds}: notices are 30 to 120 s long, use 2 to 5")
        self.endpoint = endpoint.rstrip("/")
        self.interval_seconds = interval_seconds
        self.standing: Notice | None = None
        self.disabled = False
        self._answered = False
        self._retry_seconds = interval_seconds
        self._next_look = 0.0

    def poll(self) -> Notice | None:
        """The notice that stands now, or None. Raises nothing and returns within about 2 s."""
        now = time.monotonic()
        if self.disabled or now < self._next_look:
            return self.standing
        try:
            self.standing = self.look() or self.standing
            self._next_look = now + self.interval_seconds
        except (OSError, HTTPException, ValueError):  # unreachable, or an answer that is no answer: ask again later
            if not self._answered:  # or a machine so busy with its start that nothing answers in time
                self._retry_seconds = min(2 * self._retry_seconds, self.silent_retry_seconds)
            self._next_look = now + (self.interval_seconds if self._answered else self._retry_seconds)
        return self.standing

    @abc.abstractmethod
    def look(self) -> Notice | None:
        """Ask the service now. Raises OSError when nobody answers, ValueError or HTTPException for no real answer."""

    def request(self, method: str, path: str, headers: Mapping[str, str]) -> str:
        """The text at `path`. Raises OSError, `HTTPError` for the statuses among them, and HTTPException."""
        request = urllib.request.Request(f"{self.endpoint}/{path}", method=method, headers=dict(headers))
        with _direct.open(request, timeout=REQUEST_TIMEOUT_SECONDS) as response:
            text = response.read(65536).decode()
        self._answered = True
        return str(text)
