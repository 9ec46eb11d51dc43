"""What becomes of an item, for each way in which its job can end; the jobs are stand-ins that end as they are told."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wan_compat.policies.batch.expansion import expand
from wan_compat.policies.batch.items import Item, Line
from wan_compat.policies.batch.progress import Progress, Shard, left_to_do
from wan_compat.policies.batch.records import Done, Failed, Learned, Paused, Released, Started
from wan_compat.protocol.errors import (
    DiskExceeded,
    JobCancelled,
    MemoryExceeded,
    OutputExists,
    SandboxUnavailable,
    WanCompatError,
    WorkerDied,
)
from wan_compat.protocol.results import GenerationMetadata, OutputReport, SandboxReport, Timings, VideoGenerationResult
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.batch import endings, room, runner
from wan_compat.supervisor.batch.contract import Outcome, RunOptions
from wan_compat.supervisor.batch.folder import BatchFolder
from wan_compat.supervisor.batch.journal import Follower, Journal
from wan_compat.supervisor.batch.leases import Leases, Owner
from wan_compat.supervisor.batch.preflight import BatchPlan
from wan_compat.supervisor.batch.reading import BatchFile

TILES = {
    "error": "memory_exceeded: x",
    "action": "decode in tiles of 256 pixels (seams may show)",
    "outcome": "succeeded",
}


def result_of(request: GenerationRequest, recovery: list[dict[str, str]] | None = None) -> VideoGenerationResult:
    """A finished job's result, with its video standing."""
    assert request.output is not None
    Path(request.output).write_bytes(b"video")
    return VideoGenerationResult(
        success=True,
        output_path=request.output,
        frames=None,
        generation_time=1.0,
        memory_used=1,
        metadata=GenerationMetadata(request.model, "WanPipeline", [], {}, {}),
        errors=[],
        warnings=[],
        timings=Timings(total_s=1.0),
        sandbox=SandboxReport("A", [], 1, {}),
        peak={},
        recovery=recovery or [],
        output=OutputReport(request.output, "h264", 96, 64, 8.0, 5, "0" * 64, 5),
    )


class StandIn:
    """A supervisor whose jobs end at once, as `ends` says of each submission in turn; the last one for all others."""

    def __init__(self, *ends: Callable[[GenerationRequest], Any]) -> None:
        self._ends = list(ends)
        self.requests: list[GenerationRequest] = []

    def submit(self, request: GenerationRequest, *, label: str, group: str) -> Any:
        self.requests.append(request)
        end = self._ends.pop(0) if len(self._ends) > 1 else self._ends[0]
        return StandInJob(end(request), f"j{len(self.requests)}")


class StandInJob:
    def __init__(self, outcome: Any, id: str) -> None:
        self._outcome, self.id = outcome, id

    def events(self) -> Iterator[ev.Event]:
        yield ev.PhaseStarted("denoise")

    def result(self, timeout: float | None = None) -> Any:
        if isinstance(self._outcome, WanCompatError):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        pass


class Heard:
    """A view that remembers remarks."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def started(self, *_: object) -> None: ...
    def event(self, *_: object) -> None: ...
    def ended(self, *_: object) -> None: ...
    def counts(self, *_: object) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclasses.dataclass
class Ran:
    outcome: Outcome
    records: list[Any]
    notes: list[str]

    def of(self, kind: type) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]


@pytest.fixture
def items() -> list[Item]:
    lines = [Line(number, {"prompt": f"fox {number}", "model": "/m", "seed": number}) for number in (1, 2, 3)]
    return expand(lines, {})[0]


@pytest.fixture
def run(tmp_path: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    monkeypatch.setattr(runner, "LOOK_S", 0.01)
    monkeypatch.setattr(room, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(endings, "LOOK_AGAIN_S", 0.01)

    def once(supervisor: StandIn, **options: Any) -> Ran:
        folder = BatchFolder(tmp_path / "out")
        folder.make()
        progress = Progress(Follower().fresh(folder.journals()))
        file = BatchFile("b.txt", "/b.txt", "/", Line(0, {}), (), ())
        left = tuple(left_to_do(items, progress, retry_failed=options.pop("retry_failed", False)))
        plan = BatchPlan(file, folder, tuple(items), progress, left, 0)
        view = Heard()
        with Journal(folder.journal(Shard()), Shard()) as journal:
            outcome = runner.BatchRun(plan, RunOptions(**options), supervisor, journal, view).run()  # type: ignore[arg-type]
        assert os.listdir(folder.leases) == []
        return Ran(outcome, list(Follower().fresh(folder.journals())), view.notes)

    return once


def done(request: GenerationRequest) -> VideoGenerationResult:
    return result_of(request)


def fails(error: WanCompatError) -> Callable[[GenerationRequest], WanCompatError]:
    return lambda _request: error


def test_each_item_is_begun_once_and_recorded_once(run: Callable[..., Ran], items: list[Item]) -> None:
    ran = run(StandIn(done), fields={"recover": False})
    assert (ran.outcome.done, ran.outcome.left) == (3, 0)
    story = [(type(record), record.key, record.n) for record in ran.records if hasattr(record, "n")]
    assert story == [(kind, item.key, n) for item in items for kind, n in ((Started, 1), (Done, 2))]


def test_a_failure_that_can_end_otherwise_is_tried_again_and_a_refusal_is_not(run: Callable[..., Ran]) -> None:
    refusal = OutputExists("no")
    supervisor = StandIn(fails(WorkerDied("gone")), fails(WorkerDied("gone")), done, fails(refusal), done)
    ran = run(supervisor, max_retries=2)
    assert [record.attempt for record in ran.of(Started)] == [1, 2, 3, 1, 1]
    assert [(record.code, record.attempt) for record in ran.of(Failed)] == [("output_exists", 1)]
    again = run(StandIn(done), retry_failed=True)
    assert again.outcome.done == 1 and again.records[-2].n == 4


def test_a_recovery_that_helped_is_the_start_of_the_following_items(run: Callable[..., Ran]) -> None:
    supervisor = StandIn(lambda request: result_of(request, [TILES]), done)
    ran = run(supervisor)
    assert [request.vae_tiling for request in supervisor.requests] == [None, True, True]
    assert [record.fields for record in ran.of(Learned)] == [{"vae_tiling": True}]
    assert ran.of(Done)[0].recovery == (TILES,)
    assert any("start with what helped" in note for note in ran.notes)


def test_what_was_learned_is_left_out_where_it_does_harm(run: Callable[..., Ran]) -> None:
    supervisor = StandIn(lambda request: result_of(request, [TILES]), fails(MemoryExceeded("tiles are too much")), done)
    ran = run(supervisor)
    assert [request.vae_tiling for request in supervisor.requests] == [None, True, None, True]
    assert ran.outcome.done == 3 and ran.of(Failed) == []


def test_a_disk_that_is_full_for_a_job_is_waited_for_and_not_forever(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = fails(DiskExceeded("no room"))
    looks = iter([False, False, True])
    monkeypatch.setattr(room, "has_room", lambda _folder: next(looks, True))
    ran = run(StandIn(full, done))
    assert ran.outcome.done == 3 and [record.room for record in ran.of(Paused)] == [False, True]
    assert [record.attempt for record in ran.of(Started)] == [1, 1, 1, 1], "it was nobody's attempt"
    assert sum("The disk is full" in note for note in ran.notes) == 1


def test_a_full_disk_that_is_not_the_batchs_fails_the_item(run: Callable[..., Ran]) -> None:
    ran = run(StandIn(*[fails(DiskExceeded("no room elsewhere"))] * (endings.MAX_DISK_FAILURES + 1), done))
    assert [record.code for record in ran.of(Failed)] == ["disk_exceeded"] and ran.outcome.done == 2


def test_a_record_that_finds_no_room_waits_and_the_video_is_not_made_again(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    append, refused = Journal.append, queue.SimpleQueue[int]()

    def full_at_first(self: Journal, record: Any) -> None:
        if isinstance(record, Done | Paused) and refused.qsize() < 3:
            refused.put(1)
            raise DiskExceeded("no room for a record")
        append(self, record)

    monkeypatch.setattr(Journal, "append", full_at_first)
    supervisor = StandIn(done)
    ran = run(supervisor)
    assert len(supervisor.requests) == 3 and len(ran.of(Done)) == 3 and refused.qsize() == 3


def test_what_would_fail_every_item_ends_the_run(run: Callable[..., Ran]) -> None:
    ran = run(StandIn(fails(SandboxUnavailable("no namespaces"))))
    assert isinstance(ran.outcome.fatal, SandboxUnavailable) and ran.outcome.left == 3
    assert len(ran.of(Started)) == 1 and len(ran.of(Released)) == 1 and ran.of(Failed) == []


def test_a_job_that_somebody_else_cancels_has_failed(run: Callable[..., Ran]) -> None:
    ran = run(StandIn(fails(JobCancelled("cancelled from a monitor")), done), max_retries=5)
    assert [record.code for record in ran.of(Failed)] == ["job_cancelled"] and ran.outcome.done == 2


def test_an_item_that_was_taken_over_is_left_to_its_new_owner(
    run: Callable[..., Ran], items: list[Item], tmp_path: Path
) -> None:
    """This process slept for a minute; another one made the video meanwhile, and this one's has another name."""
    owner = Owner("other", "node7", "another machine", 1, "1")
    out, first = tmp_path / "out", items[0]
    kept = out / "kept.mp4"

    def slept(request: GenerationRequest) -> WanCompatError:
        assert request.output is not None
        (out / ".batch" / "leases" / f"{first.key}.2").write_text(json.dumps(dataclasses.asdict(owner)))
        Path(request.output).write_bytes(b"theirs")
        asked = request.model_dump(mode="json", exclude_defaults=True)
        video = {"sha256": _sha256(b"theirs")}
        document = {"kind": "wan-compat video", "schema_version": 1, "video": video, "request": asked}
        Path(f"{request.output}.json").write_text(json.dumps(document | {"model": {"path": request.model}}))
        kept.write_bytes(b"ours")
        with Journal(str(out / ".batch" / "journal-2-of-2.jsonl"), Shard(2, 2)) as theirs:
            theirs.append(
                Done(key=first.key, n=3, run="other", at=1.0, output=first.output, sha256=video["sha256"], bytes=6)
            )
        (out / ".batch" / "leases" / f"{first.key}.2").rename(out / ".batch" / "leases" / f"{first.key}.3")
        return OutputExists("made by somebody else meanwhile", details={"kept": str(kept)})

    ran_before = Leases.close

    def close(self: Leases) -> None:
        ran_before(self)
        for path in (out / ".batch" / "leases").iterdir():
            path.unlink()  # theirs, which is not ours to release

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Leases, "close", close)
        ran = run(StandIn(slept, done))
    assert not kept.exists() and (out / first.output).read_bytes() == b"theirs"
    assert [record.run for record in ran.of(Done) if record.key == first.key] == ["other"]
    assert (ran.outcome.done, ran.outcome.elsewhere, ran.outcome.failed) == (2, 1, 0)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
