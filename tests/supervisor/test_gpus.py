"""A job on a GPU, as far as a machine without one shows it: read, chosen, planned for, and given up for the processor.

The driver's library is a small real one that pretends, and /dev/zero and /dev/full stand in for its nodes; the worker,
its sandbox and torch's refusal are real.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.assets.pretended_driver import build_driver
from wan_compat import Supervisor
from wan_compat.policies.limits import Deadlines
from wan_compat.policies.policy import Policy
from wan_compat.protocol import errors
from wan_compat.protocol.values import ComponentSpec, GpuSpec, Mode, PipelineSpec
from wan_compat.sandbox.spec import Bind, StaticFile
from wan_compat.supervisor import doctor, gpu_grant, gpu_memory, gpus, job_plan, nvml, worker_pool
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.dry_run import look_ahead
from wan_compat.supervisor.worker_order import WorkerOrder
from wan_compat.supervisor.worker_pool import WorkerPool

UUIDS = [f"GPU-{index:08x}-1111-2222-3333-444444444444" for index in range(3)]

# Three GPUs: the second has the most room, the third is divided. Nobody computes on any.
DRIVER = r"""
#include <stdio.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;
static int number(void *device) { return (int)((unsigned long)device & 15); }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12090; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strncpy(text, "575.57.08", length); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(0x700000000000UL + index); return 0; }
int nvmlDeviceGetName(void *d, char *name, unsigned length) { strncpy(name, "NVIDIA Imaginary", length); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, memory_t *memory) {
  memory->total = 80ULL << 30; memory->free = (number(d) == 1 ? 79ULL : 40ULL) << 30; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) { *major = 9; *minor = 0; return 0; }
int nvmlDeviceGetUUID(void *d, char *text, unsigned length) {
  snprintf(text, length, "GPU-%08x-1111-2222-3333-444444444444", number(d)); return 0; }
int nvmlDeviceGetMinorNumber(void *d, unsigned *minor) { *minor = 7 - number(d); return 0; }
int nvmlDeviceGetPciInfo_v3(void *d, pci_t *pci) { pci->domain = 0; pci->bus = 0x3b; pci->device = number(d); return 0; }
int nvmlDeviceGetComputeMode(void *d, int *mode) { *mode = number(d) == 1 ? 3 : 0; return 0; }
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *later) { *now = *later = number(d) == 2; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *count, void *infos) { *count = 0; return 0; }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *d, unsigned *count, void *infos) { *count = 0; return 0; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"), DRIVER)


@pytest.fixture
def driver(library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver with three GPUs, nodes that every machine has, and a torch that says it was built for CUDA."""
    monkeypatch.setattr(nvml, "_LIBRARY", str(library))
    monkeypatch.setattr(gpus, "torch_cuda", lambda: (12, 8))
    monkeypatch.setattr(gpus, "missing_nodes", lambda minor: ())
    monkeypatch.setattr(gpus, "closed_nodes", lambda minor: ())
    monkeypatch.setattr(gpu_grant, "device_nodes", lambda minor: ("/dev/zero", "/dev/full"))
    return library


@pytest.fixture
def on_gpu(driver: Path, supervisor: Supervisor) -> Iterator[Supervisor]:
    yield supervisor
    pool = supervisor._runners.pool
    assert pool is not None
    pool.gpu_failed = None  # it is shared with other tests


def test_the_driver_tells_what_a_choice_needs(driver: Path) -> None:
    found, cuda = gpus.read_nvidia()
    assert cuda == (12, 9)
    assert [(gpu.uuid, gpu.minor, gpu.address) for gpu in found[:2]] == [
        (UUIDS[0], 7, "0000:3b:00.0"),
        (UUIDS[1], 6, "0000:3b:01.0"),
    ]
    assert [gpu.compute_mode for gpu in found] == ["default", "exclusive", "default"]
    assert [gpu.mig for gpu in found] == [False, False, True]
    chosen = gpus.gpu_for("auto", Policy())
    assert chosen.gpu is not None and chosen.gpu.uuid == UUIDS[1] and "MIG" in chosen.why_not[0]
    with nvml.Nvml() as opened:
        assert opened.driver_version() == "575.57.08"


def test_libraries_outside_the_systems_folders_come_along_with_the_nodes(driver: Path) -> None:
    assert gpus.read_nvidia()[0][0].library_folder is None  # no libcuda there
    cuda = driver.parent / "libcuda.so.1"
    cuda.touch()
    try:
        folder = gpus.read_nvidia()[0][0].library_folder
    finally:
        cuda.unlink()
    assert folder == str(driver.parent)
    spec = {"uuid": UUIDS[0], "minor": 3, "address": "0000:3b:00.0", "library_folder": folder}
    part = ComponentSpec(name="vae", library="diffusers", class_name="A", subfolder="vae")
    gpu = GpuSpec.model_validate(spec)
    pipeline = PipelineSpec(pipeline_class="P", components=(part,), device="cuda", gpu=gpu, threads=1)
    given = gpu_grant.grant(pipeline)
    assert given.access is not None and given.access.devices == ("/dev/zero", "/dev/full")
    assert given.binds == (Bind(source=str(folder), target=str(folder), executable=True),)
    assert all(isinstance(file, StaticFile) for file in given.files)
    on_cpu = pipeline.model_copy(update={"device": "cpu"})
    assert gpu_grant.grant(on_cpu) == gpu_grant.grant(None) == gpu_grant.GpuGrant()


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("cuda: Optional[str] = '12.8'", (12, 8)),
        ("cuda = '13.0'\n", (13, 0)),
        ("cuda: Optional[str] = None", None),
        ("hip = '6'", None),
        ("cuda = open('x')", None),
        ("cuda = '", None),
    ],
)
def test_torchs_cuda_is_read_and_nothing_is_run(text: str, cuda: tuple[int, int] | None) -> None:
    assert gpus.cuda_of(text) == cuda


def test_a_plan_is_for_the_chosen_gpu_below_its_cap_and_the_policy_can_forbid_it(driver, request_for) -> None:
    pipeline = look_ahead(request_for(), Policy()).model.pipeline
    assert pipeline.device == "cuda" and pipeline.gpu is not None
    assert (pipeline.gpu.uuid, pipeline.gpu.minor) == (UUIDS[1], 6)
    assert {part.dtype for part in pipeline.components if part.name == "transformer"} == {"bfloat16"}
    second = look_ahead(request_for(device="cuda:0"), Policy()).model.pipeline
    assert second.gpu is not None and second.gpu.uuid == UUIDS[0]
    capped = look_ahead(request_for(gpu_memory_limit_bytes=1 << 30), Policy()).choice
    assert capped is not None and capped.machine.vram_bytes == 1 << 30 and capped.chosen.vram_bytes <= 1 << 30
    for request, policy in ((request_for(device="cpu"), Policy()), (request_for(), Policy(allow_gpu=False))):
        pipeline = look_ahead(request, policy).model.pipeline
        assert (pipeline.device, pipeline.gpu) == ("cpu", None)
    with pytest.raises(errors.RefusedByPolicy, match="no GPU"):
        look_ahead(request_for(device="cuda"), Policy(allow_gpu=False))


def test_a_repositorys_own_pipeline_takes_no_gpu_and_says_so_where_one_was_asked_for(driver, request_for, monkeypatch):
    monkeypatch.setattr(job_plan, "shape_of", lambda model: None)
    with pytest.raises(errors.InvalidRequest, match="on the processor"):
        look_ahead(request_for(device="cuda"), Policy())
    assert look_ahead(request_for(), Policy()).model.pipeline.device == "cpu"


def test_a_gpu_that_does_not_work_in_a_worker_is_given_up_once_and_the_video_is_made(on_gpu, request_for) -> None:
    """CUDA begins after the fork and inside the sandbox; torch, built without it, says what a broken driver would."""
    job = on_gpu.submit(request_for(output=None, recover=True))
    result = job.result(timeout=60)
    assert result.success and result.frames is not None and result.frames.frames.shape == (9, 64, 96, 3)
    assert [entry["action"] for entry in result.recovery] == ["compute on the processor"]
    assert "CUDA" in result.recovery[0]["error"] and result.recovery[0]["outcome"] == "succeeded"
    again = on_gpu.generate(request_for(output=None, recover=True))
    assert again.recovery == [] and any("GPU is left alone" in warning for warning in again.warnings)
    assert (again.frames.frames == result.frames.frames).all()


def test_a_gpu_that_was_asked_for_by_name_is_not_replaced(on_gpu, request_for) -> None:
    job = on_gpu.submit(request_for(output=None, recover=True, device="cuda"))
    events = list(job.events())
    with pytest.raises(errors.GpuUnusable, match="CUDA") as caught:
        job.result()
    assert caught.value.exit_code == 3 and any("--device cpu" in fix for fix in caught.value.fixes)
    assert not any(isinstance(event, ev.Recovering) for event in events)
    started = [event for event in events if isinstance(event, ev.Started)]
    assert started and started[0].tier in "AB"  # the sandbox with nodes holds as the one without


def test_a_sandbox_that_fails_at_the_gpus_needs_is_no_reason_for_a_weaker_one(on_gpu, request_for, monkeypatch) -> None:
    monkeypatch.setattr(gpu_grant, "device_nodes", lambda minor: ("/dev/console",))
    result = on_gpu.generate(request_for(output=None, recover=True))
    assert [entry["action"] for entry in result.recovery] == ["compute on the processor"]
    assert "may not use /dev/console" in result.recovery[0]["error"] and result.sandbox.tier in "AB"


def test_a_worker_that_the_driver_does_not_list_ends_where_a_cap_was_asked_for(driver, monkeypatch) -> None:
    monkeypatch.setattr(gpu_memory, "POLL_S", 0.0)
    for limit, must_show, ends in ((1 << 30, True, True), (1 << 30, False, False), (None, True, False)):
        watch = gpu_memory.GpuWatch(1, limit, may_use_gpu=True)
        watch.must_show = must_show
        error = watch.exceeded()
        assert isinstance(error, errors.SandboxUnavailable) is ends
        assert error is None or "does not list the worker" in error.message
        watch.close()


def test_doctor_says_which_gpus_workers_get_and_why_not(driver) -> None:
    said = "\n".join(doctor.describe_gpus(doctor.examine_gpus()))
    assert "NVIDIA Imaginary" in said and "driver 575.57.08, CUDA 12.9; torch has 12.8" in said
    assert "one process at a time may compute on it" in said
    assert "not used: it is divided into parts (MIG)" in said


def test_a_gpu_for_one_process_at_a_time_has_no_room_beside_another(driver) -> None:
    assert gpus.has_room(UUIDS[0], 40 << 30) and not gpus.has_room(UUIDS[0], 41 << 30)
    assert not gpus.has_room(UUIDS[1], 1)  # exclusive: idle workers have to go first, however little they hold
    assert not gpus.has_room("GPU-gone", 0)


class Idle:
    """A warm worker as the pool sees it: what it was started for, and what it holds of a GPU."""

    def __init__(self, name: str, uuid: str | None, vram_bytes: int) -> None:
        part = ComponentSpec(name="vae", library="diffusers", class_name="A", subfolder="vae")
        gpu = GpuSpec(uuid=uuid, minor=0, address="0000:3b:00.0") if uuid is not None else None
        pipeline = PipelineSpec(pipeline_class="P", components=(part,), gpu=gpu, threads=1)
        self.name, self.vram_bytes = name, vram_bytes
        self.order = WorkerOrder((), pipeline, None, 1, Policy(), Mode.SAFE)
        self.closed = False

    def close(self, grace_s: float = 0.0) -> None:
        self.closed = True


def test_idle_workers_go_when_another_model_needs_their_gpus_memory_and_others_stay(monkeypatch) -> None:
    told: list[str] = []
    pool = WorkerPool(spawn_only=True, workers=2, max_warm=4, tell=lambda name, why: told.append(f"{name} {why}"))
    there = [Idle("cpu", None, 0), Idle("old", UUIDS[0], 30), Idle("new", UUIDS[0], 20), Idle("far", UUIDS[1], 40)]
    pool._warm[:] = there  # type: ignore[assignment]
    pool._living.update({worker.name: worker for worker in there})  # type: ignore[dict-item]
    use = pool.gpu_use()
    assert use.idle_bytes == {UUIDS[0]: 50, UUIDS[1]: 40} and not any(use.busy.values()) and use.workers == 2
    monkeypatch.setattr(
        worker_pool, "has_room", lambda uuid, wants: 10 + sum(30 for one in there[:3] if one.closed) >= wants
    )
    pool._make_gpu_room(there[2].order, Deadlines(), 40)
    assert [one.name for one in there if one.closed] == ["old"]
    assert told == ["old ended while idle: another model needs its GPU's memory"]
    pool._make_gpu_room(there[0].order, Deadlines(), 1 << 40)  # without a GPU nobody has to go
    pool._make_gpu_room(there[2].order, Deadlines(), 1 << 40)
    assert [one.name for one in there if one.closed] == ["old", "new"]
