"""Which lines the list has and in which order: supervisors, their workers with their jobs, what waits, what ended.

Pure. Sorting is of workers within their supervisor: a queue is shown in the order in which it will run, whatever is
sorted. A filter keeps what matches and the supervisor to which it belongs.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from wan_compat.protocol.status import JobStatus, SupervisorStatus, WorkerStatus

WAITING_SHOWN = 5
ENDED_SHOWN = 3


class Sort(enum.StrEnum):
    """What workers are sorted by. `AGE` is the order in which they were started, `ETA` the time
    left of their jobs' phases."""

    AGE = "age"
    MEMORY = "memory"
    CPU = "cpu"
    ETA = "eta"
    MODEL = "model"


class Condition(enum.StrEnum):
    """LIVE answers; SILENT exists but does not, or not with what is understood; GONE is no longer there."""

    LIVE = "live"
    SILENT = "silent"
    GONE = "gone"


@dataclasses.dataclass(frozen=True)
class Seen:
    """A supervisor as it was last heard of.

    Args:
        status: None while it has never answered.
        heard_s: When it last answered or was found; monotonic, as all `_s` of the monitor's state.
        trouble: Why it does not answer, if that is known.
        memory: Worker's id -> its share of its limit, oldest first.
    """

    id: str
    status: SupervisorStatus | None = None
    heard_s: float = 0.0
    condition: Condition = Condition.LIVE
    trouble: str = ""
    trouble_s: float = 0.0
    memory: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    sampled_s: float = float("-inf")


@dataclasses.dataclass(frozen=True)
class Target:
    """What can be selected. Names, not places: a selection stays with its job while the list moves."""

    supervisor: str
    kind: Literal["supervisor", "worker", "job"]
    id: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the list. `target` is None for remarks, which cannot be selected; `place` is that in the queue."""

    kind: Literal["supervisor", "worker", "running", "waiting", "ended", "remark"]
    seen: Seen
    target: Target | None = None
    worker: WorkerStatus | None = None
    job: JobStatus | None = None
    place: int = 0
    text: str = ""


def list_rows(
    supervisors: Iterable[Seen], *, sort: Sort = Sort.AGE, reverse: bool = False, text: str = "", expanded: bool = False
) -> tuple[Row, ...]:
    """Return the lines of the list.

    Args:
        text: Filter; upper and lower case are the same.
        expanded: List all waiting and ended jobs that are known instead of the first few.
    """
    found: list[Row] = []
    for seen in supervisors:
        head = Row("supervisor", seen, Target(seen.id, "supervisor", seen.id))
        all_of_it = not text or _matches(text, _words_of_supervisor(seen))
        rows = list(_rows_of(seen, sort, reverse, "" if all_of_it else text, expanded=expanded or bool(text)))
        if all_of_it or rows:
            found += [head, *rows]
    return tuple(found)


def _rows_of(seen: Seen, sort: Sort, reverse: bool, text: str, *, expanded: bool) -> Iterator[Row]:
    status = seen.status
    if status is None or seen.condition is Condition.GONE:
        return  # what it was last heard to do, nobody does any more
    jobs = {job.id: job for job in status.running}
    for worker in _sorted(status, sort, reverse):
        job = jobs.pop(worker.job, None) if worker.job else None
        if text and not _matches(text, (*_words_of_worker(worker), *(_words_of_job(job) if job else ()))):
            continue
        yield Row("worker", seen, Target(seen.id, "worker", worker.id), worker=worker, job=job)
        if job is not None:
            yield Row("running", seen, Target(seen.id, "job", job.id), worker=worker, job=job)
    for job in jobs.values():  # running, and as yet without a worker that says so
        if not text or _matches(text, _words_of_job(job)):
            yield Row("running", seen, Target(seen.id, "job", job.id), job=job)
    waiting = [each for each in enumerate(status.queued, 1) if not text or _matches(text, _words_of_job(each[1]))]
    shown = waiting if expanded else waiting[:WAITING_SHOWN]
    for place, job in shown:
        yield Row("waiting", seen, Target(seen.id, "job", job.id), job=job, place=place)
    hidden = status.queued_count - len(shown) if not text else 0
    if hidden > 0:
        yield Row("remark", seen, text=f"{hidden} more waiting")
    ended = [job for job in status.ended if not text or _matches(text, _words_of_job(job))]
    for job in ended if expanded else ended[:ENDED_SHOWN]:
        yield Row("ended", seen, Target(seen.id, "job", job.id), job=job)


def _sorted(status: SupervisorStatus, sort: Sort, reverse: bool) -> list[WorkerStatus]:
    left = {job.id: job.eta_s for job in status.running}

    def key(worker: WorkerStatus) -> tuple[object, ...]:
        match sort:
            case Sort.MEMORY:
                return (-worker.rss_bytes,)
            case Sort.CPU:
                return (-(worker.cpu_percent or 0.0),)
            case Sort.ETA:
                eta = left.get(worker.job or "")
                return (eta is None, eta or 0.0)
            case Sort.MODEL:
                return (worker.model.casefold(),)
            case Sort.AGE:
                return (worker.started_unix_s,)

    # The id decides between equals, or lines of equal workers would change places at every look.
    return sorted(status.workers, key=lambda worker: (*key(worker), worker.id), reverse=reverse)


def _matches(text: str, words: Iterable[str | None]) -> bool:
    wanted = text.casefold()
    return any(wanted in word.casefold() for word in words if word)


def _words_of_supervisor(seen: Seen) -> tuple[str | None, ...]:
    status = seen.status
    return (seen.id,) if status is None else (seen.id, status.program, str(status.pid), status.mode)


def _words_of_worker(worker: WorkerStatus) -> tuple[str | None, ...]:
    return (worker.id, str(worker.pid), worker.activity, worker.mode, worker.model, *worker.unusual)


def _words_of_job(job: JobStatus) -> tuple[str | None, ...]:
    return (
        job.id,
        job.state,
        job.model,
        job.prompt,
        job.label,
        job.group,
        job.phase,
        job.mode,
        job.output,
        job.error_code,
    )
