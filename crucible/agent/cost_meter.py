"""What an attempt has cost so far, at the price of the machine that runs it, which may change while it runs."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

PRICE_SECONDS = 600.0
"""Between two looks at the machine's current price: AWS changes spot prices slowly."""


class CostMeter:
    """Adds up seconds times price; safe to use from several threads."""

    def __init__(self, usd_per_hour: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._began = self._since = clock()
        self._usd_per_hour, self._usd_before = usd_per_hour, 0.0
        self._look_at = self._began + PRICE_SECONDS

    @property
    def usd_per_hour(self) -> float:
        """The price in force."""
        return self._usd_per_hour

    def seconds(self) -> float:
        """Since the meter started."""
        return self._clock() - self._began

    def usd(self) -> float:
        """The cost so far, to the millionth of a dollar."""
        with self._lock:
            return round(self._usd_before + (self._clock() - self._since) * self._usd_per_hour / 3600, 6)

    def set_price(self, usd_per_hour: float) -> None:
        """From now on the machine costs this much; what was used before keeps its price."""
        if not (math.isfinite(usd_per_hour) and usd_per_hour >= 0):
            return
        with self._lock:
            now = self._clock()
            self._usd_before += (now - self._since) * self._usd_per_hour / 3600
            self._since, self._usd_per_hour = now, usd_per_hour

    def follow(self, current_price: Callable[[], float | None]) -> float | None:
        """Ask for the price every `PRICE_SECONDS`, None where it is unknown; returns a new price that took effect."""
        if self._clock() < self._look_at:
            return None
        self._look_at = self._clock() + PRICE_SECONDS
        price = current_price()
        if price is None or price == self._usd_per_hour:
            return None
        self.set_price(price)
        return price
