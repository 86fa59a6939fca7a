"""Every error a user can meet.

One family, so that the command line, the flows and the tests can tell an expected error from a bug.
A message names what was wrong, where, and what to do about it.
"""

from __future__ import annotations


class CrucibleError(Exception):
    """Base of every expected error; its text is written for the person who reads it."""


class ConfigError(CrucibleError):
    """A value given by the user is invalid: the message names the field, the value and the fix."""


class DataError(CrucibleError):
    """A dataset source cannot be read or is not what was specified."""


class SourceUnreachable(DataError):
    """The network or the other side failed; the same request may succeed later."""


class StoreError(CrucibleError):
    """The object store failed. What to do next depends on which of the errors below it is."""


class StoreUnavailable(StoreError):
    """The store is not reachable, throttles or is full: the same request may succeed later (`crucible.store.retry`)."""


class StoreRefused(StoreError):
    """The store will go on refusing until a person changes something; the message says what."""


class StoreAccessDenied(StoreRefused):
    """The store does not accept these credentials, or the bucket or folder does not exist."""


class RecordDamaged(StoreError):
    """An object is there but is not what it should be. Its job fails or goes on without it; waiting does not help."""


class ObjectExists(StoreError):
    """A create-only write found the object already there."""


class ObjectMissing(StoreError):
    """A read found no such object."""


class LocalDiskError(CrucibleError):
    """A file or folder of this machine cannot be read or written; the store is not to blame."""


class CheckpointError(CrucibleError):
    """A checkpoint does not verify or cannot be restored."""


class FencedOut(CrucibleError):
    """A newer attempt or supervisor of this job exists; this one must stop and commit nothing more."""


class ServiceError(CrucibleError):
    """A local service (server, worker, watchdog) did not start or does not answer."""


class StartUnknown(ServiceError):
    """The answer to a request for a flow run got lost, so the run may exist: delete nothing that it would need."""


class MachineUnfit(CrucibleError):
    """This machine should not train: its GPU is broken, throttled or taken. Another machine can do the same work."""


class TrainingError(CrucibleError):
    """Training cannot go on: the loss is no longer a number."""
