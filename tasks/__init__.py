"""The retried, cached, observed steps that flows are made of: where the library meets Prefect."""
