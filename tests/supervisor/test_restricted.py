"""`--restricted` from a repository to frames, with a real supervisor and worker."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest, Supervisor
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import (
    GenerationFailed,
    InvalidRequest,
    JobTimeout,
    ModelNotCompatible,
    RefusedByPolicy,
    RemoteCodeRefused,
    UnusableFrames,
)
from wan_compat.protocol.values import Mode
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.model_choice import choose_model
from wan_compat.supervisor.worker_pool import WorkerPool

Make = Callable[..., Path]
SMALL = {"height": 64, "width": 96, "num_frames": 5, "num_inference_steps": 2, "seed": 7, "prompt": "a fox"}

AS_IT_IS = "def generate(pipe, request):\n    return pipe()\n"
TWO_PASSES = """
from __future__ import annotations
import torch
import torch.nn.functional as F
from .prompts import at_dusk

def keep_bounded(step, total, latents):
    return torch.clamp(latents, -4.0, 4.0)

def generate(pipe, request):
    prompt = at_dusk(request.prompt)
    draft = pipe(prompt=prompt, output="latents")
    noise = torch.randn(pipe.latent_shape(), generator=torch.Generator().manual_seed(request.seed + 1))
    video = pipe(prompt=prompt, latents=torch.lerp(noise, draft, 0.5), on_step=keep_bounded)
    soft = F.interpolate(F.avg_pool2d(video, 2), scale_factor=2.0, mode="bilinear")
    print(prompt)
    for index, frame in enumerate(soft):
        yield frame * (index / len(soft))
"""
PROMPTS = 'def at_dusk(text: str) -> str:\n    return f"{text}, at dusk"\n'


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function that makes a repository: a tiny model and the Python files that are given."""

    def build(class_name: object = ("pipeline", "generate"), **files: str) -> Path:
        folder = tmp_path_factory.mktemp("restricted") / "model"
        shutil.copytree(tiny_model("t2v"), folder)
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": class_name}))
        for name, source in files.items():
            (folder / f"{name}.py").write_text(source)
        return folder

    return build


def asked(model: Path, **fields: object) -> GenerationRequest:
    return GenerationRequest(**({"model": str(model), "restricted": True} | SMALL | fields))


def frames(supervisor: Supervisor, request: GenerationRequest) -> np.ndarray:
    found = supervisor.generate(request).frames
    assert found is not None
    return found.frames


def choose(model: Path, *, restricted: bool = True):
    return choose_model(str(model), Mode.SAFE, threads=1, memory_limit_bytes=8 << 30, restricted=restricted)


# -- it runs -----------------------------------------------------------------------------------------------------------


def test_two_passes_hooks_and_frames_one_by_one(make: Make, supervisor: Supervisor, tmp_path: Path) -> None:
    model = make(pipeline=TWO_PASSES, prompts=PROMPTS)
    job = supervisor.submit(asked(model, worker_log=str(tmp_path / "log")))
    steps = [(e.phase, e.step, e.total) for e in job.events() if isinstance(e, ev.Progress) and e.phase == "denoise"]
    result = job.result()
    assert steps == [("denoise", 1, 2), ("denoise", 2, 2), ("denoise", 3, 4), ("denoise", 4, 4)]
    assert result.frames is not None and result.frames.frames.shape == (5, 64, 96, 3)
    assert result.frames.frames[0].max() == 0 < result.frames.frames[4].max()
    assert (tmp_path / "log").read_text().strip() == "a fox, at dusk"
    assert result.code.mode == "safe" and result.code.restricted
    assert result.code.files == {
        name: hashlib.sha256((model / name).read_bytes()).hexdigest() for name in ("pipeline.py", "prompts.py")
    }


@pytest.mark.parametrize(
    "source",
    [AS_IT_IS, "def generate(pipe, request):\n    return pipe.decode(pipe(output='latents'))\n"],
    ids=["called", "decoded"],
)
def test_what_changes_nothing_gives_the_pixels_of_the_plain_pipeline(
    source: str, make: Make, supervisor: Supervisor
) -> None:
    plain = supervisor.generate(asked(tiny_model("t2v"), restricted=False))
    assert plain.frames is not None and not plain.code.restricted
    assert np.array_equal(plain.frames.frames, frames(supervisor, asked(make(pipeline=source))))


def test_a_repository_without_code_runs_as_it_is_and_that_is_said(supervisor: Supervisor) -> None:
    result = supervisor.generate(asked(tiny_model("t2v")))
    assert any("names no code of its own" in text for text in result.warnings)
    assert not result.code.restricted and result.code.files == {}


# -- it is refused before anything is started --------------------------------------------------------------------------


def test_without_the_option_it_stays_remote_code(make: Make) -> None:
    with pytest.raises(RemoteCodeRefused, match="_class_name"):
        choose(make(pipeline=AS_IT_IS), restricted=False)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"pipeline": "import math\nimport os\n"}, "pipeline.py, line 2: import of 'os'"),
        ({"pipeline": "from .a import b\n", "a": "x = 1\nx.__class__\n"}, "a.py, line 2: "),
        ({"pipeline": "\nfrom .gone import b\n"}, "pipeline.py, line 2, names gone.py"),
        ({}, "model_index.json of .* names pipeline.py, which"),
        ({"pipeline": "def f(:\n"}, "pipeline.py, line 1: invalid syntax"),
        ({"pipeline": "#" * 300_000}, "pipeline.py, line 0: 262,145 bytes"),
        ({"pipeline": "\x1b[2J = 1\n"}, "line 1: invalid non-printable character"),
        ({"pipeline": "".join(f"from .m{n} import a\n" for n in range(20)), **{f"m{n}": "a = 1\n" for n in range(20)}},
         "more than 16 files"),
    ],
    ids=["import", "sibling", "missing-sibling", "missing", "syntax", "long", "controls", "many"],
)  # fmt: skip
def test_code_outside_the_subset_is_refused_with_file_line_and_construct(
    files: dict[str, str], why: str, make: Make
) -> None:
    with pytest.raises(RemoteCodeRefused, match=why) as caught:
        choose(make(**files))
    assert caught.value.exit_code == 5 and "\x1b" not in caught.value.message


@pytest.mark.parametrize(
    "class_name",
    [["../pipeline", "generate"], ["a.b", "generate"], ["pipeline", "__init__"], ["pipeline"], ["pipeline", "f", "g"],
     ["pipeline", 1], ["_x", "f"], []],
)  # fmt: skip
def test_what_is_no_module_and_function_is_refused(class_name: list[object], make: Make) -> None:
    with pytest.raises(RemoteCodeRefused, match=r"model_index\.json"):
        choose(make(class_name, pipeline=AS_IT_IS))


@pytest.mark.parametrize("key", ["auto_map", "custom_pipeline", "trust_remote_code"])
def test_other_code_of_the_repository_stays_refused(key: str, make: Make) -> None:
    model = make(pipeline=AS_IT_IS)
    config = json.loads((model / "transformer" / "config.json").read_text())
    (model / "transformer" / "config.json").write_text(json.dumps(config | {key: {"AutoModel": "m.M"}}))
    with pytest.raises(RemoteCodeRefused, match=key):
        choose(model)


def test_only_the_files_of_the_code_are_admitted_besides(make: Make) -> None:
    model = make(pipeline=TWO_PASSES, prompts=PROMPTS, setup="import os\n")
    shown = {fact.path for fact in choose(model).admitted if fact.path.endswith(".py")}
    assert shown == {"pipeline.py", "prompts.py"}


def test_a_policy_can_forbid_it(make: Make) -> None:
    with Supervisor(policy=Policy(allow_restricted=False)) as supervisor:
        with pytest.raises(RefusedByPolicy, match="does not allow restricted code"):
            supervisor.submit(asked(make(pipeline=AS_IT_IS)))


@pytest.mark.parametrize(
    ("allowed", "needed"),
    [({"min_tier": Tier.E, "allow_unsandboxed": True}, Tier.B), ({"min_tier": Tier.C}, Tier.B), ({}, Tier.B),
     ({"min_tier": Tier.A}, Tier.A)],
    ids=["E", "C", "default", "A"],
)  # fmt: skip
def test_it_does_not_run_below_the_tier_of_approved_code(allowed: dict[str, object], needed: Tier, make: Make) -> None:
    pool, model = WorkerPool(spawn_only=False, wake_fd=-1), choose(make(pipeline=AS_IT_IS))
    assert pool.order(Policy(**allowed), Mode.SAFE, model, None, 1 << 30).policy.min_tier is needed
    plain = choose(tiny_model("t2v"))
    assert pool.order(Policy(**allowed), Mode.SAFE, plain, None, 1 << 30).policy == Policy(**allowed)


def test_it_is_of_safe_mode() -> None:
    with pytest.raises(ValidationError, match="of safe mode"):
        GenerationRequest(model="x", prompt="x", mode=Mode.TRUST, restricted=True)


# -- it fails, and the supervisor goes on --------------------------------------------------------------------------------


def one(expression: str) -> str:
    return f"import torch\ndef generate(pipe, request):\n    return {expression}\n"


@pytest.mark.parametrize(
    ("source", "error", "why"),
    [
        (one("torch.os.popen('true')"), GenerationFailed, "pipeline.py, line 3: AttributeError: torch has no 'os'"),
        (one("pipe().numpy()"), GenerationFailed, "Tensor has no 'numpy'"),
        (one("pipe(num_inference_steps=100_000)"), GenerationFailed, "num_inference_steps"),
        (one("pipe(callback=print)"), GenerationFailed, "pipe takes no callback"),
        (one("pipe(latents=torch.ones(1))"), GenerationFailed, r"latents: \(1,\), not a tensor of shape"),
        (one("pipe(on_step=lambda i, n, x: x[0])"), GenerationFailed, "what on_step returned"),
        (one("pipe(width=100)"), InvalidRequest, "width 100 is not a multiple"),
        (one("5"), GenerationFailed, "returned int, which is no video"),
        (one("['x']"), GenerationFailed, "returned str as a frame"),
        (one("torch.zeros(5, 3, 8, 8)"), GenerationFailed, r"shape \(3, 8, 8\)"),
        (one("torch.zeros(6, 3, 64, 96)"), GenerationFailed, "more than the agreed 5 frames"),
        (one("torch.zeros(4, 3, 64, 96)"), UnusableFrames, "4 frames instead of 5"),
        (one("torch.full((5, 3, 64, 96), float('nan'))"), UnusableFrames, "NaN"),
        (one("torch.full((5, 3, 64, 96), 7.0)"), UnusableFrames, "instead of 0 to 1"),
        ("x = 1 / 0\n", ModelNotCompatible, "pipeline.py, line 1: ZeroDivisionError"),
        ("generate = 5\n", ModelNotCompatible, "has no function 'generate'"),
        ("x = 1\n", ModelNotCompatible, "has no function 'generate'"),
        ("from .pipeline import generate\n", ModelNotCompatible, "imports itself"),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_the_code_is_named(
    source: str, error: type[Exception], why: str, make: Make, supervisor: Supervisor
) -> None:
    with pytest.raises(error, match=why):
        supervisor.generate(asked(make(pipeline=source)))


def test_code_that_does_not_end_is_ended_and_the_next_job_runs(make: Make, supervisor: Supervisor) -> None:
    endless = make(pipeline="def generate(pipe, request):\n    while True:\n        pass\n")
    started = time.monotonic()
    with pytest.raises(JobTimeout):
        supervisor.generate(asked(endless, timeout_s=2))
    assert time.monotonic() - started < 15
    assert len(frames(supervisor, asked(make(pipeline=AS_IT_IS)))) == 5


def test_a_file_that_changed_since_it_was_read_does_not_run(make: Make, supervisor: Supervisor) -> None:
    """A worker that is warm serves what it was loaded with; other bytes are another worker."""
    model = make(pipeline=AS_IT_IS)
    before = frames(supervisor, asked(model))
    (model / "pipeline.py").write_text("def generate(pipe, request):\n    return pipe() * 0.0\n")
    after = frames(supervisor, asked(model))
    assert before.any() and not after.any()
