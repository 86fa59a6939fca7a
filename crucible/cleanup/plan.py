"""Everything that may go from a store, and carrying it out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, partial
from pathlib import Path

from crucible.cleanup.jobs import OldJobs
from crucible.cleanup.leftovers import abandoned_scratch, expired_shares, unfinished_uploads
from crucible.cleanup.quota import ProjectUse, project_use
from crucible.cleanup.removal import Kind, Removal
from crucible.code.pruning import Unused, find_unused, remove
from crucible.errors import RecordDamaged
from crucible.formatting import counted, markdown_table, size
from crucible.jobs.records import now
from crucible.store import Store

MOST_ROWS = 200
GB = 1_000_000_000


@dataclass(frozen=True)
class CleanupRequest:
    """What is to be cleaned up."""

    days: float = 30.0
    """Jobs that ended longer ago keep their best model."""
    package_days: float = 7.0
    """Packages of code and data that no job names go after so many days without use."""
    leftover_days: float = 1.0
    """Uploads and folders of killed processes: longer than any that still work may take."""
    quota_bytes: float = 100 * GB
    """For each project."""
    kinds: Collection[Kind] = frozenset(Kind)


@dataclass(frozen=True)
class CleanupPlan:
    """What would go, and what the projects hold now."""

    removals: Sequence[Removal]
    use: Sequence[ProjectUse]
    left_alone: Sequence[str] = ()
    """Jobs and kinds of things whose records cannot be read, and why."""

    @property
    def bytes(self) -> int:
        """What would be freed."""
        return sum(removal.bytes for removal in self.removals)

    @property
    def warnings(self) -> list[str]:
        """Projects that come near their quota."""
        return [use.warning for use in self.use if use.warning]


@dataclass
class CleanupResult:
    """What went."""

    removed: list[Removal] = field(default_factory=list)
    needed_after_all: list[Removal] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """What was freed."""
        return sum(removal.bytes for removal in self.removed)


def plan_cleanup(store: Store, request: CleanupRequest, scratch: Path) -> CleanupPlan:
    """Look for what may go; changes nothing. Raises what the store raises."""
    at = now()
    jobs = OldJobs(store, at - timedelta(days=request.days))
    leftovers = at - timedelta(days=request.leftover_days)
    finders: list[tuple[set[Kind], Callable[[], Iterator[Removal]]]] = [
        ({Kind.CHECKPOINTS, Kind.LOGS}, jobs.find),
        ({Kind.PACKAGES}, lambda: _packages(store, timedelta(days=request.package_days))),
        ({Kind.UPLOADS}, lambda: unfinished_uploads(store, leftovers)),
        ({Kind.SHARED}, lambda: expired_shares(store, at)),
        ({Kind.SCRATCH}, lambda: abandoned_scratch(scratch, leftovers)),
    ]
    found: list[Removal] = []
    left_alone: list[str] = []
    for kinds, find in finders:
        if kinds & set(request.kinds):
            try:
                found += [removal for removal in find() if removal.kind in request.kinds]
            except RecordDamaged as error:  # what it needs is not known; the other kinds go on
                left_alone.append(f"{', '.join(sorted(kinds))}: {error}")
    return CleanupPlan(found, project_use(store, request.quota_bytes), [*left_alone, *jobs.left_alone])


def clean_up(plan: CleanupPlan, report: Callable[[Removal], None] = lambda _: None) -> CleanupResult:
    """Remove what the plan names. Interrupted, it can be planned and run again. Raises what the store raises."""
    result = CleanupResult()
    for removal in plan.removals:
        if removal.remove():
            result.removed.append(removal)
            report(removal)
        else:
            result.needed_after_all.append(removal)
    return result


def cleanup_page(plan: CleanupPlan, result: CleanupResult | None) -> str:
    """Markdown: what would go, or what went; what each project holds."""
    removals = plan.removals if result is None else result.removed
    freed = size(sum(removal.bytes for removal in removals))
    done = "would be removed (dry run)" if result is None else "removed"
    parts = [f"# Clean-up\n\n**{counted(len(removals), 'thing')}, {freed}, {done}.**"]
    parts += ["\n".join(f"- {warning}" for warning in plan.warnings)] if plan.warnings else []
    uses = [[use.project, size(use.bytes), f"{use.percent:.0f} %"] for use in plan.use]
    parts += ["## Projects before", markdown_table(["project", "holds", "of its quota"], uses, numbers=(1, 2))]
    if removals:
        rows = [[removal.kind, removal.name, size(removal.bytes), removal.why] for removal in removals[:MOST_ROWS]]
        parts += ["## What goes" if result is None else "## What went"]
        parts += [markdown_table(["kind", "what", "size", "why"], rows, numbers=(2,))]
    if plan.left_alone:
        parts += ["## Left alone", "\n".join(f"- {what}" for what in plan.left_alone)]
    return "\n\n".join(parts) + "\n"


def _packages(store: Store, older_than: timedelta) -> Iterator[Removal]:
    @cache
    def still_unused() -> dict[str, Unused]:
        """As the first removal finds it: between the plan and now, a job may have been started with one of them."""
        return {unused.name: unused for unused in find_unused(store, older_than)}

    def remove_package(planned: Unused) -> bool:
        unused = still_unused().get(planned.name)
        if unused is not None:
            remove(store, unused)
        return unused is not None

    for unused in find_unused(store, older_than):
        why = f"no job names it; last used on {unused.used_at:%Y-%m-%d}"
        yield Removal(Kind.PACKAGES, unused.name, unused.bytes, why, partial(remove_package, unused))
