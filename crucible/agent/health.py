"""Whether this machine's GPUs are fit to train: looked at before an attempt starts, and by `crucible doctor`.

A machine that is not is left: the attempt ends as "machine unfit", which is not the user's failure. The trainer itself
adds a self-test of two seconds on the GPU (`crucible.training.self_test`).
"""

from __future__ import annotations

import importlib.util
import os
import queue
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from crucible.agent.nvml import Card, Nvml, visible_gpus

REHEARSED_UNFIT = "CRUCIBLE_REHEARSED_UNFIT"
"""For drills: the path of a file that makes this machine unfit for one attempt, with the reason in it."""

ANSWER_SECONDS = 30.0
"""For the driver: that of a broken card may hang, and the attempt with it."""
_MOST_RETIRED_PAGES = 60
"""NVIDIA replaces a card at 64."""
_MOST_MEMORY_HELD = 0.5
"""Share of the memory that others may hold; a run with `micro_batch: auto` takes what is left."""
_GIB = 2**30


def machine_problem(
    environment: Mapping[str, str] = os.environ,
    nvml: Nvml | None = None,
    *,
    uses_gpus: bool = True,
    answer_seconds: float = ANSWER_SECONDS,
) -> str | None:
    """Why an attempt should not train on this machine, as a message; None if nothing speaks against it.

    `nvml`: None loads it; where there is none, nothing is reported. A driver that does not answer
    within `answer_seconds` is a problem, too.
    """
    if rehearsed := _rehearsed(environment):
        return rehearsed
    if not uses_gpus:
        return None
    answers: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()

    def look() -> None:
        try:
            answers.put(_problems(environment, nvml or Nvml.load()))
        except Exception as error:  # noqa: BLE001 - raised below
            answers.put(error)

    threading.Thread(target=look, name="gpu-health", daemon=True).start()
    try:
        answer = answers.get(timeout=answer_seconds)
    except queue.Empty:
        return f"the NVIDIA driver did not answer within {answer_seconds:g} s"
    if isinstance(answer, Exception):
        raise answer
    return answer


def _problems(environment: Mapping[str, str], nvml: Nvml | None) -> str | None:
    if nvml is None:
        return None
    torch_cuda = torch_cuda_version()
    found = [problem for card in nvml.cards(visible_gpus(environment)) if (problem := card_problem(card, torch_cuda))]
    return "; ".join(found) or None


def card_problem(card: Card, torch_cuda: int | None) -> str | None:
    """Why this card is not fit to train; `torch_cuda`: the major version of CUDA that torch was built with."""
    reasons = list(card.slowdowns)
    if torch_cuda is not None and card.cuda is not None and card.cuda < torch_cuda:
        reasons.append(
            f"its driver {card.driver} supports CUDA {card.cuda}, and torch needs {torch_cuda}: update the driver, or "
            f"install a torch for CUDA {card.cuda}"
        )
    if card.uncorrected_errors:
        reasons.append(f"{card.uncorrected_errors} memory errors that could not be corrected since the driver started")
    if card.remapping_failed:
        reasons.append("broken memory rows that could not be replaced")
    if card.retirement_pending:
        reasons.append("broken memory pages that are retired only after a restart")
    if card.retired_pages is not None and card.retired_pages > _MOST_RETIRED_PAGES:
        reasons.append(f"{card.retired_pages} broken memory pages")
    if card.memory_bytes and card.used_bytes > _MOST_MEMORY_HELD * card.memory_bytes:
        held, total = card.used_bytes / _GIB, card.memory_bytes / _GIB
        reasons.append(f"other programs hold {held:.1f} of its {total:.1f} GiB")
    return f"GPU {card.number} ({card.name}): {', '.join(reasons)}" if reasons else None


def torch_cuda_version() -> int | None:
    """The major version of CUDA that the installed torch needs, without importing it; None for builds without CUDA."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=]*= *'(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else None


def _rehearsed(environment: Mapping[str, str]) -> str | None:
    """The drill's fault, which strikes one attempt."""
    path = environment.get(REHEARSED_UNFIT)
    if not path:
        return None
    try:
        reason = Path(path).read_text(encoding="utf-8").strip()
        Path(path).unlink()
    except OSError:
        return None
    return reason
