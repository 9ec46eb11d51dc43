"""What the kernel tells of a process shows whether it works."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from wan_compat.supervisor import cpu_watch


def test_a_sleeping_process_shows_no_work_and_a_computing_one_does():
    sleeper = subprocess.Popen([sys.executable, "-ISc", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with sleeper:
        assert sleeper.stdout is not None and sleeper.stdin is not None
        sleeper.stdout.readline()
        deadline = time.monotonic() + 10
        while cpu_watch.signs_of(sleeper.pid, threads=True).at_work and time.monotonic() < deadline:
            time.sleep(0.01)  # it is on its way into its wait
        asleep = cpu_watch.signs_of(sleeper.pid, threads=True)
        assert not asleep.at_work and asleep.cpu_s is not None
        sleeper.stdin.close()
    computing = cpu_watch.signs_of(os.getpid(), threads=True)
    assert computing.at_work and computing.cpu_s is not None and computing.cpu_s > 0, "this very process runs"
    assert not cpu_watch.signs_of(os.getpid()).at_work, "nobody asked"


def test_of_a_process_that_is_gone_nothing_is_known():
    gone = subprocess.Popen([sys.executable, "-ISc", ""])
    gone.wait()
    assert cpu_watch.signs_of(gone.pid, threads=True).cpu_s is None
    assert cpu_watch.cpu_seconds(gone.pid) is None
