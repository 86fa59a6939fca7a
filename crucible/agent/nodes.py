"""An attempt on several machines, seen from the first one, whose agent owns the attempt.

    node 0   claims, restores, publishes where to meet, trains, commits, records the outcome
    node 1…  restore the same commit, train, report (`crucible.agent.member`); they hold no claim and commit nothing

The nodes' agents know of each other through the store alone: the first one reads the others' reports, and they read its
heartbeat, its outcome and the fence. A request to stop on any machine thus stops and saves all of them, and a machine
that dies ends the attempt.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from crucible.agent.notices import Notice
from crucible.agent.workload import WorkloadEnd
from crucible.contract import Variable
from crucible.errors import StoreError
from crucible.jobs.job import Attempt
from crucible.jobs.records import EndReason, NodeReport, Rendezvous

SILENT_SECONDS = 20.0
"""A report that has not changed for so long is taken for the end of its machine."""
JOIN_SECONDS = 300.0
"""How long the other nodes may take to send their first report after the first one has published where to meet."""
FOLLOW_SECONDS = 10.0
"""How long the first node's workload may go on after another node's has failed."""
KILL_SECONDS = 5.0
"""From the notice that a node is gone to SIGKILL: the processes left wait for it, and cannot save."""
LOOK_SECONDS = 2.0
SOURCE, MISSING_NODE = "node", "missing-node"
"""Sources of notices: a node is gone, or never came."""

_LOST_PEER = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|gloo|nccl|DistBackendError|DistNetworkError|timed out",
    re.IGNORECASE,
)
"""In the message of a process that failed because another one had."""


@dataclass(frozen=True)
class Nodes:
    """How many machines and processes train together, and how to reach the first machine."""

    count: int = 1
    processes: int = 1
    """On each node."""
    address: str = "127.0.0.1"
    """Of this node, for the others."""
    rank: int = 0
    join_seconds: float = JOIN_SECONDS
    """How long the others may take to send their first report."""
    held: int = 1
    """How many machines the pool holds until the attempt ends: those that do not share a step's rows evenly, too."""

    def environment(self, rendezvous: Rendezvous | None) -> dict[str, str]:
        """What the launcher (`crucible.agent.torchrun`) needs to know."""
        own = {Variable.NODES: str(self.count), Variable.NODE_RANK: str(self.rank)}
        own[Variable.NODE_PROCESSES] = str(self.processes)
        own[Variable.NODE_ADDRESS] = self.address
        if rendezvous is not None:
            own[Variable.RENDEZVOUS] = f"{rendezvous.host}:{rendezvous.port}/{rendezvous.token}"
        return {str(name): value for name, value in own.items()}

    def rendezvous(self) -> Rendezvous:
        """A place to meet on this machine."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            port = listener.getsockname()[1]
        return Rendezvous(host=self.address, port=port, nodes=self.count, processes=self.processes)


def own_address() -> str:
    """The address of the interface that leads to the network; the loopback address where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


@dataclass
class _Seen:
    """What is known of one of the other nodes."""

    report: NodeReport | None = None
    silent_seconds: float = 0.0
    """Without a change, as far as the store could be read."""
    ended_seconds: float = 0.0
    """Since its workload ended."""
    looked_at: float | None = None


@dataclass
class NodeWatch:
    """Reads the other nodes' reports."""

    attempt: Attempt
    count: int
    join_seconds: float = JOIN_SECONDS
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[float], None] = time.sleep
    _seen: dict[int, _Seen] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def look(self) -> Notice | None:
        """Read all reports; returns why the attempt has to stop, if it has. Raises what the store raises."""
        with self._lock:
            self._read()
            found = (self._notice(node, seen) for node, seen in self._seen.items())
            return next((notice for notice in found if notice), None)

    @property
    def reports(self) -> dict[int, NodeReport]:
        """The other nodes' reports as they were read last."""
        with self._lock:
            return {node: seen.report for node, seen in self._seen.items() if seen.report is not None}

    @property
    def instances(self) -> list[str]:
        """The machines of the other nodes; empty where not all of them have reported theirs."""
        found = [report.instance for _, report in sorted(self.reports.items()) if report.instance]
        return found if len(found) == self.count - 1 else []

    def explain(self, end: WorkloadEnd) -> tuple[WorkloadEnd, Notice | None]:
        """What a workload that failed or was killed here really ended of: another node's failure, notice or death.

        Waits until each of the others has reported its own end or is silent, for half a minute at most.
        """
        until = self.clock() + SILENT_SECONDS + FOLLOW_SECONDS
        while self.clock() < until:
            try:
                with self._lock:
                    self._read()
                    ended = self._ended(end)
            except StoreError:
                ended = None
            if ended is not None:
                return ended
            self.wait(LOOK_SECONDS / 2)
        return end, None

    def _read(self) -> None:
        for node in range(1, self.count):
            seen = self._seen.setdefault(node, _Seen())
            report, now = self.attempt.read_node_report(node), self.clock()
            # A store that could not be read for a while must not look like a silent node.
            passed = 0.0 if seen.looked_at is None else min(now - seen.looked_at, 2 * LOOK_SECONDS)
            moved = report is not None and (seen.report is None or report.sequence != seen.report.sequence)
            seen.silent_seconds = 0.0 if moved else seen.silent_seconds + passed
            seen.ended_seconds = seen.ended_seconds + passed if report is not None and report.end_reason else 0.0
            seen.report, seen.looked_at = report, now

    def _notice(self, node: int, seen: _Seen) -> Notice | None:
        report = seen.report
        if report is None:
            if seen.silent_seconds < self.join_seconds:
                return None
            return replace(_gone(f"node {node} did not start within {self.join_seconds:.0f} s"), source=MISSING_NODE)
        if report.notice is not None:
            deadline = report.notice.deadline.timestamp() if report.notice.deadline else None
            reason = f"node {node}: {report.notice.reason}"
            return Notice(report.notice.source, reason, deadline, end_reason=report.notice_end_reason)
        if report.end_reason in (EndReason.FAILED, EndReason.KILLED, EndReason.UNFIT):
            if seen.ended_seconds < FOLLOW_SECONDS:
                return None
            return _gone(f"node {node}: {report.message}", report.end_reason)
        if report.end_reason is None and seen.silent_seconds >= SILENT_SECONDS:
            return _gone(f"node {node} ({report.host}) died: no sign of life for {seen.silent_seconds:.0f} s")
        return None

    def _ended(self, end: WorkloadEnd) -> tuple[WorkloadEnd, Notice | None] | None:
        """How the attempt ended, by the reports so far; None while one of them may still come."""
        reports = {node: seen.report for node, seen in self._seen.items() if seen.report is not None}
        for node, report in reports.items():
            silent = report.end_reason is None and self._seen[node].silent_seconds >= SILENT_SECONDS
            if (report.notice is not None or silent) and (notice := self._notice(node, self._seen[node])):
                return replace(end, end_reason=EndReason.KILLED), notice
        if len(reports) < self.count - 1 or any(report.end_reason is None for report in reports.values()):
            return None
        if _LOST_PEER.search(end.message):  # what counts is the one that failed by itself
            for node, report in reports.items():
                killed, failed = report.end_reason is EndReason.KILLED, report.end_reason is EndReason.FAILED
                if report.end_reason and (killed or (failed and not _LOST_PEER.search(report.message))):
                    code = end.exit_code if report.exit_code is None else report.exit_code
                    message = f"node {node}: {report.message}"
                    return WorkloadEnd(report.end_reason, message, code, tuple(report.last_lines)), None
        return end, None


def _gone(reason: str, end_reason: EndReason = EndReason.INTERRUPTED) -> Notice:
    return Notice(SOURCE, reason, time.time() + KILL_SECONDS, end_reason=end_reason)
