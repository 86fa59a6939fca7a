"""Text to preprocess that has everything awkward in it."""

from __future__ import annotations

import random


def make_text(characters: int, seed: int = 0) -> str:
    """Words, punctuation, blank lines, runs of spaces, CRLF, and characters of one to four bytes."""
    draw = random.Random(seed)
    words = [
        "the",
        "cat's",
        "naïve",
        "日本語",
        "🙂",
        "x=1",
        "1234",
        "don't",
        "a",
        "_under",
        "Ünï",
        "\u00a0",
        "  ",
        "\t",
    ]
    ends = ["\n", "\n\n", " \n", "\r\n", ".\n    ", "\n\n\n\t"]
    parts: list[str] = []
    length = 0
    while length < characters:
        part = draw.choice(words) + (" " if draw.random() < 0.8 else draw.choice(ends))
        parts.append(part)
        length += len(part)
    return "".join(parts)
