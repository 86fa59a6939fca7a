"""The block that holds a Modal token. `crucible up` registers it; elsewhere:

prefect block register -m crucible.pools.modal.credentials
"""

from __future__ import annotations

from prefect.blocks.core import Block
from pydantic import Field, SecretStr


class ModalCredentials(Block):
    """A Modal token, as `modal token new` prints it."""

    _block_type_name = "Modal Credentials"
    _block_type_slug = "modal-credentials"
    _description = "Token with which a `modal` work pool creates sandboxes."
    _code_example = """
    ```python
    from crucible.pools.modal.credentials import ModalCredentials

    ModalCredentials(token_id="ak-…", token_secret="as-…").save("modal")
    ```
    """

    token_id: SecretStr = Field(description="Begins with ak-.")
    token_secret: SecretStr = Field(description="Begins with as-.")
