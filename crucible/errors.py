"""Every error a user can meet.

One family, so that the command line, the flows and the tests can tell "the user must mend something" from a bug.
A message names what was wrong, where, and what to do about it.
"""

from __future__ import annotations


class CrucibleError(Exception):
    """Base of every expected error; its text is written for the person who reads it."""


class ConfigError(CrucibleError):
    """A value given by the user is invalid: the message names the field, the value and the mend."""


class DataError(CrucibleError):
    """A dataset source cannot be read or is not what it was said to be."""


class SourceUnreachable(DataError):
    """The network or the other side failed; the same request may succeed later."""


class StoreError(CrucibleError):
    """The object store refused, could not be reached, or does not hold what was asked for."""


class ObjectExists(StoreError):
    """A create-only write found the object already there."""


class ObjectMissing(StoreError):
    """A read found no such object."""


class CheckpointError(CrucibleError):
    """A checkpoint does not verify or cannot be restored."""


class FencedOut(CrucibleError):
    """A newer attempt or supervisor of this job exists; this one must stop and commit nothing more."""


class ServiceError(CrucibleError):
    """A local service (server, worker, watchdog) did not start or does not answer."""


class TrainingError(CrucibleError):
    """Training cannot go on: the loss is no longer a number."""
