"""The threads that watch: notice sources; heartbeats and the job's records; how busy the machine is.

They only post events and read an immutable `Status`. Neither a store nor a driver that hangs must delay a notice.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from crucible.agent.cost_meter import CostMeter
from crucible.agent.metrics import MetricsRelay
from crucible.agent.nodes import LOOK_SECONDS, NodeWatch
from crucible.agent.notices import Notice, limit_reached
from crucible.agent.observer import Guarded, Trouble
from crucible.agent.plan import AttemptPlan
from crucible.agent.states import Fenced, Phase, State
from crucible.contract import metrics_line
from crucible.errors import FencedOut, RecordDamaged, StoreError
from crucible.jobs.job import Attempt
from crucible.jobs.records import Heartbeat, Limits


@dataclass(frozen=True)
class LimitsRead:
    """The limits in force, as the job's records have them now."""

    limits: Limits


@dataclass(frozen=True)
class SpentRead:
    """What the job's earlier attempts cost, in USD."""

    usd: float


@dataclass(frozen=True)
class Status:
    """A snapshot of a running attempt, for the threads that do not own its state."""

    state: State = field(default_factory=State)
    step: int = 0
    first_step_after_seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    saving: Mapping[str, float] = field(default_factory=dict)
    spent_before_usd: float | None = None
    """What the job's earlier attempts cost; None until it has been read."""

    def advanced(self, step: int, metrics: Mapping[str, float], start_step: int, seconds: float) -> Status:
        """After the workload reported that step, `seconds` after the claim; `saving` has what saves cost."""
        first = self.first_step_after_seconds
        if first is None and step > start_step:
            first = round(seconds, 3)
        shown = {name: value for name, value in metrics.items() if not name.startswith("checkpoint_")}
        return replace(
            self, step=max(self.step, step), metrics={**self.metrics, **shown}, first_step_after_seconds=first
        )


Post = Callable[[Notice | Fenced | Trouble | LimitsRead], None]


class Watching:
    """Starts the threads; `close` ends them."""

    def __init__(
        self,
        attempt: Attempt,
        plan: AttemptPlan,
        meter: CostMeter,
        observer: Guarded,
        relay: MetricsRelay,
        read_status: Callable[[], Status],
        post: Post,
        nodes: NodeWatch | None = None,
    ) -> None:
        self._attempt, self._plan, self._meter = attempt, plan, meter
        self._observer, self._relay, self._read_status, self._post = observer, relay, read_status, post
        self._nodes = nodes
        self._over = threading.Event()
        # Observers are called from these threads, too: the caller's context variables (whose run?) hold in all.
        sampling = (self._sample_machine,) if plan.sample_machine else ()
        others = (self._watch_nodes,) if nodes is not None else ()
        for work in (self._poll_sources, self._write_heartbeats, *sampling, *others):
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=(work,), name=work.__name__, daemon=True).start()

    def close(self) -> None:
        self._over.set()

    def _poll_sources(self) -> None:
        posted: set[Notice] = set()
        while not self._over.is_set():
            for source in self._plan.sources:
                try:
                    self._post_once(source.poll(), posted)
                except Exception as error:  # noqa: BLE001 - one broken source must not silence the others
                    self._post(Trouble(type(source).__name__, f"a source of notices does not work: {error!r}"))
            self._over.wait(self._plan.look_seconds)

    def _watch_nodes(self) -> None:
        assert self._nodes is not None
        posted: set[str] = set()
        while not self._over.wait(LOOK_SECONDS):
            if self._read_status().state.phase is not Phase.TRAINING:  # the first node may take its time to prepare
                continue
            try:
                notice = self._nodes.look()
            except Exception as error:  # noqa: BLE001 - a node that dies must be noticed later on
                message = str(error) or repr(error)
                self._post(Trouble("nodes", f"the other nodes' reports cannot be read: {message}"))
                continue
            self._follow_further_prices(self._nodes)
            if notice is not None and notice.source not in posted:
                posted.add(notice.source)
                self._post(notice)

    def _follow_further_prices(self, nodes: NodeWatch) -> None:
        """The attempt costs the sum over its machines, each at its own price."""
        for node, report in nodes.reports.items():
            price = report.usd_per_hour
            if price is not None and self._meter.set_price(price, node):
                machine = f"node {node} ({report.instance})" if report.instance else f"node {node}"
                together = f"all {nodes.count} nodes together ${self._meter.usd_per_hour:.4g}"
                self._observer.event("price", f"{machine} costs ${price:.4g} per hour, {together}")

    def _write_heartbeats(self) -> None:
        posted: set[Notice] = set()
        for sequence in itertools.count(1):
            next_one = time.monotonic() + self._plan.heartbeat_seconds
            looks: tuple[Callable[[], Notice | None], ...] = (
                self._follow_price,
                functools.partial(self._write_heartbeat, sequence),
                self._stop_requested,
                self._limit_reached,
                self._attempt.require_current,
            )
            for look in looks:  # a record that is damaged must not hide the others
                try:
                    self._post_once(look(), posted)
                except FencedOut as error:
                    self._post(Fenced(error))
                    return
                except RecordDamaged as error:
                    self._post(Trouble(str(error), str(error)))  # each record of its own
                except StoreError as error:
                    self._post(Trouble("store", f"no heartbeat could be written: {error}"))
                    break  # each look would wait for the same store
                except Exception as error:  # noqa: BLE001 - without heartbeats the attempt would count as lost
                    self._post(Trouble("watching", f"a heartbeat went wrong: {error!r}"))
            if self._over.wait(max(0.0, next_one - time.monotonic())):
                return

    def _sample_machine(self) -> None:
        assert self._plan.sample_machine is not None
        while not self._over.wait(self._plan.sample_seconds):
            status = self._read_status()
            if status.first_step_after_seconds is None or status.state.phase != Phase.TRAINING:
                continue
            try:
                sample = self._plan.sample_machine()
            except Exception as error:  # noqa: BLE001 - curves are not worth an attempt
                self._post(Trouble("machine", f"the machine's utilisation cannot be read any more: {error!r}"))
                return
            self._relay.add(metrics_line(status.step, time.time(), sample).strip().encode())

    def _post_once(self, notice: Notice | None, posted: set[Notice]) -> None:
        if notice is not None and notice not in posted:
            posted.add(notice)
            self._post(notice)

    def _write_heartbeat(self, sequence: int) -> None:
        status = self._read_status()
        heartbeat = Heartbeat(
            sequence=sequence,
            phase=status.state.phase,
            step=status.step,
            total_steps=self._plan.total_steps,
            committed_step=status.state.committed_step,
            seconds=round(self._meter.seconds(), 3),
            cost_usd=self._meter.usd(),
            usd_per_hour=self._meter.usd_per_hour,
            further_instances=self._nodes.instances if self._nodes else [],
            first_step_after_seconds=status.first_step_after_seconds,
            metrics=dict(status.metrics),
            saving=dict(status.saving),
        )
        self._attempt.write_heartbeat(heartbeat)
        self._relay.send()
        self._observer.heartbeat(heartbeat)

    def _follow_price(self) -> None:
        """A spot price may change while the machine runs: bill, cap and estimate go on with the new one."""
        if self._plan.current_price and (price := self._meter.follow(self._plan.current_price)) is not None:
            self._observer.event("price", f"the machine now costs ${price:.4g} per hour")

    def _stop_requested(self) -> Notice | None:
        try:
            request = self._attempt.read_stop_request()
        except RecordDamaged as error:  # it is there, so somebody wants it to stop
            return Notice("supervisor", f"the attempt was asked to stop; the request is damaged: {error}")
        return Notice("supervisor", request.reason, end_reason=request.end_reason) if request else None

    def _limit_reached(self) -> Notice | None:
        """The job's own money or time is used up; read each time, since a person may raise it meanwhile."""
        status = self._read_status()
        if status.spent_before_usd is None:
            return None
        limits = self._attempt.job.read_limits()
        self._post(LimitsRead(limits))
        seconds_to_save = status.saving.get("durable_seconds", 0.0) + 2 * self._plan.heartbeat_seconds
        reserve = self._meter.usd_per_hour / 3600 * seconds_to_save
        spent = status.spent_before_usd + self._meter.usd() + reserve
        return limit_reached(limits, spent, self._age_hours())

    def _age_hours(self) -> float:
        """Of the job: at its launch by the supervisor's clock, and this attempt's own seconds.

        This machine's time of day may be hours off. The wait for the machine is missing here; the supervisor, whose
        clock began the job, counts it.
        """
        at_launch = self._plan.launch.decided_at - self._attempt.job.read_spec().created_at
        return (at_launch.total_seconds() + self._meter.seconds()) / 3600
