"""The Modal token of a work pool, for the job variable `credentials`. Without it the worker's own token is used."""

from crucible.pools.modal.configuration import ModalCredentials

__all__ = ["ModalCredentials"]
