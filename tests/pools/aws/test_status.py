"""What `crucible aws status` looks up of an image."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from crucible.pools.aws.status import _image

REPOSITORY = "123456789012.dkr.ecr.us-east-1.amazonaws.com/crucible/main"
DIGEST = f"sha256:{'0' * 64}"


class Ecr:
    """A repository with one image."""

    class exceptions:  # noqa: N801 - boto3's name
        class ImageNotFoundException(Exception):
            """There is none."""

    def describe_images(self, **given: Any) -> None:
        assert given["repositoryName"] == "crucible/main"
        if given["imageIds"] not in ([{"imageTag": "gpu-1"}], [{"imageDigest": DIGEST}]):
            raise self.exceptions.ImageNotFoundException


@pytest.mark.parametrize(
    ("image", "there"),
    [(":gpu-1", True), (f"@{DIGEST}", True), (f":gpu-1@{DIGEST}", True), (":gpu-2", False), ("@sha256:1", False)],
)
def test_an_image_is_looked_up_by_its_tag_or_its_digest(image: str, there: bool) -> None:
    """By its digest: as `crucible images push` prints it."""
    ok, _ = _image(SimpleNamespace(client=lambda service: Ecr()), REPOSITORY, REPOSITORY + image)  # type: ignore[arg-type]
    assert ok is there
