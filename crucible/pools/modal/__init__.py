"""The pool `modal`: flow runs in sandboxes on Modal, for a self-hosted Prefect server."""
