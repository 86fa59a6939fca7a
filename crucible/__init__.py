"""Crucible: training runs that survive the cloud."""

__version__ = "0.1.0"
