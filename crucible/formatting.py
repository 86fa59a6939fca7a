"""Times, sizes and sums of money as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Two significant parts at most.

    >>> [duration(s) for s in (0.0125, 3.21, 59.9, 75, 3600, 100_000)]
    ['13 ms', '3.2 s', '60 s', '1 min 15 s', '1 h', '1 d 4 h']
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if round(seconds) <= 60:
        return f"{seconds:.0f} s"
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        whole = round(seconds / smaller_size) * smaller_size
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds:.0f} s"


def usd(amount: float) -> str:
    """Cents, and finer for small sums, which would otherwise all look free.

    >>> [usd(a) for a in (0, 0.00042, 0.123, 12.5)]
    ['$0.00', '$0.0004', '$0.12', '$12.50']
    """
    return f"${amount:.4f}" if 0 < amount < 0.1 else f"${amount:,.2f}"


def size(count: int) -> str:
    """Bytes in the unit that suits them.

    >>> [size(n) for n in (1_492_000_000, 81_234, 412)]
    ['1,492.0 MB', '81.2 kB', '412 B']
    """
    if count >= 1e6:
        return f"{count / 1e6:,.1f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1e3 else f"{count} B"
