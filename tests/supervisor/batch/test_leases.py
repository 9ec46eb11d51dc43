"""Who makes which item: claims, take-overs and their races, with real files and processes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wan_compat.policies.batch.progress import Shard
from wan_compat.protocol.errors import BatchBusy
from wan_compat.supervisor.batch.folder import BatchFolder, held
from wan_compat.supervisor.batch.leases import STALE_S, Leases, Owner, live_leases, read_leases

KEY = "ab" * 12
ELSEWHERE = Owner("other", "node7", "another machine", 1234, "5678")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Leases]]:
    made: list[Leases] = []

    def one(**options: object) -> Leases:
        made.append(Leases(str(tmp_path), Owner.this_process(), **options))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for leases in made:
        leases.close()


def lay(folder: Path, owner: Owner | None, *, number: int = 1, age_s: float = 0.0) -> Path:
    """Put a lease of somebody else there."""
    path = folder / f"{KEY}.{number}"
    path.write_text("" if owner is None else json.dumps(dataclasses.asdict(owner)))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_one_claim_holds_until_it_is_released(make: Callable[..., Leases], tmp_path: Path) -> None:
    first, second = make(), make()
    assert first.claim(KEY) and first.holds(KEY)
    assert not second.claim(KEY) and not second.holds(KEY)
    assert live_leases(str(tmp_path))[KEY].owner == first.owner
    first.release(KEY)
    assert second.claim(KEY)
    second.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("owner", [ELSEWHERE, None], ids=["elsewhere", "unknown"])
def test_a_lease_of_another_machine_holds_until_nothing_was_heard_for_long(
    owner: Owner | None, make: Callable[..., Leases], tmp_path: Path
) -> None:
    leases = make()
    path = lay(tmp_path, owner, age_s=STALE_S / 2)
    assert not leases.claim(KEY) and path.exists()
    lay(tmp_path, owner, age_s=STALE_S + 5)
    assert leases.claim(KEY) and leases.holds(KEY)
    assert [lease.number for lease in read_leases(str(tmp_path))] == [2] and not path.exists()


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(
    make: Callable[..., Leases], tmp_path: Path
) -> None:
    here = Owner.this_process()
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    lay(tmp_path, dataclasses.replace(here, run="dead", pid=process.pid))
    leases = make()
    assert live_leases(str(tmp_path)) == {}
    assert leases.claim(KEY)
    leases.release(KEY)
    lay(tmp_path, dataclasses.replace(here, run="alive"))
    assert not leases.claim(KEY)
    # The same id, another process: it started at another time.
    lay(tmp_path, dataclasses.replace(here, run="reused", born="1"))
    assert leases.claim(KEY)


def test_of_many_that_try_one_succeeds(make: Callable[..., Leases], tmp_path: Path) -> None:
    many = [make() for _ in range(8)]
    for stale in (False, True) * 10:
        if stale:
            lay(tmp_path, ELSEWHERE, age_s=STALE_S + 5)
        together, won = threading.Barrier(len(many)), []

        def race(leases: Leases, together: threading.Barrier = together, won: list[Leases] = won) -> None:
            together.wait()
            if leases.claim(KEY):
                won.append(leases)

        threads = [threading.Thread(target=race, args=(leases,)) for leases in many]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) <= 1, "nobody is better than two"
        if won:
            assert won[0].holds(KEY)
            won[0].release(KEY)
        for lease in read_leases(str(tmp_path)):
            os.unlink(lease.path)


def test_who_looked_before_a_lease_was_freed_takes_nothing_over(
    make: Callable[..., Leases], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow sees a stale lease; quick takes it over, ends its work and is gone; then a third one claims anew."""
    slow, quick, third = make(), make(), make()
    lay(tmp_path, ELSEWHERE, age_s=STALE_S + 5)
    really = slow._make

    def meanwhile(path: str) -> bool:
        assert quick.claim(KEY)
        quick.release(KEY)
        assert third.claim(KEY)
        return really(path)

    monkeypatch.setattr(slow, "_make", meanwhile)
    assert not slow.claim(KEY) and third.holds(KEY)
    assert len(read_leases(str(tmp_path))) == 1


def test_a_lease_is_renewed_and_its_loss_is_heard_of(make: Callable[..., Leases], tmp_path: Path) -> None:
    lost = threading.Event()
    leases = make(beat_s=0.02, lost=lambda key: lost.set() if key == KEY else None)
    assert leases.claim(KEY)
    path = tmp_path / f"{KEY}.1"
    os.utime(path, (1, 1))
    end = time.monotonic() + 20
    while path.stat().st_mtime < 1000 and time.monotonic() < end:
        time.sleep(0.01)
    assert path.stat().st_mtime > 1000 and not lost.is_set()
    lay(tmp_path, ELSEWHERE, number=2)
    assert lost.wait(20) and not leases.holds(KEY)


def test_files_that_are_no_leases_are_passed_over(make: Callable[..., Leases], tmp_path: Path) -> None:
    for name in ("README", "x.y", ".1", f"{KEY}.99999999999", "clock.abc"):
        (tmp_path / name).write_text("{}")
    (tmp_path / f"{KEY}.1").symlink_to("/etc/passwd")
    assert [lease.key for lease in read_leases(str(tmp_path))] == [""]  # the link is not opened, the others are none


HOLD = """
import sys, time
from wan_compat.policies.batch.progress import parse_shard
from wan_compat.supervisor.batch.folder import BatchFolder, held
with held(BatchFolder(sys.argv[1]), parse_shard(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_shard_is_held_by_one_process_and_the_second_hears_whose(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path / "out")
    folder.make()
    command = [sys.executable, "-c", HOLD, folder.path, "1/2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BatchBusy, match=f"process {process.pid} on ") as caught, held(folder, Shard(1, 2)):
            pass
        assert caught.value.details["pid"] == process.pid and caught.value.exit_code == 2
        with held(folder, Shard(2, 2)), held(folder, Shard()):
            pass
        process.kill()
    with held(folder, Shard(1, 2)):
        pass
