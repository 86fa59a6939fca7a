"""What an attempt has cost so far, at the prices of the machines that run it, which may change while they run."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

PRICE_SECONDS = 600.0
"""Between two looks at the machine's current price: AWS changes spot prices slowly."""


@dataclass
class _Node:
    """The price of one machine, and its cost before that price."""

    usd_per_hour: float
    since: float
    usd_before: float = 0.0
    assumed: bool = False
    """It was taken for a machine like the first one."""

    def usd(self, now: float) -> float:
        return self.usd_before + (now - self.since) * self.usd_per_hour / 3600


class CostMeter:
    """Adds up seconds times price over an attempt's machines; safe to use from several threads."""

    def __init__(self, usd_per_hour: float, clock: Callable[[], float] = time.monotonic, nodes: int = 1) -> None:
        """`usd_per_hour` is of all `nodes` together, which are taken for equal until their own prices are set."""
        self._clock, self._lock = clock, threading.Lock()
        self._began = clock()
        each = round(usd_per_hour / nodes, 9)
        self._nodes = [_Node(each, self._began, assumed=node > 0) for node in range(nodes)]
        self._look_at = self._began + PRICE_SECONDS

    @property
    def usd_per_hour(self) -> float:
        """The price in force, of all machines together."""
        with self._lock:
            return round(sum(node.usd_per_hour for node in self._nodes), 9)

    def seconds(self) -> float:
        """Since the meter started."""
        return self._clock() - self._began

    def usd(self) -> float:
        """The cost so far, to the millionth of a dollar."""
        with self._lock:
            now = self._clock()
            return round(sum(node.usd(now) for node in self._nodes), 6)

    def set_price(self, usd_per_hour: float, node: int = 0) -> bool:
        """From now on that machine costs this much; what was used before keeps its price. Returns whether that is news.

        The first price of a further node counts from the start: until then another machine's stood in for it.
        """
        if not (math.isfinite(usd_per_hour) and usd_per_hour >= 0):
            return False
        with self._lock:
            now, before = self._clock(), self._nodes[node]
            if before.assumed:
                self._nodes[node] = _Node(usd_per_hour, self._began)
            elif usd_per_hour != before.usd_per_hour:
                self._nodes[node] = _Node(usd_per_hour, now, before.usd(now))
        return usd_per_hour != before.usd_per_hour

    def follow(self, current_price: Callable[[], float | None]) -> float | None:
        """Ask for this machine's price every `PRICE_SECONDS`, None where it is unknown; returns a new one that took
        effect."""
        if self._clock() < self._look_at:
            return None
        self._look_at = self._clock() + PRICE_SECONDS
        price = current_price()
        return price if price is not None and self.set_price(price) else None
