"""The jobs that clients of a control socket submitted: while they run, and for a while after, since clients come back.

Belongs to the control thread. A job that is over is settled: its result stands ready to be sent, frames in sealed
memory, and the job itself with all that it holds is let go. What is kept is bounded in number and in bytes of frames.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wan_compat.protocol import control as c
from wan_compat.protocol.errors import GenerationFailed, InvalidRequest, ResourceExceeded, UnknownJob, WanCompatError
from wan_compat.protocol.results import VideoGenerationResult
from wan_compat.supervisor import event_wire
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.sealed_frames import seal_frames

if TYPE_CHECKING:
    from wan_compat.protocol.status import JobStatus
    from wan_compat.supervisor.event_log import EventLog
    from wan_compat.supervisor.job import Job


@dataclasses.dataclass
class KeptJob:
    """One job. `job` is None once it is settled; `answer` and `status` are there from then on."""

    id: str
    key: str
    log: EventLog
    job: Job[Any] | None
    answer: c.JobResult | c.Refusal | None = None
    status: JobStatus | None = None
    frames: int = -1  # descriptor of sealed memory
    frames_bytes: int = 0
    fetched: bool = False

    def close(self) -> None:
        if self.frames >= 0:
            os.close(self.frames)
            self.frames, self.frames_bytes = -1, 0


class KeptJobs:
    def __init__(self) -> None:
        self._jobs: dict[str, KeptJob] = {}  # in the order in which they came
        self._by_key: dict[str, str] = {}

    def add(self, key: str, job: Job[Any]) -> KeptJob:
        kept = self._jobs[job.id] = KeptJob(job.id, key, job.log, job)
        self._by_key[key] = job.id
        over = [one for one in self._jobs.values() if one.job is None]
        for one in over[: max(0, len(over) - c.MAX_KEPT_JOBS)]:
            self._forget(one)
        return kept

    def of_key(self, key: str) -> KeptJob | None:
        """Return the job that was submitted with this key."""
        job_id = self._by_key.get(key)
        return None if job_id is None else self._jobs.get(job_id)

    def get(self, job_id: str) -> KeptJob:
        """Return a job by its id. Raises UnknownJob."""
        try:
            return self._jobs[job_id]
        except KeyError:
            raise UnknownJob(
                f"no client submitted a job {job_id} here, or it was over so long ago that it is forgotten",
                hint="see `wan-compat monitor --once` for the jobs that there are",
            ) from None

    def is_live(self, job_id: str) -> bool:
        """Whether a job is kept and not over."""
        return job_id in self._jobs and self._jobs[job_id].job is not None

    def settle(self, kept: KeptJob) -> None:
        """Make the answer of a job that is over, once."""
        if kept.job is None or not kept.log.is_over:
            return
        try:
            kept.answer = self._with_result(kept, kept.job)
        except WanCompatError as error:
            kept.answer = event_wire.refusal(error)
        except Exception as error:  # noqa: BLE001 - a result that cannot cross must not take the socket from the others
            cause = GenerationFailed(f"the result cannot cross the socket: {type(error).__name__}: {error}")
            kept.answer = event_wire.refusal(cause)
        kept.status = kept.job.status()
        kept.job = None
        self._bound_frames()

    def _with_result(self, kept: KeptJob, job: Job[Any]) -> c.JobResult:
        """Return the answer of a job, its frames put into sealed memory; raise what ended it, if nothing stands."""
        failed: WanCompatError | None = None
        try:
            result = job.result(0)
        except WanCompatError as error:
            if not error.finished:
                raise
            failed, result = error, VideoGenerationResult.of_videos(error.finished)
        if isinstance(result, VideoGenerationResult) and result.frames is not None:
            shown = VideoGenerationResult.of_videos(
                [dataclasses.replace(one, frames=None, others=[]) for one in result.videos]
            )
            if failed is None:
                kept.log.replace_last(ev.Finished(shown))
            else:
                failed.finished = tuple(shown.videos)  # as the log's last event has it
            videos = [one.frames.frames for one in result.videos if one.frames is not None]
            kept.frames = seal_frames(videos)
            kept.frames_bytes = sum(frames.nbytes for frames in videos)
        return event_wire.job_result(result, failed)

    def answer(self, kept: KeptJob) -> tuple[c.JobResult | c.Refusal, int | None]:
        """Return the answer to GetResult and the descriptor to send along, which stays ours."""
        self.settle(kept)
        if kept.answer is None:
            raise InvalidRequest(f"job {kept.id} is not over", hint="wait for its last event")
        kept.fetched = True
        is_with_frames = isinstance(kept.answer, c.JobResult) and (
            kept.answer.generation is not None and kept.answer.generation.frames is not None
        )
        return kept.answer, kept.frames if is_with_frames else None

    def unfetched(self) -> Iterator[KeptJob]:
        """Yield the jobs whose result nobody has asked for."""
        return (kept for kept in self._jobs.values() if not kept.fetched and isinstance(kept.answer, c.JobResult))

    def close(self) -> None:
        for kept in self._jobs.values():
            kept.close()
        self._jobs.clear()
        self._by_key.clear()

    def _forget(self, kept: KeptJob) -> None:
        kept.close()
        del self._jobs[kept.id]
        with contextlib.suppress(KeyError):
            del self._by_key[kept.key]

    def _bound_frames(self) -> None:
        """Let the frames of the oldest results go while all are too much; the newest stay whatever their size."""
        total = sum(kept.frames_bytes for kept in self._jobs.values())
        holding = [kept for kept in self._jobs.values() if kept.frames >= 0]
        for place, kept in enumerate(holding[:-1]):
            if total <= c.MAX_KEPT_FRAME_BYTES and len(holding) - place <= c.MAX_KEPT_FRAMES:
                return
            total -= kept.frames_bytes
            kept.close()
            failed = kept.answer.error if isinstance(kept.answer, c.JobResult) else None
            kept.answer = failed or event_wire.refusal(
                ResourceExceeded(
                    f"the frames of job {kept.id} were not fetched in time, and made room for others'",
                    hint="fetch results as they come, or ask for files with output",
                )
            )
