"""What can be chosen about the rehearsed cloud."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from crucible import settings

ACCOUNT = "123456789012"


class Settings(settings.Settings):
    """Times are seconds of the laptop's clock; AWS's own are given where they differ."""

    folder: Path
    """Where container logs and scratch folders go."""
    working_directory: Path
    """What stands for the image's working directory: the project."""
    region: str = "us-east-1"
    port: int = 0
    """Of the AWS API; 0 takes a free one."""
    boot_seconds: float = Field(default=0.5, ge=0, le=1e6)
    """From launch to registration with ECS; two to four minutes on AWS."""
    idle_seconds: float = Field(default=60.0, ge=0, le=1e6)
    """An instance without tasks is given back after that; 15 minutes on AWS."""
    provisioning_seconds: float = Field(default=1800.0, gt=0, le=1e6)
    """ECS gives a task up that finds no machine for so long; up to 30 minutes on AWS."""
    shutdown_seconds: float = Field(default=1.0, ge=0, le=1e6)
    """Between the SIGTERM of a host that shuts down and its end."""
    detect_seconds: float = Field(default=0.5, ge=0, le=1e6)
    """Until ECS reports that a host is gone; seconds to minutes on AWS."""
    gpus_per_instance: int = Field(default=0, ge=0)
    """0: as many as the instance type has."""
