"""Which faults a drill strikes with, in which order: decided by the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from crucible.errors import ConfigError
from crucible.rehearsal.drill.faults import Fault


def make_plan(faults: Sequence[Fault], count: int, seed: int) -> list[Fault]:
    """`count` faults: every kind once, in random order, before any comes a second time; `comes_last` ends its turn,
    and those that are `always` there are in the first turn, however short.

    Two faults in a row must not both leave an attempt without a commit of its own, or the supervisor would rightly
    stop the job for making no progress; a fault that strikes before training has begun is therefore put behind one
    that waits for a commit. Raises `ConfigError` for a count below 1.
    """
    if count < 1:
        raise ConfigError(f"kills: {count} is not possible; name 1 or more")
    rng = Random(seed)
    plan: list[Fault] = []
    while len(plan) < count:
        turn = rng.sample(faults, len(faults))
        turn = sorted(turn, key=lambda fault: not fault.always)[: count - len(plan)]
        if any(fault.always for fault in turn):
            rng.shuffle(turn)
        plan += sorted(turn, key=lambda fault: fault.comes_last)
    for index, fault in enumerate(plan):
        before = plan[index - 1] if index else None
        if _early(fault) and (before is None or _early(before) or not before.ends_attempt):
            late = next((i for i, f in enumerate(plan) if i > index and f.ends_attempt and not _early(f)), None)
            if late is None:
                plan[index] = next(f for f in faults if f.ends_attempt and not _early(f))
            else:
                plan[index], plan[late] = plan[late], plan[index]
    return plan


def chosen(faults: Sequence[Fault], names: str) -> list[Fault]:
    """Those of the faults that `names` lists, with commas. Raises `ConfigError` for a name that none has."""
    wanted = {name.strip() for name in names.split(",")} - {""}
    known = [fault.name for fault in faults]
    if unknown := wanted.difference(known):
        raise ConfigError(f"faults: {', '.join(sorted(unknown))} is none of this pool's: {', '.join(known)}")
    if not any(fault.name in wanted and not _early(fault) and fault.ends_attempt for fault in faults):
        ends = [fault.name for fault in faults if not _early(fault) and fault.ends_attempt]
        raise ConfigError(f"faults: name at least one that ends an attempt in training: {', '.join(ends)}")
    return [fault for fault in faults if fault.name in wanted]


def _early(fault: Fault) -> bool:
    return fault.before_training
