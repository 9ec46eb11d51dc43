"""`wan-compat doctor`: what was found, by trying; every lack with its reason and remedy."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import RunCli
from wan_compat.sandbox import cgroup, trial
from wan_compat.sandbox.spec import Layer
from wan_compat.supervisor import doctor


def test_doctor_tells_a_program_everything(cli: RunCli) -> None:
    ended = cli("doctor", "--json")
    document = ended.document
    assert ended.code == 0, ended
    assert {"tier", "layers", "memory_cap", "ffmpeg", "gpus", "versions"} <= set(document)
    assert document["tier"] in ("A", "B")
    for layer in document["layers"].values():
        assert set(layer) == {"available", "reason", "remedy"}
        assert layer["available"] or (layer["reason"] and layer["remedy"])
    assert document["sandbox"]["holds"] and document["sandbox"]["not_denied"] == []
    assert "libx264" in document["ffmpeg"]["encoders"]
    assert document["versions"]["torch"] and document["versions"]["python"]


def test_doctor_tells_a_person_the_verdict_first(cli: RunCli) -> None:
    ended = cli("doctor")
    assert ended.code == 0 and ended.out.startswith("Ready.\n")
    assert {"Sandbox", "Memory", "ffmpeg", "GPU", "Versions"} <= {line.split(" ")[0] for line in ended.out.splitlines()}
    assert "seccomp" not in ended.out and "seccomp" in cli("doctor", "-v").out


@pytest.fixture(scope="module")
def real_trial() -> trial.TrialReport:
    return trial.run_trial()


def examine_with(monkeypatch: pytest.MonkeyPatch, report: trial.TrialReport) -> doctor.DoctorReport:
    monkeypatch.setattr(trial, "run_trial", lambda: report)
    return doctor.examine()


def without(report: trial.TrialReport, *layers: Layer) -> trial.TrialReport:
    lost = {layer.value: trial.LayerTrial(False, f"no {layer.value}", f"get {layer.value}") for layer in layers}
    entered = tuple(name for name in report.entered if name not in lost)
    return dataclasses.replace(report, layers={**report.layers, **lost}, entered=entered)


def test_a_missing_layer_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, real_trial: trial.TrialReport
) -> None:
    report = examine_with(monkeypatch, without(real_trial, Layer.CGROUP, Layer.NET_NAMESPACE))
    assert report.tier == "C" and doctor.exit_code(report) == 10
    text = doctor.describe(report, verbose=False)
    assert text.startswith("Not ready:") and "no net_namespace" in text and "get net_namespace" in text
    assert "--min-tier C" in report.problems[0].remedy


def test_no_cgroup_is_tier_b_and_ready(monkeypatch: pytest.MonkeyPatch, real_trial: trial.TrialReport) -> None:
    support = cgroup.CgroupSupport(None, False, "no hierarchy", "ask systemd")
    monkeypatch.setattr(cgroup, "detect", lambda: support)
    report = examine_with(monkeypatch, without(real_trial, Layer.CGROUP))
    assert report.tier == "B" and doctor.exit_code(report) == 0
    assert report.memory_cap["remedy"] == "ask systemd"
    text = doctor.describe(report, verbose=False)
    assert text.startswith("Ready.") and "no   cgroup: no cgroup\n       -> get cgroup" in text


def test_a_sandbox_that_was_entered_but_does_not_hold_is_none(
    monkeypatch: pytest.MonkeyPatch, real_trial: trial.TrialReport
) -> None:
    report = examine_with(monkeypatch, dataclasses.replace(real_trial, not_denied=("reach_network",)))
    assert report.tier == "E" and doctor.exit_code(report) == 10
    assert "reach_network" in report.problems[0].message


def test_a_trial_that_fails_is_not_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {Layer.SECCOMP.value: trial.LayerTrial(False, "the trial could not be carried out")}
    report = examine_with(monkeypatch, trial.TrialReport(layers, error="it exploded"))
    assert report.tier == "E" and doctor.exit_code(report) == 10 and "it exploded" in report.problems[0].message


def test_missing_libraries_and_ffmpeg_are_3(monkeypatch: pytest.MonkeyPatch, real_trial: trial.TrialReport) -> None:
    import importlib.metadata

    real_version = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("torch", "diffusers"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real_version(name)

    def no_ffmpeg() -> Any:
        raise doctor.FfmpegMissing("no ffmpeg anywhere", hint="install one")

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "find_ffmpeg", no_ffmpeg)
    report = examine_with(monkeypatch, real_trial)
    assert doctor.exit_code(report) == 3
    text = doctor.describe(report, verbose=False)
    assert "torch, diffusers" in text and "wan-compat[worker]" in text and "install one" in text


def test_without_a_driver_there_are_no_gpus() -> None:
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has an NVIDIA driver")
    assert doctor.read_gpus() == []


FAKE_DRIVER = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(0x700000000000UL + index); return 0; }
int nvmlDeviceGetName(void *device, char *name, unsigned length) { strncpy(name, "NVIDIA Imaginary", length); return 0; }
int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
  if (device == (void *)0x700000000001UL) return 15; /* lost */
  memory->total = 80ULL << 30; memory->free = 60ULL << 30; memory->used = 20ULL << 30; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) { *major = 9; *minor = 0; return 0; }
"""


def test_gpus_are_read_from_the_driver_and_a_lost_one_is_left_out(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler to build a driver library that pretends")
    source, library = tmp_path / "nvml.c", tmp_path / "libnvidia-ml.so.1"
    source.write_text(FAKE_DRIVER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    code = "from wan_compat.supervisor.doctor import read_gpus; import json; print(json.dumps(read_gpus()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    expected = {"name": "NVIDIA Imaginary", "memory_total_bytes": 80 << 30, "memory_free_bytes": 60 << 30}
    expected["compute_capability"] = [9, 0]
    expected |= {"uuid": None, "minor": None, "address": None, "compute_mode": "default", "mig": False}  # not told
    assert json.loads(done.stdout) == [{"index": index, **expected} for index in (0, 2)]


@pytest.mark.gpu
def test_a_gpu_is_named_with_its_memory() -> None:
    gpus = doctor.read_gpus()
    if not gpus:
        pytest.skip("needs an NVIDIA GPU")
    assert all(gpu["name"] and 0 < gpu["memory_free_bytes"] <= gpu["memory_total_bytes"] for gpu in gpus)
