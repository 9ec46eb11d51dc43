"""The life of one conversion, from a request to a new folder. Runs in the supervisor's runner thread.

    inspect -> decide what is shown -> worker -> list -> plan -> send | write -> read back -> rename

The worker opens what nobody else opens, pickles among it, and is thrown away afterwards. It says what it found and
sends bytes; names, headers, documents and files are made here, from a plan that was compared with tables of ours. So a
hostile checkpoint can fill tensors with nonsense, as any model can, and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence

from wan_compat.policies.conversion import ConversionPlan, PlannedFile, Source, choose_sources, plan_conversion
from wan_compat.policies.detection import detect
from wan_compat.policies.facts import ModelFacts, TensorFact
from wan_compat.policies.findings import Severity
from wan_compat.policies.limits import Deadlines, deadlines, memory_limit
from wan_compat.policies.models import decide_model
from wan_compat.policies.pace import Pace
from wan_compat.policies.phases import PhaseClock, phase_timeouts
from wan_compat.protocol import messages as m
from wan_compat.protocol.conversion import (
    CHUNK_BYTES,
    MAX_LISTED,
    MAX_SENT_BYTES,
    ConversionRequest,
    Stream,
    TensorPiece,
    WeightSource,
)
from wan_compat.protocol.errors import (
    CorruptFrame,
    DiskExceeded,
    GenerationFailed,
    JobCancelled,
    JobTimeout,
    ModelCorrupt,
    ModelInvalid,
    ProtocolViolation,
    WanCompatError,
    from_worker,
)
from wan_compat.protocol.results import ConversionReport, ConvertedFile, SandboxReport
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.inspection import read_facts, read_model
from wan_compat.supervisor.job_context import JobContext, narrower
from wan_compat.supervisor.new_folder import new_folder, refuse_target
from wan_compat.supervisor.phase_timeout import phase_timeout
from wan_compat.supervisor.repair import copy_file
from wan_compat.supervisor.restart_guard import conversion_key_of
from wan_compat.supervisor.worker import Worker
from wan_compat.supervisor.worker_log import open_log_file
from wan_compat.supervisor.worker_order import WorkerOrder

_SPARE_BYTES = 64 << 20  # documents, and what else is written meanwhile
_TELL_S = 0.2
_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2}


class ConversionRun:
    """One conversion. `execute` returns its report or raises the error with its code."""

    def __init__(self, request: ConversionRequest, context: JobContext) -> None:
        self._request = request
        self._context = context
        self._started = time.monotonic()
        self._phase: ev.PhaseName = "start_worker"
        self._timeout_s = narrower(request.timeout_s, context.policy.timeout_s)
        self._clock = PhaseClock(Deadlines())
        self._done = self._total = 0
        self._pace = Pace()
        self._told = 0.0

    def execute(self) -> ConversionReport:
        """Convert. Workers that die over a model are counted as those of jobs are (restart_guard.py)."""
        guard, key = self._context.pool.guard, conversion_key_of(self._request)
        try:
            report = self._execute()
        except WanCompatError as error:
            guard.failed(key, error)
            raise
        guard.succeeded(key)
        return report

    def _execute(self) -> ConversionReport:
        request, context = self._request, self._context
        output = os.path.abspath(request.output)
        facts = read_facts(request.model)
        refuse_target(output, facts.root)
        sources = choose_sources(facts, detect(facts))
        source_bytes = sum(source.fact.size for source in sources)
        if not request.dry_run:
            _require_room(os.path.dirname(output), source_bytes)
        requested = narrower(request.memory_limit_bytes, context.policy.memory_limit_bytes)
        order = WorkerOrder(
            admitted=tuple(source.fact for source in sources),
            pipeline=None,
            requested_limit_bytes=requested,
            memory_limit_bytes=memory_limit(requested, context.pool.share(read_host())),
            policy=context.policy,
            mode=request.mode,
            model=request.model,
        )
        limits = deadlines(
            weight_bytes=source_bytes,
            timeout_s=self._timeout_s,
            asked=phase_timeouts(request.phase_timeouts, context.policy.phase_timeouts),
        )
        self._clock = PhaseClock(limits)
        with contextlib.ExitStack() as stack:
            log_file = stack.enter_context(open_log_file(request.worker_log)) if request.worker_log else None
            worker = self._acquire(order, limits)
            stack.callback(context.pool.release, worker, keep=False)
            worker.log.tee(log_file)
            with worker.noting_violations():
                listed = self._open(worker, facts, sources, limits)
                plan = plan_conversion(facts, sources, listed, _flow_shifts())
                if request.dry_run:
                    files = [ConvertedFile(file.path, file.bytes, None, len(file.tensors)) for file in plan.files]
                    warnings: list[str] = []
                else:
                    folder = stack.enter_context(new_folder(output, outside=facts.root))
                    stack.enter_context(context.pool.leftover(folder))
                    files = self._write(worker, sources, plan, folder, limits)
                    warnings = _check(folder, plan, order.memory_limit_bytes)
            return self._report(worker, plan, output, files, warnings, source_bytes)

    # -- steps ---------------------------------------------------------------------------------------------------

    def _acquire(self, order: WorkerOrder, limits: Deadlines) -> Worker:
        self._enter("start_worker")
        self._context.pool.guard.wait_turn(
            conversion_key_of(self._request),
            "workers that convert this model",
            self._interrupted,
            lambda why: self._context.emit(ev.Warned(why)),
        )
        worker = self._context.pool.acquire(
            order,
            limits,
            fresh=True,
            cancelled=self._interrupted,
            wake_fd=self._context.wake_fd,
            job=self._context.job,
        )
        self._context.hold(worker.name)
        assert worker.tier is not None
        self._context.emit(ev.Started(worker.tier.tier.value, worker.layers))
        return worker

    def _open(
        self, worker: Worker, facts: ModelFacts, sources: Sequence[Source], limits: Deadlines
    ) -> dict[str, dict[str, TensorFact]]:
        """Have all files opened; return what is in each, by path."""
        self._enter("open")
        files = tuple(WeightSource(path=source.fact.path, is_pickle=source.is_pickle) for source in sources)
        worker.send(m.OpenWeights(files=files))
        listed: list[dict[str, TensorFact]] = [{} for _ in sources]
        opened = False
        while not opened:
            for message in self._pump(worker, limits):
                if isinstance(message, m.TensorsListed):
                    _take(message, listed)
                opened = opened or isinstance(message, m.WeightsOpened)
        for source, tensors in zip(sources, listed, strict=True):
            header = facts.weights.get(source.fact.path)
            if not source.is_pickle and header is not None and dict(header.tensors) != tensors:
                raise ModelCorrupt(
                    f"{source.fact.path!r} reads differently for the worker than its header said before",
                    hint="try again when nothing writes there",
                )
        return {source.fact.path: tensors for source, tensors in zip(sources, listed, strict=True)}

    def _write(
        self, worker: Worker, sources: Sequence[Source], plan: ConversionPlan, folder: str, limits: Deadlines
    ) -> list[ConvertedFile]:
        self._enter("convert")
        numbers = {source.fact.path: number for number, source in enumerate(sources)}
        self._total = plan.bytes
        written = []
        for file in plan.files:
            with _Output(os.path.join(folder, file.path)) as out:
                self._put(out, file.header)
                for pieces in _batches(file, numbers):
                    self._stream(worker, pieces, functools.partial(self._put, out), limits)
            if out.size != file.bytes:
                raise GenerationFailed(f"{file.path!r} has {out.size} bytes instead of {file.bytes}")
            written.append(ConvertedFile(file.path, out.size, out.sha256, len(file.tensors)))
        for path, text in plan.documents.items():
            with _Output(os.path.join(folder, path)) as out:
                out.write(text.encode())
            written.append(ConvertedFile(path, out.size, out.sha256, 0))
        for fact, path in plan.copies:
            place = os.path.join(folder, path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            for _ in copy_file(fact, place):
                self._check_stop()
            with open(place, "rb") as copied:
                digest = hashlib.file_digest(copied, "sha256").hexdigest()
            written.append(ConvertedFile(path, fact.size, digest, 0))
        return sorted(written, key=lambda file: file.path)

    def _stream(
        self,
        worker: Worker,
        pieces: tuple[TensorPiece, ...],
        put: Callable[[bytes], None],
        limits: Deadlines,
    ) -> None:
        """Have one list of pieces sent, and hand their bytes over as they come."""
        stream, ring = Stream.of(pieces), worker.ring
        left = stream.size
        worker.jobs_started += 1
        ring.begin(worker.jobs_started, stream.chunks)
        worker.send(m.SendTensors(job=worker.jobs_started, pieces=pieces))
        sent = False
        while not (sent and ring.complete):
            messages = self._pump(worker, limits)
            sent = sent or any(isinstance(message, m.TensorsSent) for message in messages)
            while ring.published > ring.consumed:
                with ring.front() as chunk:
                    # One copy, before anything looks at it: what is hashed is what is written.
                    data = bytes(chunk[: min(left, CHUNK_BYTES)])
                ring.release()
                put(data)
                left -= len(data)
                ring.collect()
            if sent and ring.published < stream.chunks.num_frames:
                raise CorruptFrame(f"the worker finished after {ring.published} of {stream.chunks.num_frames} chunks")
        ring.end()

    def _put(self, out: _Output, data: bytes) -> None:
        out.write(data)
        self._done += len(data)
        now = time.monotonic()
        if now - self._told > _TELL_S:
            self._told = now
            total = max(1, self._total >> 20)
            step = min(self._done >> 20, total)
            pace = self._pace.progress("convert", step, total, now)
            self._context.emit(ev.Progress("convert", step, total, pace.rate_s, pace.eta_s))

    def _report(
        self,
        worker: Worker,
        plan: ConversionPlan,
        output: str,
        files: list[ConvertedFile],
        warnings: list[str],
        source_bytes: int,
    ) -> ConversionReport:
        assert worker.tier is not None
        return ConversionReport(
            model=self._request.model,
            output=output,
            dry_run=self._request.dry_run,
            pipeline_class=plan.pipeline_class,
            architecture_type=plan.architecture.architecture_type,
            variant=plan.architecture.variant,
            files=files,
            dropped={path: list(names) for path, names in plan.dropped.items()},
            unused=list(plan.unused),
            reasons=list(plan.reasons),
            warnings=warnings,
            source_bytes=source_bytes,
            written_bytes=sum(file.bytes for file in files),
            total_s=time.monotonic() - self._started,
            sandbox=SandboxReport(
                tier=worker.tier.tier.value,
                layers=list(worker.layers),
                memory_limit_bytes=worker.order.memory_limit_bytes,
                self_test=dict(worker.self_test),
                outer=worker.outer_by,
            ),
            peak={"worker_rss_bytes": worker.peak_bytes()},
        )

    # -- waiting -------------------------------------------------------------------------------------------------

    def _pump(self, worker: Worker, limits: Deadlines) -> list[object]:
        heard = worker.pump(0.5, limits.silence_s, read=[self._context.wake_fd], stall_s=limits.stall_s)
        self._check_stop()
        for message in heard.messages:
            if isinstance(message, m.Failed):
                raise from_worker(message.code, message.message, message.fixes)
            if isinstance(message, m.Cancelled):
                raise GenerationFailed("the worker stopped by itself")
        return list(heard.messages)

    def _check_stop(self) -> None:
        if self._interrupted():
            raise JobCancelled(f"cancelled during {self._phase}")

    def _interrupted(self) -> bool:
        total, now = self._timeout_s, time.monotonic()
        if total is not None and now - self._started > total:
            raise JobTimeout(
                f"the conversion took longer than {total:g} s (during {self._phase})",
                hint="allow more with --timeout",
            )
        if (overdue := self._clock.overdue(now)) is not None:
            raise phase_timeout(overdue, self._request.phase_timeouts, self._context.policy.phase_timeouts)
        return self._context.cancelled()

    def _enter(self, phase: ev.PhaseName) -> None:
        self._phase = phase
        self._clock.begin(phase, time.monotonic())
        self._context.emit(ev.PhaseStarted(phase))


class _Output:
    """One new file, hashed while it is written, synced at the end."""

    def __init__(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._file = open(path, "xb")  # noqa: SIM115 - closed by __exit__
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())


def _take(message: m.TensorsListed, listed: list[dict[str, TensorFact]]) -> None:
    if message.file >= len(listed):
        raise ProtocolViolation(f"tensors of file {message.file}, but {len(listed)} files were to be opened")
    for tensor in message.tensors:
        if tensor.name in listed[message.file]:
            raise ProtocolViolation(f"the tensor {tensor.name!r} of file {message.file} was listed twice")
        size = math.prod(tensor.shape) * _DTYPE_BYTES.get(tensor.dtype, 1)
        listed[message.file][tensor.name] = TensorFact(tensor.dtype, tensor.shape, size)


def _batches(file: PlannedFile, numbers: dict[str, int]) -> Iterator[tuple[TensorPiece, ...]]:
    """Yield the file's tensors in order, as many at a time as one message and one stream may have."""
    batch: list[TensorPiece] = []
    room = MAX_SENT_BYTES
    for tensor in file.tensors:
        offset, left = tensor.offset, tensor.size
        while left:
            if not room or len(batch) == MAX_LISTED:
                yield tuple(batch)
                batch, room = [], MAX_SENT_BYTES
            size = min(left, room)
            batch.append(TensorPiece(file=numbers[tensor.source], name=tensor.source_name, offset=offset, size=size))
            offset, left, room = offset + size, left - size, room - size
    if batch:
        yield tuple(batch)


def _check(folder: str, plan: ConversionPlan, memory_limit_bytes: int) -> list[str]:
    """Read the new folder as any model is read; return why `generate` would not take it, if so.

    Raises:
        ModelInvalid: What was written is not what was planned.
    """
    facts = read_facts(folder)
    for item in facts.problems:
        if item.severity is Severity.ERROR:
            raise ModelInvalid(f"the converted model is broken: {item.message}", hint="please report this as a bug")
    for file in plan.files:
        planned = {tensor.name: TensorFact(tensor.dtype, tensor.shape, tensor.size) for tensor in file.tensors}
        if file.path not in facts.weights or dict(facts.weights[file.path].tensors) != planned:
            raise ModelInvalid(f"{file.path!r} does not read as it was planned", hint="please report this as a bug")
    if plan.pipeline_class is None:
        return []
    try:
        decide_model(read_model(folder), threads=1, memory_limit_bytes=memory_limit_bytes)
    except WanCompatError as error:
        return [f"generate would not run the result here: {error.message.replace(folder, 'the model')}"]
    return []


def _require_room(folder: str, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise DiskExceeded(
            f"the conversion can write {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in {folder!r}",
            hint="give --output on another disk",
        )


def _flow_shifts() -> dict[str, float]:
    """Return variant -> the shift of its sampling schedule, from the shipped registry."""
    from wan_compat.supervisor.registry import shipped_registry

    shifts: dict[str, float] = {}
    for entry in shipped_registry().models.values():
        shift = entry.defaults.flow_shift
        if entry.variant and isinstance(shift, int | float):
            shifts[entry.variant] = float(shift)
    return shifts
