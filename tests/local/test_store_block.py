"""The Store block opens the store it describes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from blocks.store import Store
from crucible.errors import ConfigError

if TYPE_CHECKING:
    from tests.conftest import S3Place


def test_a_folder(tmp_path: Path) -> None:
    Store(root=tmp_path.as_uri()).open().write("a/b", b"kept")
    assert (tmp_path / "a" / "b").read_bytes() == b"kept"


def test_a_bucket_with_credentials_of_its_own(s3_place: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    block = Store(
        root=s3_place.uri,
        access_key_id="test",
        secret_access_key=SecretStr("test"),
        endpoint_url=s3_place.env["AWS_ENDPOINT_URL"],
        region="us-east-1",
    )
    block.open().write("a/b", b"kept")
    assert block.open().read("a/b") == b"kept"
    assert "test" not in repr(block.secret_access_key)


def test_an_unknown_kind_of_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="ftp://host/x"):
        Store(root="ftp://host/x").open()
