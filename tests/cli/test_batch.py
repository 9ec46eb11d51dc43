"""`wan-compat batch` as a user runs it: the real program, with workers that need no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import signal
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.cli.conftest import Ended, RunCli, command
from tests.crash_loop import SMALL, crash_loop, sha256
from wan_compat import Supervisor
from wan_compat.policies.batch.expansion import expand
from wan_compat.policies.batch.items import Line
from wan_compat.policies.batch.progress import Shard
from wan_compat.policies.batch.records import Done, Failed, Learned, Released, Started, encode
from wan_compat.supervisor import client
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.batch import room
from wan_compat.supervisor.batch.folder import BatchFolder, held
from wan_compat.supervisor.batch.journal import Follower
from wan_compat.supervisor.batch.leases import STALE_S, Owner
from wan_compat.supervisor.batch.reading import FORMATS
from wan_compat.supervisor.batch.status import read_status
from wan_compat.supervisor.cli import main
from wan_compat.supervisor.cli.batch_run import FormatIn
from wan_compat.supervisor.cli.batch_view import BatchBars
from wan_compat.supervisor.cli.session import Session

PROGRAMS = Path(__file__).resolve().parents[1] / "programs"
ZYGOTE = PROGRAMS / "misbehaving_zygote.py"
FINE = "well"  # prompts are what a worker does


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Supervisor]:
    """One for all runs of this file; a worker behaves as the prompt of its job says."""
    with Supervisor(workers=2) as made:
        made._zygote_program = (str(ZYGOTE), "as-asked")
        yield made


@pytest.fixture
def batch(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Run `batch run` in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client, "Supervisor", lambda **_options: contextlib.nullcontext(supervisor))

    def run(file: Path, out: Path, *options: str | Path) -> Ended:
        arguments = ["batch", "run", file, "--out", out, "--model", tiny_model("t2v"), *SMALL, *options]
        capfd.readouterr()
        code = main.main([str(each) for each in arguments])
        return Ended(code, *capfd.readouterr())

    return run


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def records(out: Path, kind: type | tuple[type, ...] = object) -> list[Any]:
    found = Follower().fresh(sorted(map(str, (out / ".batch").glob("journal-*.jsonl"))))
    return [record for record in found if isinstance(record, kind)]


def videos(out: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in out.glob("*.mp4")}


def begun(out: Path) -> bool:
    return (out / ".batch").is_dir() and bool(records(out, Started))


@contextlib.contextmanager
def meanwhile(condition: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """Do something, from another thread, as soon as a condition holds."""

    def wait_and_act() -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "it never came to that"
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_formats_are_those_that_are_read() -> None:
    assert tuple(each.value for each in FormatIn) == FORMATS


def test_a_batch_goes_on_where_the_file_was_changed_and_makes_nothing_twice(
    batch: Callable[..., Ended], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first, second = {"prompt": FINE}, {"prompt": FINE, "negative": "x", "seeds": [4, 5]}
    file = write(tmp_path / "b.jsonl", {"defaults": {"fps": 4}}, first, second)
    ended = batch(file, out, "--json", "--dry-run")
    assert ended.code == 0 and not out.exists() and len(ended.document["left"]) == 3
    ended = batch(file, out, "--json", "--workers", "2")
    assert ended.code == 0, ended
    summary = ended.document
    assert (summary["items"], summary["done"], summary["run"]["done"]) == (3, 3, 3)
    assert json.loads((out / "summary.json").read_bytes()) == summary
    made = videos(out)
    assert {"0002-well-4.mp4", "0003-well-5.mp4"} < set(made)
    assert {record.output: record.sha256 for record in records(out, Done)} == made
    assert json.loads((out / "0002-well-4.mp4.json").read_bytes())["request"]["seed"] == 4
    assert "0002-well-4.mp4" in (out / "report.html").read_text()
    # A line before the others, one that is changed, one that is gone: only what is new is made.
    write(file, {"defaults": {"fps": 4}}, {"prompt": FINE, "seed": 9}, second | {"steps": 3})
    ended = batch(file, out)
    assert ended.code == 0, ended
    assert "The file was changed: 3 videos of earlier runs" in ended.err and "3 of 3 videos are done" in ended.out
    assert "Line 3 makes 0002-well-4-" in ended.err, "its name is taken by the video of the line as it was"
    now = videos(out)
    assert len(now) == 6 and made.items() <= now.items()
    write(file, {"defaults": {"fps": 4}}, first, second)
    assert batch(file, out).code == 0 and videos(out) == now
    # A video that somebody removed is made again.
    (out / "0002-well-4.mp4").unlink()
    ended = batch(file, out, "--json")
    assert ended.code == 0 and ended.document["run"]["done"] == 1 and videos(out) == now
    assert main.main(["batch", "status", str(out), "--json"]) == 0
    status = json.loads(capfd.readouterr().out)
    assert (status["items"], status["done"], status["running"], status["waiting"]) == (3, 3, [], 0)
    assert main.main(["batch", "status", str(out)]) == 0 and "3 of 3 done" in capfd.readouterr().out


def test_what_the_policy_does_not_allow_is_refused_before_a_folder_is_made(
    batch: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "Supervisor", Supervisor)
    file = write(tmp_path / "b.jsonl", {"prompt": FINE})
    for options, code in ((("--min-tier", "E"), 5), (("--mode", "trust"), 2), (("--memory-limit", "100TB"), 2)):
        ended = batch(file, tmp_path / "out", *options, "--json")
        assert ended.code == code and not (tmp_path / "out").exists(), ended


def test_one_bad_line_of_a_thousand_is_named_and_nothing_starts(batch: Callable[..., Ended], tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"prompt": f"fox {number}"} for number in range(1000)]
    lines[616]["num_frames"] = 6
    file = write(tmp_path / "b.jsonl", *lines)
    ended = batch(file, tmp_path / "out")
    assert ended.code == 2 and not (tmp_path / "out").exists()
    assert f"{file}:617: num_frames: num_frames is 6" in ended.err.splitlines()[0]


BAD_LINES: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "x", "sead": 1}, "2: sead: is unknown; 'seed' is meant"),
    ({"prompt": "x", "width": 70}, "3: width: width is 70"),
    ({"prompt": "x", "image": "nothing.png"}, "4: image: "),
    ({"prompt": "x", "model": "nowhere"}, "5: model: 'nowhere' is"),
    ({"prompt": "x", "output": "../../x"}, "6: output: the name '../../x.mp4' has '/'"),
    ({"prompt": "x", "format": "avi"}, "7: model: there is no format 'avi'"),
    ({"prompt": "x", "mode": "trust"}, "8: mode: is for the command line"),
    ({"prompt": "x", "seed": 1, "output": "same"}, ""),
    ({"prompt": "y", "seed": 1, "output": "same"}, "10: output: 'same.mp4' is written by line 9, too"),
]


def test_everything_that_is_wrong_is_told_at_once(batch: Callable[..., Ended], tmp_path: Path) -> None:
    file = write(tmp_path / "b.jsonl", {"prompt": "fine"}, *(line for line, _ in BAD_LINES))
    ended = batch(file, tmp_path / "out", "--json")
    assert ended.code == 2 and not (tmp_path / "out").exists()
    problems = ended.document["error"]["details"]["problems"]
    wanted = [why for _, why in BAD_LINES if why]
    assert len(problems) == len(wanted), problems
    for problem, why in zip(problems, wanted, strict=True):
        assert problem.startswith(f"{file}:{why}"), problem


def test_a_wrong_default_is_not_told_for_every_line(batch: Callable[..., Ended], tmp_path: Path) -> None:
    file = write(tmp_path / "b.jsonl", {"defaults": {"fps": 0}}, *({"prompt": str(number)} for number in range(500)))
    problems = batch(file, tmp_path / "out", "--json").document["error"]["details"]["problems"]
    assert len(problems) == 11 and problems[-1] == "and 490 more, of the same kinds"


def test_a_file_that_is_somebody_elses_is_not_touched(batch: Callable[..., Ended], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "fox.mp4").write_text("precious")
    ended = batch(write(tmp_path / "b.jsonl", {"prompt": "x", "output": "fox.mp4"}), out)
    assert ended.code == 2 and "'fox.mp4' exists" in ended.err
    assert (out / "fox.mp4").read_text() == "precious" and not (out / ".batch").exists()


def test_a_file_that_is_somebody_elses_is_replaced_when_that_is_asked_for(
    batch: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "elsewhere.mp4").write_text("precious")
    (out / "fox.mp4").write_text("old")
    (out / "link.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    fox = {"prompt": FINE, "seed": 1, "output": "fox.mp4"}
    ended = batch(write(tmp_path / "b.jsonl", fox, {"prompt": "x", "output": "link.mp4"}), out, "--overwrite")
    assert ended.code == 2 and "'link.mp4' exists" in ended.err and "fox.mp4" not in ended.err
    (out / "link.mp4").unlink()
    file = write(tmp_path / "b.jsonl", fox)
    assert batch(file, out, "--overwrite").code == 0
    made = videos(out)
    assert made["fox.mp4"] == json.loads((out / "fox.mp4.json").read_text())["video"]["sha256"]
    assert [record.replaces for record in records(out, Started)] == [True]
    assert batch(file, out, "--overwrite").code == 0 and videos(out) == made  # what is the batch's own stays
    assert len(records(out, Started)) == 1
    # As if it had been killed before the sidecar: that the name was free nobody can say, so it is nobody's.
    journal = out / ".batch" / "journal-1-of-1.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if b'"done"' not in line))
    (out / "fox.mp4.json").unlink()
    assert batch(file, out).code == 2
    assert batch(file, out, "--overwrite").code == 0 and (out / "fox.mp4.json").exists()
    assert (tmp_path / "elsewhere.mp4").read_text() == "precious"


def test_a_link_in_place_of_the_batchs_own_folder_is_not_followed(batch: Callable[..., Ended], tmp_path: Path) -> None:
    file, elsewhere = write(tmp_path / "b.jsonl", {"prompt": FINE}), tmp_path / "elsewhere"
    elsewhere.mkdir()
    for place in (".batch", ".batch/leases"):
        out = tmp_path / place.replace("/", "_")
        (out / place).parent.mkdir(parents=True)
        (out / place).symlink_to(elsewhere)
        assert batch(file, out, "--json").document["error"]["code"] == "output_not_writable"
    assert list(elsewhere.iterdir()) == []


def test_failures_are_nine_and_tried_again_only_when_asked(batch: Callable[..., Ended], tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = write(tmp_path / "b.jsonl", {"prompt": "denoise:exit"}, {"prompt": FINE}, {"prompt": FINE})
    options = ("--no-recovery", "--max-retries", "1")
    ended = batch(file, out, *options, "--fail-fast", "--json")
    assert ended.code == 9, ended
    summary = ended.document
    assert (summary["done"], summary["failed"], summary["waiting"]) == (0, 1, 2)
    assert summary["error"]["code"] == "batch_partly_failed"
    assert summary["failures"][0]["code"] == "worker_died" and summary["failures"][0]["attempts"] == 2
    assert [record.attempt for record in records(out, Started)] == [1, 2] and "(--fail-fast)" in ended.err
    ended = batch(file, out)
    assert ended.code == 9 and "2 of 3 videos are done, 1 failed" in ended.err
    assert "Failed: 0001-denoise-exit-" in ended.out and "--retry-failed" in ended.err
    assert "worker_died" in (out / "report.html").read_text()
    ended = batch(file, out, "--retry-failed", "--no-recovery", "--json")
    assert ended.code == 9 and ended.document["run"]["failed"] == 1 and len(records(out, Failed)) == 2


def test_what_would_fail_every_video_ends_the_batch_and_fails_none(
    batch: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_a_sandbox(**_options: object) -> Supervisor:
        made = Supervisor()
        made._zygote_program = (str(ZYGOTE), "open-door")
        return made

    monkeypatch.setattr(client, "Supervisor", without_a_sandbox)
    ended = batch(write(tmp_path / "b.jsonl", {"prompt": "a"}, {"prompt": "b"}), tmp_path / "out", "--json")
    assert ended.code == 10, ended
    document = ended.document["error"]
    assert document["code"] == "sandbox_unavailable" and document["details"]["summary"]["waiting"] == 2
    assert records(tmp_path / "out", Failed) == []


def test_what_a_recovery_taught_is_the_start_of_the_following_videos(
    batch: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    file = write(tmp_path / "b.jsonl", {"prompt": FINE, "seed": 1})
    assert batch(file, out).code == 0
    # As a run records what helped a video, under the model's name.
    learned = {"precision": "bfloat16"}
    lesson = Learned(run="r", at=0.0, model=str(tiny_model("t2v")), fields=learned, key=records(out, Done)[0].key)
    with (out / ".batch" / "journal-1-of-1.jsonl").open("ab") as journal:
        journal.write(encode(lesson))
    write(
        file, *({"prompt": FINE, "seed": seed} for seed in (1, 2)), {"prompt": FINE, "seed": 3, "precision": "float32"}
    )
    assert batch(file, out).code == 0
    documents = [json.loads(path.read_bytes()) for path in out.glob("*.mp4.json")]
    asked = {document["request"]["seed"]: document["request"].get("precision") for document in documents}
    assert asked == {1: None, 2: "bfloat16", 3: "float32"}


def test_bars_show_each_video_while_it_is_made_and_lines_stay_clean(capfd: pytest.CaptureFixture[str]) -> None:
    lines = [Line(number, {"prompt": "x", "model": "m", "output": "long" * 20 + str(number)}) for number in (1, 2)]
    first, second = expand(lines, {})[0]
    with BatchBars(Session()) as bars:
        bars.started(first, 1)
        bars.started(second, 2)
        bars.event(first, ev.PhaseStarted("denoise"))
        bars.event(first, ev.Progress("denoise", 3, 9, 2.0, 12.0))
        shown = [(task.description, task.completed, task.fields["steps"]) for task in bars._progress.tasks[1:]]
        assert shown[0][1:] == (3, "Denoising 3/9 2.0 s a step, 0:12 left") and shown[1][2] == "waiting"
        assert all(len(name) <= 36 for name, _, _ in shown)
        bars.event(second, ev.Recovering("memory_exceeded: \x1b[31mno", "decode in tiles"))
        bars.ended(first, Failed(key=first.key, n=2, run="r", at=0.0, code="worker_died", message="gone\x1b[2J"))
        bars.counts(0, 1, 2, 61.0)
        assert len(bars._progress.tasks) == 2
    said = capfd.readouterr().err
    assert "Trying: decode in tiles" in said and "failed (worker_died): gone" in said
    assert "\x1b" not in said and "0 of 2 done, 1 failed; about 1:01 left" in said


# -- signals, and several processes ------------------------------------------------------------------------------------


def test_a_second_run_of_a_folder_is_refused_with_the_owners_pid(batch: Callable[..., Ended], tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path / "out")
    folder.make()
    with held(folder, Shard()):
        ended = batch(write(tmp_path / "b.jsonl", {"prompt": FINE}), tmp_path / "out", "--json")
    assert ended.code == 2 and ended.document["error"]["code"] == "batch_busy"
    assert f"process {os.getpid()} on" in ended.document["error"]["message"]


def test_ctrl_c_finishes_what_is_being_made_and_a_status_tells_who_makes_it(
    batch: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    file = write(tmp_path / "b.jsonl", *({"prompt": "slow", "seed": seed, "steps": 10} for seed in range(3)))
    seen: list[dict[str, Any]] = []

    def look_and_interrupt() -> None:
        seen.append(read_status(str(out)))
        os.kill(os.getpid(), signal.SIGINT)

    with meanwhile(lambda: begun(out), look_and_interrupt):
        ended = batch(file, out)
    assert ended.code == 130, ended
    assert "Finishing the video" in ended.err and "1 of 3 videos are done" in ended.err
    assert [each["pid"] for each in seen[0]["running"]] == [os.getpid()] and seen[0]["waiting"] == 2
    assert len(videos(out)) == 1 and read_status(str(out))["running"] == []


@pytest.mark.parametrize(
    "signals", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)], ids=["ctrl-c twice", "SIGTERM"]
)
def test_the_second_ctrl_c_and_sigterm_stop_at_once_and_leave_nothing_unfinished(
    signals: tuple[int, ...], batch: Callable[..., Ended], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    file = write(tmp_path / "b.jsonl", {"prompt": "slow", "steps": 1000})

    def send() -> None:
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    with meanwhile(lambda: begun(out), send):
        ended = batch(file, out)
    assert ended.code == (143 if signal.SIGTERM in signals else 130), ended
    assert [record.why for record in records(out, Released)] == ["interrupted"]
    assert sorted(path.name for path in out.iterdir()) == [".batch", "report.html", "summary.json"]
    assert os.listdir(out / ".batch" / "leases") == []


def test_two_processes_divide_the_work_and_take_a_stale_lease_over(
    batch: Callable[..., Ended], environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    file = write(tmp_path / "b.jsonl", *({"prompt": FINE, "seed": seed} for seed in range(6)))
    stale = batch(file, out, "--dry-run", "--json").document["left"][0]["key"]
    leases = out / ".batch" / "leases"
    leases.mkdir(parents=True)
    lease = leases / f"{stale}.1"
    lease.write_text(json.dumps(dataclasses.asdict(Owner("gone", "node7", "another machine", 1, "1"))))
    os.utime(lease, (time.time() - STALE_S - 60,) * 2)
    shared = ("batch", "run", file, "--out", out, "--model", tiny_model("t2v"), *SMALL, "--shard")
    program = (str(PROGRAMS / "batch_with_fake_workers.py"), "well")
    processes = [
        subprocess.Popen(
            command(*shared, part, program=program), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
        )
        for part in ("1/2", "2/2")
    ]
    said = [process.communicate(timeout=90)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    done = records(out, Done)
    assert len({record.key for record in done}) == len(done) == len(videos(out)) == 6
    assert len({record.run for record in done}) == 2 and list(leases.iterdir()) == []
    assert batch(file, out, "--json").document["run"]["done"] == 0


def test_an_item_that_another_run_makes_is_waited_for(batch: Callable[..., Ended], tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = write(tmp_path / "b.jsonl", {"prompt": FINE, "seed": 1}, {"prompt": FINE, "seed": 2})
    key = batch(file, out, "--dry-run", "--json").document["left"][0]["key"]
    leases = out / ".batch" / "leases"
    leases.mkdir(parents=True)
    lease = leases / f"{key}.1"
    lease.write_text(json.dumps(dataclasses.asdict(Owner("busy", "node7", "another machine", 1, "1"))))
    with meanwhile(lambda: bool(records(out, Done)), lambda: (time.sleep(1.5), lease.unlink())[1]):
        ended = batch(file, out)
    assert ended.code == 0 and "Waiting for 1 videos that other runs are making" in ended.err, ended
    assert [record.output for record in records(out, Done)] == ["0002-well-2.mp4", "0001-well-1.mp4"]


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_killed_at_random_moments_nothing_is_made_twice_and_nothing_is_broken() -> None:
    crashes = crash_loop(rounds=3, seed=int(time.time()) % 1000, items=3)
    assert crashes.problems == [] and crashes.rounds == 3


def test_a_video_without_its_record_is_found_and_not_made_again(batch: Callable[..., Ended], tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = write(tmp_path / "b.jsonl", {"prompt": FINE, "seed": 1}, {"prompt": FINE, "seed": 2})
    assert batch(file, out).code == 0
    journal, made = out / ".batch" / "journal-1-of-1.jsonl", videos(out)
    lines = journal.read_bytes().splitlines(keepends=True)
    # Killed after the name and before the record: of the first, sidecar and all; of the second, before its sidecar.
    journal.write_bytes(b"".join(line for line in lines if b'"done"' not in line))
    (out / "0002-well-2.mp4.json").unlink()
    (out / "0002-well-2.mp4.0123456789ab.part").write_bytes(b"half")
    (out / ".0002-well-2.mp4.0123456789ab.frames.npy").write_bytes(b"half")
    ended = batch(file, out, "--json")
    assert ended.code == 0 and (ended.document["run"]["found"], ended.document["done"]) == (2, 2), ended
    assert videos(out) == made and not list(out.glob("*.part")) and not list(out.glob(".*.npy"))
    # The whole journal gone: what has its sidecar is known by that, and what has none is nobody's.
    journal.unlink()
    ended = batch(file, out)
    assert ended.code == 2 and "'0002-well-2.mp4' exists" in ended.err
    # A file that is not what its sidecar says is not taken for the video.
    (out / "0002-well-2.mp4").unlink()
    with (out / "0001-well-1.mp4").open("ab") as video:
        video.write(b"x")
    ended = batch(file, out)
    assert ended.code == 9 and "Failed: 0001-well-1.mp4" in ended.out and "0002-well-2.mp4: done" in ended.err


@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can mount a small disk; a journal's own: tests/supervisor/batch"
)
def test_a_full_disk_is_waited_for_and_the_batch_goes_on(
    batch: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LOOK_AGAIN_S", 0.2)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        out = disk / "out"
        file = write(tmp_path / "b.jsonl", *({"prompt": "slow", "seed": seed, "steps": 10} for seed in range(3)))

        def fill_for_a_while() -> None:
            fill(disk / "filler")
            time.sleep(1.5)  # longer than what is being made takes
            (disk / "filler").unlink()

        with meanwhile(lambda: begun(out), fill_for_a_while):
            ended = batch(file, out)
        assert ended.code == 0, ended
        assert "The disk is full" in ended.err and "There is room again" in ended.err
        done = records(out, Done)
        assert len(done) == len({record.key for record in done}) == len(videos(out)) == 3
        assert {record.output: record.sha256 for record in done} == videos(out)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError as error:
            assert error.errno == errno.ENOSPC


def test_a_journal_of_another_version_is_refused(batch: Callable[..., Ended], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".batch").mkdir(parents=True)
    text = b'{"kind":"wan-compat batch journal","version":9}'
    (out / ".batch" / "journal-1-of-1.jsonl").write_bytes(b"%08x %s\n" % (zlib.crc32(text), text))
    ended = batch(write(tmp_path / "b.jsonl", {"prompt": FINE}), out, "--json")
    assert ended.code == 3 and ended.document["error"]["code"] == "journal_unusable"
    assert "version 9" in ended.document["error"]["message"]


def test_a_status_of_nothing_is_refused(cli: RunCli, tmp_path: Path) -> None:
    ended = cli("batch", "status", tmp_path, "--json")
    assert ended.code == 2 and "no batch ran" in ended.document["error"]["message"]
