"""The block that says where everything durable lives: datasets, checkpoints and job records."""

from __future__ import annotations

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

import crucible.store


class Store(Block):
    """A folder or an S3 bucket. `crucible up` saves the block `default` for the folder under its state folder."""

    _block_type_name = "Crucible Store"
    _block_type_slug = "crucible-store"
    _description = "Where Crucible keeps datasets, checkpoints and job records."
    _code_example = """
    ```python
    from blocks.store import Store

    store = Store.load("default").open()
    print(store.list("jobs"))
    ```
    """

    root: str = Field(
        title="Root",
        description="Where the objects are: file:///folder on one machine, s3://bucket/prefix for clouds.",
        examples=["s3://my-bucket/crucible"],
    )
    access_key_id: str | None = Field(
        default=None, description="S3 access key id. Leave empty to use the machine's own AWS credentials."
    )
    secret_access_key: SecretStr | None = Field(default=None, description="S3 secret access key for that id.")
    session_token: SecretStr | None = Field(default=None, description="Only for temporary S3 credentials.")
    endpoint_url: str | None = Field(
        default=None, description="Address of an S3-compatible service other than AWS, such as MinIO or R2."
    )
    region: str | None = Field(default=None, description="AWS region of the bucket, if not the default one.")

    def open(self) -> crucible.store.Store:
        """The store, ready to use. Raises `ConfigError` if the root is not an address that Crucible knows."""
        return crucible.store.store_of_block(self.settings())

    def settings(self) -> dict[str, str | None]:
        """The fields, secrets in plain text, as `store_of_block` takes them."""
        fields = {name: getattr(self, name) for name in ("root", "access_key_id", "endpoint_url", "region")}
        secrets = {"secret_access_key": self.secret_access_key, "session_token": self.session_token}
        return {**fields, **{name: value.get_secret_value() if value else None for name, value in secrets.items()}}
