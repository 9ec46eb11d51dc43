"""The wheel: what is in it, that the examples run from it in an empty environment, and that its types are complete."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import wan_compat

pytestmark = pytest.mark.timeout(300)

# Those whose `main` takes a supervisor run in one process with one: each start of a zygote is seconds of imports.
WITH_SUPERVISOR = {
    "embed": ["contained: tier", "step 4 of 4", "wrote "],
    "many_requests": ["urgent: (5, 96, 160, 3)", "invalid_request: width is 170", "waiting"],
    "watch": ["preview after step 4", "Finished", "9 frames"],
}
AS_SCRIPT = {"drop_in": ["step 4, timestep", "(9, 96, 160, 3) float32", "sandbox tier"]}
SERVED = {"web_server"}  # who leaves, and more: tests/supervisor/test_web_server.py
TOGETHER = """
import os, runpy, sys
from fastapi.testclient import TestClient
from wan_compat import Supervisor
server, *others = sys.argv[1:]
with Supervisor(workers=2) as supervisor:
    supervisor.serve(os.path.abspath("socket"))
    for path in others:
        example = runpy.run_path(path)
        print("EXAMPLE", path, flush=True)
        example["main"](supervisor, str(example["demo_model"]()))
    example = runpy.run_path(server)
    print("EXAMPLE", server, flush=True)
    with TestClient(example["make_app"](str(example["demo_model"]()), os.path.abspath("socket"))) as client:
        print(client.post("/videos", json={"prompt": "a red ball", "num_frames": 5}).text)
import wan_compat
print("FROM", wan_compat.__file__)
"""

CLIENT = '''
"""A program of somebody who checks types strictly."""

from wan_compat import AsyncJob, AsyncSupervisor, GenerationRequest, Job, ModelReport, ProcessedFrames
from wan_compat import SandboxedPipeline, Supervisor, VideoGenerationResult, connect
from wan_compat.protocol.errors import WanCompatError
from wan_compat.supervisor import events


def run(model: str) -> str | None:
    with Supervisor(mode="safe", workers=2) as supervisor:
        report: ModelReport = supervisor.check(model)
        if not report.compatible_here:
            return None
        job: Job = supervisor.submit(GenerationRequest(model=model, prompt="a red ball"), priority=1)
        for event in job.events():
            if isinstance(event, events.Progress):
                step: int = event.step
                print(step)
        result: VideoGenerationResult = job.result(timeout=60)
        assert result.frames is not None
        print(result.frames.frames.shape)
        return result.output_path


def call(model: str) -> object:
    try:
        with SandboxedPipeline.from_pretrained(model) as pipe:
            return pipe("a red ball", num_frames=9)
    except WanCompatError as error:
        fix: str | None = error.hint
        return fix


async def follow(request: GenerationRequest) -> ProcessedFrames | None:
    async with AsyncSupervisor() as supervisor:
        job: AsyncJob = await supervisor.submit(request)
        async for event in job.events():
            print(type(event).__name__)
        return (await job.result()).frames


def elsewhere(request: GenerationRequest) -> VideoGenerationResult:
    with connect() as supervisor:
        return supervisor.submit(request, label="mine").result()
'''
WRONG = """
from wan_compat import GenerationRequest, Supervisor

Supervisor().submit("a model")
Supervisor().cancel(3)
"""


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # A copy: setuptools builds inside the tree, and others may be at work in it.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((repository / name).read_bytes())
    subprocess.run(["cp", "-r", str(repository / "wan_compat"), str(source)], check=True)
    run_pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but the wheel; what it depends on is read where this test's own lies.

    Another `wan_compat` lies there too, or a pointer to it. It does not count: the environment's own folder comes first,
    and pointers are followed in an environment's own folder only.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run_pip(
        "--python", str(folder / "bin" / "python"), "install", "--no-deps", "--no-index", "--no-compile", str(wheel)
    )
    return folder


def run_pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def run_in(environment: Path, folder: Path, *arguments: str, timeout_s: float = 200) -> str:
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "CI", "XDG_STATE_HOME") if name in os.environ}
    done = subprocess.run(
        [str(environment / "bin" / "python"), *arguments],
        cwd=folder,
        env=kept | {"HOME": str(folder), "PATH": "/usr/bin:/bin", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_wheel_has_the_demo_model_and_nothing_beside_the_package(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    inside = {name.removeprefix("wan_compat/data/") for name in names if name.startswith("wan_compat/data/demo_model/")}
    folder = repository / "wan_compat" / "data"
    assert inside == {str(path.relative_to(folder)) for path in (folder / "demo_model").rglob("*") if path.is_file()}
    assert "wan_compat/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {
        "wan_compat",
        f"wan_compat-{wan_compat.__version__}.dist-info",
    }


def test_every_example_is_tried(repository: Path) -> None:
    names = {path.stem for path in (repository / "examples").glob("*.py")}
    assert names - SERVED == WITH_SUPERVISOR.keys() | AS_SCRIPT.keys()
    page = (repository / "examples" / "README.md").read_text()
    assert not {name for name in names if f"({name}.py)" not in page}


def test_examples_run_from_an_installed_wheel_in_an_empty_environment(
    environment: Path, repository: Path, tmp_path: Path
) -> None:
    paths = {name: str(repository / "examples" / f"{name}.py") for name in (*SERVED, *WITH_SUPERVISOR)}
    said = run_in(environment, tmp_path, "-c", TOGETHER, *paths.values())
    assert said.rpartition("FROM ")[2].startswith(str(environment))
    parts = dict(part.split("\n", 1) for part in said.split("EXAMPLE ")[1:])
    for name, words in WITH_SUPERVISOR.items():
        assert not [word for word in words if word not in parts[paths[name]]], parts[paths[name]]
    assert (tmp_path / "ball.mp4").stat().st_size > 1000
    assert "event: progress" in parts[paths["web_server"]] and "event: done" in parts[paths["web_server"]]


@pytest.mark.long
@pytest.mark.parametrize("name", AS_SCRIPT)
def test_an_example_runs_as_a_script_from_an_installed_wheel(
    name: str, environment: Path, repository: Path, tmp_path: Path
) -> None:
    said = run_in(environment, tmp_path, str(repository / "examples" / f"{name}.py"))
    assert not [word for word in AS_SCRIPT[name] if word not in said], said


def test_a_strictly_typed_client_passes_and_a_wrong_one_does_not(
    environment: Path, repository: Path, tmp_path: Path
) -> None:
    """mypy, as who installed the wheel runs it: it heeds types of packages with py.typed only."""
    (tmp_path / "client.py").write_text(CLIENT)
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [
        *(sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull),
        *("--python-executable", str(environment / "bin" / "python"), "--cache-dir", os.devnull),
    ]
    files = ["client.py", "wrong.py"]
    done = subprocess.run([*command, *files], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert [line.split(": error:")[0] for line in errors] == ["wrong.py:4", "wrong.py:5"], done.stdout
