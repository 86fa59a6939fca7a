"""Times as people type them: `12h` from now, `7d` ago, or an ISO 8601 time.

Everything here raises `ConfigError` with the name of the field, what was typed and what to type instead.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from crucible.errors import ConfigError

_DURATION = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(h|min|m|d)"
_HOURS = {"h": 1.0, "min": 1 / 60, "m": 1 / 60, "d": 24.0}
_LONGEST_HOURS = 100 * 366 * 24.0
"""A century: anything longer is a typing mistake, and would leave the calendar."""


def hours_until(deadline: str, now: datetime) -> float:
    """Hours from `now` until `12h`, `90min` or `2d` later, or until an ISO time (UTC if it names no zone)."""
    if (hours := _hours(deadline, "finish_by")) is None:
        wanted = "12h, 90min, 2d or a time such as 2026-05-07T18:00"
        hours = (_moment(deadline, "finish_by", wanted) - now).total_seconds() / 3600
    if hours <= 0:
        raise ConfigError(f"finish_by is {deadline!r}, which is over; give a time in the future")
    return hours


def moment_to_come(deadline: str, now: datetime | None) -> datetime:
    """The moment that `deadline` names, an ISO time with its zone; later than `now`, if that is given."""
    wanted = "give a time with its zone, such as 2026-05-07T18:00+02:00 or 2026-05-07T16:00Z"
    try:
        moment = datetime.fromisoformat(deadline.strip())
        if moment.tzinfo is not None:
            moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(f"finish_by is {deadline!r}, which is no time; {wanted}") from None
    if moment.tzinfo is None:
        raise ConfigError(f"finish_by is {deadline!r}, which names no time zone; {wanted}")
    if now is not None and moment <= now:
        raise ConfigError(f"finish_by is {deadline!r}, which is over (it is {now:%Y-%m-%dT%H:%MZ} now); {wanted}")
    return moment


def moment_ago(text: str, now: datetime) -> datetime:
    """The moment `7d`, `24h` or `90min` before `now`, or a date or time (UTC if it names no zone)."""
    if (hours := _hours(text, "since")) is not None:
        return now - timedelta(hours=hours)
    return _moment(text, "since", "7d, 24h, 90min, 10m or a date such as 2026-05-01")


def time_span(text: str, field: str) -> timedelta:
    """The time that `7d`, `24h` or `90min` names; more than none."""
    hours = _hours(text, field)
    if not hours:
        raise ConfigError(f"{field} is {text!r}: it must be a time such as 7d, 24h or 90min")
    return timedelta(hours=hours)


def _hours(text: str, field: str) -> float | None:
    """Hours of a duration; None when the text is not one."""
    match = re.fullmatch(_DURATION, text.strip())
    if match is None:
        return None
    hours = float(match[1]) * _HOURS[match[2]]
    if hours > _LONGEST_HOURS:
        raise ConfigError(f"{field} is {text!r}: it must be at most {_LONGEST_HOURS / 24:.0f}d")
    return hours


def _moment(text: str, field: str, wanted: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(f"{field} is {text!r}: it must be {wanted}") from None
