"""GPU memory is looked at through the driver's library, here one that pretends, and its limit ends a real worker."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.assets.pretended_driver import build_driver
from wan_compat.policies.policy import Policy
from wan_compat.protocol import errors
from wan_compat.supervisor import events as ev
from wan_compat.supervisor import gpu_memory, nvml

GB = 1 << 30

# Two GPUs. The files named by WAN_TEST_GPU_USE hold "pid compute graphics" lines, in bytes: one file for each GPU.
_WITH_V2 = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu, compute; } info_t;
int nvmlInit_v2(void) { return getenv("WAN_TEST_GPU_BROKEN") ? 9 : 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(0x700000000000UL + index); return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) { *device = (void *)uuid; return strcmp(uuid, "GPU-lost") ? 0 : 6; }
int nvmlDeviceGetUtilizationRates(void *uuid, unsigned *percents) {
  if (!strcmp(uuid, "GPU-divided")) return 3; /* not supported */
  percents[0] = strcmp(uuid, "GPU-idle") ? 97 : 0; percents[1] = 1;
  return 0;
}
static int list(void *device, unsigned *count, info_t *infos, int graphics) {
  char path[4096];
  snprintf(path, sizeof path, "%s%d", getenv("WAN_TEST_GPU_USE"), (int)((unsigned long)device & 1));
  FILE *file = fopen(path, "r");
  if (file == NULL) return 15; /* lost */
  unsigned long long pid, compute, drawn; unsigned found = 0;
  while (fscanf(file, "%llu %llu %llu", &pid, &compute, &drawn) == 3) {
    if (found < *count) { memset(&infos[found], 0, sizeof(info_t)); infos[found].pid = pid; infos[found].used = graphics ? drawn : compute; }
    found++;
  }
  fclose(file);
  int short_of = found > *count;
  *count = found;
  return short_of ? 7 : 0;
}
int nvmlDeviceGetComputeRunningProcesses_v2(void *d, unsigned *c, info_t *i) { return list(d, c, i, 0); }
int nvmlDeviceGetGraphicsRunningProcesses_v2(void *d, unsigned *c, info_t *i) { return list(d, c, i, 1); }
"""
# Of 535.54, with entries of another size: the call of that name here says that nothing could be told.
DRIVER_535 = (
    _WITH_V2
    + r"""
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strncpy(text, "535.54.03", length); return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *c, void *i) { return 999; }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *d, unsigned *c, void *i) { return 999; }
"""
)
# Most have the newer call, and are asked by it.
DRIVER = _WITH_V2.replace("_v2(void *d, unsigned *c, info_t *i)", "_v3(void *d, unsigned *c, info_t *i)")
DRIVER_535_98 = DRIVER_535.partition("int nvmlDeviceGetComputeRunningProcesses_v3")[0].replace("535.54.03", "535.98")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_driver(tmp_path_factory.mktemp("driver"), DRIVER))


class Use:
    """What the processes use, as the pretended driver tells it."""

    def __init__(self, prefix: Path) -> None:
        self._prefix = prefix
        self.says([], [])

    def says(self, *gpus: list[tuple[int, int, int]]) -> None:
        for index, processes in enumerate(gpus):
            Path(f"{self._prefix}{index}.new").write_text("".join(f"{p} {c} {g}\n" for p, c, g in processes))
            os.rename(f"{self._prefix}{index}.new", f"{self._prefix}{index}")

    def lose(self, index: int) -> None:
        os.unlink(f"{self._prefix}{index}")


@pytest.fixture
def use(driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    monkeypatch.setattr(nvml, "_LIBRARY", driver)
    monkeypatch.setattr(gpu_memory, "POLL_S", 0.02)
    # The library asks C's own environment, which monkeypatch.setenv reaches through os.putenv.
    (tmp_path / "driver").mkdir()
    monkeypatch.setenv("WAN_TEST_GPU_USE", str(tmp_path / "driver" / "gpu"))
    return Use(tmp_path / "driver" / "gpu")


def test_memory_of_a_process_is_summed_over_gpus_and_not_counted_twice_for_drawing(use):
    use.says([(41, 2 * GB, 2 * GB), (42, GB, 0)], [(42, 3 * GB, 0), (42, GB, 0)])
    with nvml.Nvml() as driver:
        assert driver.used_by(41) == 2 * GB
        assert driver.used_by(42) == 5 * GB  # a divided GPU has an entry for each part
        assert driver.used_by(43) == 0


@pytest.mark.parametrize("source", [DRIVER_535, DRIVER_535_98], ids=["other entries", "without the newest call"])
def test_drivers_whose_newest_list_is_another_or_none_are_asked_for_the_one_before(source, use, tmp_path, monkeypatch):
    monkeypatch.setattr(nvml, "_LIBRARY", str(build_driver(tmp_path, source)))
    use.says([(41, 2 * GB, GB), (42, GB, 0)], [(42, 3 * GB, 0)])
    with nvml.Nvml() as driver:
        assert (driver.used_by(41), driver.used_by(42)) == (2 * GB, 4 * GB)


def test_long_lists_are_read_whole(use):
    use.says([(pid, 1, 0) for pid in range(1, 1000)] + [(5000, GB, 0)], [])
    with nvml.Nvml() as driver:
        assert driver.used_by(5000) == GB


@pytest.mark.parametrize("how", ["endless", "lost", "not told"])
def test_a_driver_that_does_not_tell_is_no_zero(use, how):
    if how == "endless":
        use.says([(pid, 1, 0) for pid in range(1, 6000)], [])
    elif how == "lost":
        use.lose(1)
    else:
        use.says([(7, (1 << 64) - 1, 0)], [])
    with nvml.Nvml() as driver:
        assert driver.used_by(7) is None
    watched = gpu_memory.GpuWatch(7, GB, may_use_gpu=True)
    error = watched.exceeded()
    assert isinstance(error, errors.SandboxUnavailable) and "cannot be watched" in error.message
    watched.close()
    for limit, may_use_gpu in ((GB, False), (None, True)):  # nothing to bound, or no GPU to use
        unbound = gpu_memory.GpuWatch(7, limit, may_use_gpu=may_use_gpu)
        assert unbound.exceeded() is None
        unbound.close()


def test_a_gpu_is_seen_computing_and_one_that_does_not_tell_is_not(use):
    watch = gpu_memory.GpuWatch(42, None, may_use_gpu=True)
    seen = {uuid: watch.computes(uuid) for uuid in ("GPU-busy", "GPU-idle", "GPU-divided", "GPU-lost")}
    watch.close()
    assert seen == {"GPU-busy": True, "GPU-idle": False, "GPU-divided": False, "GPU-lost": False}
    assert not watch.computes("GPU-busy"), "nobody is asked any more"


def test_the_most_that_was_seen_is_kept_and_the_driver_is_not_asked_at_every_turn(use, monkeypatch):
    monkeypatch.setattr(gpu_memory, "POLL_S", 0.05)
    watch = gpu_memory.GpuWatch(42, None, may_use_gpu=True)
    for used in (GB, 3 * GB, 2 * GB):
        use.says([(42, used, 0)], [])
        assert watch.exceeded() is None
        time.sleep(0.06)
    assert (watch.used_bytes, watch.peak_bytes) == (2 * GB, 3 * GB)
    monkeypatch.setattr(gpu_memory, "POLL_S", 60)
    use.says([(42, 9 * GB, 0)], [])
    watch.exceeded()
    assert watch.peak_bytes == 3 * GB
    watch.close()


@pytest.mark.parametrize("lack", ["no library", "no device"])
def test_without_a_driver_there_is_nothing_to_watch(lack, use, monkeypatch):
    if lack == "no library":
        monkeypatch.setattr(nvml, "_LIBRARY", "libnvidia-ml-that-does-not-exist.so.1")
    else:
        monkeypatch.setenv("WAN_TEST_GPU_BROKEN", "1")
    watch = gpu_memory.GpuWatch(42, 1, may_use_gpu=False)
    assert watch.exceeded() is None
    watch.close()


def test_an_old_driver_without_the_calls_is_blind(tmp_path, monkeypatch):
    class Old:
        def __getattr__(self, name: str) -> object:
            if "RunningProcesses" in name:
                raise AttributeError(name)
            return lambda *arguments: 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Old())
    monkeypatch.setattr(nvml.Nvml, "_count", lambda self: 1)
    assert nvml.Nvml().used_by(1) is None


@pytest.mark.parametrize("by", ["policy", "job"])
def test_worker_over_its_gpu_memory_is_really_killed_and_the_next_job_works(
    by, use, misbehaving, request_for, tmp_path
):
    limit = {"gpu_memory_limit_bytes": 2 * GB}
    supervisor = misbehaving("slow", policy=Policy(**(limit if by == "policy" else {})))
    job = supervisor.submit(request_for(num_inference_steps=900, **(limit if by == "job" else {})))
    worker: psutil.Process | None = None
    for event in job.events():
        if isinstance(event, ev.Progress) and event.phase == "denoise":
            if worker is None:
                worker = _worker_below(psutil.Process())
                use.says([(worker.pid, GB, 0)], [(worker.pid, GB // 2, 0), (1, 70 * GB, 0)])
            else:
                use.says([(worker.pid, GB, 0)], [(worker.pid, GB + 1, 0)])
    with pytest.raises(errors.MemoryExceeded, match=r"2\.15 GB of the 2\.15 GB of GPU memory") as caught:
        job.result()
    assert caught.value.exit_code == 6
    assert caught.value.details == {"gpu_used_bytes": 2 * GB + 1, "gpu_memory_limit_bytes": 2 * GB}
    assert worker is not None and not worker.is_running()
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".mp4", ".part")]
    assert supervisor.generate(request_for()).success


def _worker_below(process: psutil.Process) -> psutil.Process:
    for child in process.children():
        try:
            if "misbehaving_zygote.py" in " ".join(child.cmdline()) and child.children():
                return child.children()[0]
        except psutil.NoSuchProcess:
            continue
    raise AssertionError("no worker")


def test_a_worker_that_stays_below_is_left_alone(use, misbehaving, request_for):
    assert misbehaving("well").generate(request_for(output=None, gpu_memory_limit_bytes=2 * GB)).success


def test_the_driver_is_found_where_the_loader_finds_it(driver, tmp_path):
    """By its name alone, as on a real machine."""
    use = Use(tmp_path / "gpu")
    use.says([(os.getpid(), GB, 0)], [])
    code = f"from wan_compat.supervisor.nvml import Nvml; print(Nvml().used_by({os.getpid()}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_LIBRARY_PATH": os.path.dirname(driver), "WAN_TEST_GPU_USE": str(tmp_path / "gpu")},
        capture_output=True,
        check=True,
    )
    assert int(done.stdout) == GB
