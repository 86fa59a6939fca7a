"""What registries and networks say when an image could not be fetched now, and can be a little later."""

from __future__ import annotations

PASSING = (
    r"(too ?many ?requests|rate limit|unexpected (http )?status( code)?\b.{0,300}?\b(429|5\d\d)\b|internal server error"
    r"|bad gateway|service unavailable|gateway time-?out|i/o timeout|TLS handshake timeout|Client\.Timeout|context "
    r"(deadline exceeded|canceled)|connection (reset|refused)|unexpected EOF|no space left on device)"
)
"""A regular expression, to be matched without regard to case and across lines."""
