"""The optional packages: which of `pyproject.toml`'s extras brings which module."""

from __future__ import annotations

_EXTRA_OF = {
    "boto3": "aws",
    "botocore": "aws",
    "s3fs": "aws",
    "prefect_aws": "aws",
    "docker": "docker",
    "prefect_docker": "docker",
    "modal": "modal",
    "modal_proto": "modal",
    "moto": "rehearsal",
    "pynvml": "gpu",
    "pyarrow": "data",
    "zstandard": "data",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "trackio": "trackio",
}


def how_to_install(error: ImportError, extra: str | None = None) -> str | None:
    """One sentence that names the missing package and its fix; None if no extra brings it.

    `extra`: install that one instead, where what is about to run needs more than the missing package.
    """
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRA_OF:
        return None
    extra = extra or _EXTRA_OF[package]
    return f"{package} is not installed; install it with: pip install -c constraints.txt -e '.[{extra}]'"
