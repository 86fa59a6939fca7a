"""What is not in `sky` itself."""

from __future__ import annotations


def enabled_clouds() -> list[str]:
    return ["GCP", "Lambda"]
