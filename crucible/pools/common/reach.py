"""Whether a sandbox on Modal can reach the Prefect API under the address it is given, and nobody else reads along."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlparse

FIX = "set env.PREFECT_API_URL in the work pool to the server's public https address (docs/modal.md says how)"


def obstacle(api_url: str, modal_url: str) -> str | None:
    """Why a sandbox cannot or must not use `api_url`, as far as the address alone can tell; None when it may.

    `modal_url` is where Modal itself is: a stand-in on this machine can reach what is on this machine.
    """
    if is_here(modal_url):
        return None
    if not api_url:
        return f"PREFECT_API_URL is not set; {FIX}"
    if urlparse(api_url).password is not None:
        return f"PREFECT_API_URL holds a password; put it into PREFECT_API_AUTH_STRING, and {FIX}"
    if is_here(api_url):
        return f"PREFECT_API_URL: sandboxes on Modal cannot reach {api_url}, which is the worker's own machine; {FIX}"
    if _is_private(api_url):
        return f"PREFECT_API_URL: {api_url} is an address of a private network, and Modal is outside it; {FIX}"
    if urlparse(api_url).scheme != "https":
        return f"PREFECT_API_URL: {api_url} is not encrypted, and every request carries the API's password; {FIX}"
    return None


def is_here(url: str) -> bool:
    """Whether an address means the machine that looks at it."""
    host = urlparse(url).hostname
    address = _address(host)
    return host in (None, "localhost") or (address is not None and (address.is_loopback or address.is_unspecified))


def _is_private(url: str) -> bool:
    host = urlparse(url).hostname or ""
    address = _address(host)
    return address.is_private if address is not None else "." not in host


def _address(host: str | None) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host or "")
    except ValueError:
        return None
