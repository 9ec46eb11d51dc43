"""Trust mode, whole: repositories with code of their own generate videos after an approval, and not before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.assets.community import COMMUNITY, community_model, write
from tests.assets.plain_cases import write_media
from tests.assets.tiny_wan import tiny_model
from tests.security.ways import WAYS
from wan_compat import GenerationRequest, Supervisor, VideoGenerationResult
from wan_compat.protocol import errors
from wan_compat.supervisor import worker_pool
from wan_compat.supervisor.audit_log import AuditLog
from wan_compat.supervisor.repository_tree import read_tree
from wan_compat.supervisor.trust_store import TrustStore, make_grant

SIZE = {"height": 64, "width": 96, "num_frames": 5, "num_inference_steps": 2}

INVERTED = lambda frames, plain: np.abs(frames.astype(int) - (255 - plain)).max() <= 1  # noqa: E731
# What each repository's code does to a clip: seen in the frames, by nothing that the code says of itself.
MARKS: dict[str, Callable[[np.ndarray, np.ndarray], bool]] = {
    "own_pipeline": INVERTED,
    "own_vae": INVERTED,
    # diffusers' modular Wan samples a little otherwise than its WanPipeline: a different padding of the prompt.
    "blocks": lambda frames, plain: np.abs(frames.astype(int) - (255 - plain)).max() <= 3,
    "own_tokenizer": lambda frames, plain: bool((frames != plain).any()),  # another prompt: a tiny model hardly cares
    "lone_pipeline": lambda frames, plain: bool((frames == plain[:, ::-1]).all()),
}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(place))
        yield place / "wan-compat"


@pytest.fixture(scope="module")
def supervisor(state: Path) -> Iterator[Supervisor]:
    with Supervisor(mode="trust") as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def plain(supervisor: Supervisor) -> np.ndarray:
    """The frames of the same model without code."""
    return pixels(supervisor.generate(request(tiny_model("t2v"), mode="safe")))


def request(model: Path, **fields: Any) -> GenerationRequest:
    defaults = {"model": str(model), "prompt": "a red ball bounces", "seed": 5, "guidance_scale": 4.0, "mode": "trust"}
    return GenerationRequest(**(defaults | SIZE | fields))


def pixels(result: VideoGenerationResult) -> np.ndarray:
    assert result.frames is not None
    return result.frames.frames


def approve(model: Path) -> Path:
    TrustStore().add(make_grant(read_tree(str(model)), imports=[], risks=[]))
    return model


def own(model: Path, code: str) -> Path:
    """A repository whose own_pipeline.py is this code, with a class NegativePipeline."""
    community_model("own_pipeline", model)
    write(model, "own_pipeline.py", code)
    return approve(model)


@pytest.mark.parametrize("kind", COMMUNITY)
def test_repository_runs_when_it_was_approved_and_only_then(
    kind: str, supervisor: Supervisor, plain: np.ndarray, tmp_path: Path
) -> None:
    model = community_model(kind, tmp_path / kind)
    with pytest.raises(errors.RemoteCodeRefused) as safe:
        supervisor.generate(request(model, mode="safe"))
    assert safe.value.exit_code == 5 and ".json" in safe.value.message and str(model) in safe.value.message
    with pytest.raises(errors.TrustRefused):
        supervisor.generate(request(model))
    result = supervisor.generate(request(approve(model)))
    frames = pixels(result)
    assert frames.shape == plain.shape
    assert MARKS.get(kind, lambda frames, plain: (frames != plain).mean() > 0.05)(frames, plain)
    assert result.sandbox.tier in ("A", "B") and all(result.sandbox.self_test.values())
    document = result.to_json()["code"]
    (grant,) = (grant for grant in TrustStore().grants() if grant.source == str(model))
    assert (document["mode"], document["tree_hash"]) == ("trust", grant.tree_hash)
    assert document["approved_at"] == grant.approved_at and document["source"] == str(model)
    assert len(document["modules"]) == 1 and (model / document["modules"][0]).is_file()
    with pytest.raises(errors.RemoteCodeRefused):  # the approval gave safe mode nothing
        supervisor.generate(request(model, mode="safe"))


def test_a_changed_byte_is_refused_with_the_difference(supervisor: Supervisor, tmp_path: Path) -> None:
    model = approve(community_model("own_pipeline", tmp_path / "model"))
    (model / "helpers" / "colours.py").write_text("def invert(frames):\n    return 2 - frames\n")
    with pytest.raises(errors.TrustRefused, match=r"changed: helpers/colours\.py") as caught:
        supervisor.generate(request(model))
    assert caught.value.exit_code == 5


def test_code_that_is_replaced_after_the_check_never_runs(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = approve(community_model("own_pipeline", tmp_path / "model"))
    original = worker_pool.WorkerPool.acquire

    def acquire(self: Any, *arguments: Any, **options: Any) -> Any:
        target = model / "own_pipeline.py"
        target.rename(model / "before.py")
        shutil.copy(model / "before.py", target)
        return original(self, *arguments, **options)

    monkeypatch.setattr(worker_pool.WorkerPool, "acquire", acquire)
    with Supervisor(mode="trust") as supervisor, pytest.raises(errors.SandboxUnavailable, match=r"own_pipeline\.py"):
        supervisor.generate(request(model))


def test_a_plain_model_in_trust_mode_runs_no_code_and_makes_the_same_frames(
    supervisor: Supervisor, plain: np.ndarray, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model("t2v"), tmp_path / "model")
    write(tmp_path / "model", "pipeline.py", "raise SystemExit\n")
    result = supervisor.generate(request(approve(tmp_path / "model")))
    assert (pixels(result) == plain).all() and result.code.modules == [] and result.code.mode == "trust"


def test_safe_mode_makes_the_same_frames_beside_everything_that_it_never_shows(
    supervisor: Supervisor, plain: np.ndarray, tmp_path: Path
) -> None:
    """All at once: pipeline.py, None.py, pickles, exported programs, object arrays, chat templates, a ftfy.py."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model("t2v"), model)
    inert = [way for way in WAYS if "never" in way.harmless and not way.runs_when_approved and not _refused(way.name)]
    assert len(inert) >= 8
    for way in inert:
        way.build(model)
    result = supervisor.generate(request(model, mode="safe"))
    assert (pixels(result) == plain).all()
    code = result.to_json()["code"]
    assert (code["mode"], code["tree_hash"], code["modules"]) == ("safe", None, [])


def _refused(name: str) -> bool:
    return name.startswith(
        ("custom_", "auto_", "modular_", "own_", "kernel", "hub_", "library_", "pickled_", "pickle_as")
    )


LOOK = """
import json, os, socket, subprocess, sys

def attempt(call):
    try:
        call()
        return "done"
    except OSError as error:
        return error.errno
    except Exception as error:
        return type(error).__name__

FOUND = {
    "unix socket": attempt(lambda: socket.socket(socket.AF_UNIX)),
    "socket pair": attempt(socket.socketpair),
    "internet socket": attempt(lambda: socket.socket(socket.AF_INET)),
    "new program": attempt(lambda: os.fork()),
    "own file": attempt(lambda: open(__file__, "a")),
    "bytecode": attempt(lambda: os.mkdir(os.path.join(os.path.dirname(__file__), "__pycache__"))),
    "passwords": attempt(lambda: open("/etc/shadow")),
    "module": __name__,
    "model on path": any(place.startswith("/model") for place in sys.path),
    "ftfy": __import__("ftfy").__file__.startswith("/model"),
    "files": sorted(os.path.relpath(os.path.join(base, name), "/model")
                    for base, _, names in os.walk("/model") for name in names if name.endswith((".py", ".bin"))),
}
print("LOOK" + json.dumps(FOUND), flush=True)
"""


def test_what_code_can_do_while_it_is_imported(supervisor: Supervisor, tmp_path: Path) -> None:
    """The narrower system-call filter is closed before the first line of a repository's code runs."""
    model = tmp_path / "model"
    community_model("own_pipeline", model)
    write(model, "own_pipeline.py", LOOK + (model / "own_pipeline.py").read_text())
    write(model, "ftfy.py", "raise SystemExit\n")
    (model / "extra.bin").write_bytes(b"\x80\x02.")
    log = tmp_path / "worker.log"
    supervisor.generate(request(approve(model), worker_log=str(log)))
    (line,) = (line for line in log.read_text().splitlines() if line.startswith("LOOK"))
    found = json.loads(line.removeprefix("LOOK"))
    denied = ("unix socket", "socket pair", "internet socket", "new program", "own file", "bytecode", "passwords")
    assert {name: found[name] for name in denied if found[name] == "done"} == {}
    assert found["module"] == "_wan_repository.own_pipeline"
    assert not found["model on path"] and not found["ftfy"]
    assert found["files"] == ["ftfy.py", "helpers/colours.py", "own_pipeline.py"]  # approved Python, and no pickle


BROKEN: dict[str, tuple[str, type[errors.WanCompatError], str]] = {
    "absent package": ("import no_such_package\n", errors.ModelNotCompatible, "no_such_package"),
    "absent package, late": (
        "class NegativePipeline:\n    def __init__(self, **parts): pass\n"
        "    def __call__(self, prompt): import no_such_package\n",
        errors.ModelNotCompatible,
        "no_such_package",
    ),
    "absolute import of its own file": ("import helpers.colours\n", errors.ModelNotCompatible, "helpers"),
    "no class": ("class Other: pass\n", errors.ModelNotCompatible, "NegativePipeline"),
    "a function": ("def NegativePipeline(): pass\n", errors.ModelNotCompatible, "NegativePipeline"),
    "cannot be called": ("class NegativePipeline: pass\n", errors.ModelNotCompatible, "called"),
    "wants more": (
        "class NegativePipeline:\n    def __init__(self, controlnet, **parts): pass\n    def __call__(self): pass\n",
        errors.ModelNotCompatible,
        "controlnet",
    ),
    "takes no prompt": (
        "class NegativePipeline:\n    def __init__(self, **parts): pass\n    def __call__(self, image): pass\n",
        errors.ModelNotCompatible,
        "prompt",
    ),
    "raises at import": ("raise RuntimeError('\\x1b[31mred')\n", errors.ModelCorrupt, "RuntimeError"),
    "syntax": ("class NegativePipeline\n", errors.GenerationFailed, "SyntaxError"),
    "returns nonsense": (
        "class NegativePipeline:\n    def __init__(self, **parts): pass\n    def __call__(self, prompt): return 5\n",
        errors.GenerationFailed,
        "int",
    ),
    "returns other sizes": (
        "import torch\nclass NegativePipeline:\n    def __init__(self, **parts): pass\n"
        "    def __call__(self, prompt): return (torch.zeros(1, 5, 3, 8, 8),)\n",
        errors.GenerationFailed,
        "shape",
    ),
    "returns too few": (
        "import torch\nclass NegativePipeline:\n    def __init__(self, **parts): pass\n"
        "    def __call__(self, prompt): return (torch.zeros(1, 2, 3, 64, 96),)\n",
        errors.UnusableFrames,
        "2 frames",
    ),
    "returns two videos": (
        "import torch\nclass NegativePipeline:\n    def __init__(self, **parts): pass\n"
        "    def __call__(self, prompt): return (torch.rand(2, 5, 3, 64, 96),)\n",
        errors.GenerationFailed,
        "2 videos",
    ),
    "exits": ("import os\nos._exit(3)\n", errors.WorkerDied, ""),
}


@pytest.mark.parametrize("case", BROKEN)
def test_code_that_does_not_work_is_a_typed_error(case: str, supervisor: Supervisor, tmp_path: Path) -> None:
    code, error, words = BROKEN[case]
    with pytest.raises(error) as caught:
        supervisor.generate(request(own(tmp_path / "model", code)))
    assert words in caught.value.message and "\x1b" not in caught.value.message
    assert not any("pip install" in fix for fix in caught.value.fixes)


SEVERAL = """
import torch

class NegativePipeline:
    def __init__(self, **parts):
        pass

    def __call__(self, prompt, num_frames, {argument}):
        ramp = torch.linspace(0, 0.5, 64 * 96).view(1, 1, 64, 96).expand(num_frames, 3, 64, 96)
        return (torch.stack([ramp + {offset} / 255 for number in range(2)]),)
"""


@pytest.mark.parametrize(
    ("argument", "offset", "first"),
    [("**options", "options['generator'][number].initial_seed()", 5), ("width", "10 * number", 0)],
    ids=["as many as it is told", "as many as it always makes"],
)
def test_a_batch_of_repository_code_is_as_many_videos_in_its_order(
    argument: str, offset: str, first: int, supervisor: Supervisor, tmp_path: Path
) -> None:
    model = own(tmp_path / "model", SEVERAL.format(argument=argument, offset=offset))
    one, two = supervisor.submit(request(model, num_videos=2, videos_at_once=2)).results(60)
    assert pixels(one)[0, 0, 0, 0] == first and pixels(two)[0, 0, 0, 0] == first + (1 if first else 10)
    assert pixels(one).shape == pixels(two).shape == (5, 64, 96, 3)


def test_a_worker_that_ran_code_serves_that_tree_only(state: Path, tmp_path: Path) -> None:
    model = approve(community_model("own_transformer", tmp_path / "model"))
    with Supervisor(mode="trust") as supervisor:
        assert supervisor.generate(request(model)).timings.load_s > 0
        assert supervisor.generate(request(model)).timings.load_s == 0  # the warm worker
        plain_model = approve(Path(shutil.copytree(tiny_model("t2v"), tmp_path / "plain")))
        assert supervisor.generate(request(plain_model)).timings.load_s > 0
        assert supervisor.generate(request(plain_model, mode="safe")).timings.load_s > 0  # mode is part of the order
        write(plain_model, "README.md", "another tree, the same files to load\n")
        supervisor.generate(request(approve(plain_model)))
        write(plain_model, "README.md", "a third\n")
        assert supervisor.generate(request(approve(plain_model))).timings.load_s > 0


def test_the_whole_path_on_the_command_line(tmp_path: Path) -> None:
    model = community_model("own_pipeline", tmp_path / "model")
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {**kept, "XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "wan_compat", *arguments]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )

    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SIZE.items()]
    generate = ["generate", str(model), "--prompt", "a red ball", "--output", str(tmp_path / "video.mp4"), *sizes]
    refused = run(*generate, "--mode", "trust", "--json")
    assert refused.returncode == 5 and json.loads(refused.stdout)["error"]["code"] == "trust_refused", refused
    assert run("trust", "add", str(model), "--yes").returncode == 0
    done = run(*generate, "--trust-remote-code", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["code"]["modules"] == ["own_pipeline.py"] and document["output"]["num_frames"] == 5
    log = AuditLog(tmp_path / "state" / "wan-compat")
    assert [entry.event for entry in log.entries()][:2] == ["trust_refused", "trust_granted"]
    assert log.verify().intact


# ---- pictures and videos -------------------------------------------------------------------------------------------

# Code of a repository that takes pictures, each over another class of diffusers: kind, its code, what it is given.
TAKES_PICTURES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "image": (
        "i2v22",
        """from diffusers import WanImageToVideoPipeline


class NegativePipeline(WanImageToVideoPipeline):
    def __call__(self, image, prompt, **options):
        assert image.size == (96, 64) and image.mode == "RGB"
        output = super().__call__(image=image, prompt=prompt, **options)
        output.frames = 1 - output.frames
        return output
""",
        ("image",),
    ),
    "image and last image": (
        "i2v22",
        """from diffusers import WanImageToVideoPipeline


class NegativePipeline(WanImageToVideoPipeline):
    def __call__(self, prompt, image, last_image, negative_prompt=None, height=480, width=832, num_frames=81,
                 num_inference_steps=50, guidance_scale=5.0, generator=None, max_sequence_length=512,
                 output_type="np"):
        output = super().__call__(
            image=image, prompt=prompt, last_image=last_image, negative_prompt=negative_prompt, height=height,
            width=width, num_frames=num_frames, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, generator=generator, max_sequence_length=max_sequence_length,
            output_type=output_type,
        )
        output.frames = 1 - output.frames
        return output
""",
        ("image", "last_image"),
    ),
    "video": (
        "t2v",
        """from diffusers import WanVideoToVideoPipeline


class NegativePipeline(WanVideoToVideoPipeline):
    def __call__(self, video, prompt, num_frames, **options):
        assert len(video) == num_frames and video[0].size == (96, 64)
        output = super().__call__(video=video, prompt=prompt, **options)
        output.frames = 1 - output.frames
        return output
""",
        ("video",),
    ),
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    files = write_media(tmp_path_factory.mktemp("media"))
    return {"image": files["image"], "last_image": files["image"], "video": files["video"]}


def takes_pictures(folder: Path, case: str) -> Path:
    """A model of the kind whose index names a class of own_pipeline.py."""
    kind, code, _ = TAKES_PICTURES[case]
    shutil.copytree(tiny_model(kind), folder)
    write(folder, "own_pipeline.py", code)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": ["own_pipeline", "NegativePipeline"]}))
    return approve(folder)


@pytest.mark.parametrize("case", TAKES_PICTURES)
def test_pictures_and_videos_reach_a_pipeline_of_the_repository(
    case: str, supervisor: Supervisor, media: dict[str, str], tmp_path: Path
) -> None:
    kind, _, roles = TAKES_PICTURES[case]
    model = takes_pictures(tmp_path / "model", case)
    given = {role: media[role] for role in roles}
    strength = {"strength": 0.5} if case == "video" else {}
    found = pixels(supervisor.generate(request(model, **given, **strength)))
    expected = pixels(supervisor.generate(request(tiny_model(kind), mode="safe", **given, **strength)))
    assert INVERTED(found, expected) and expected.std() > 3


@pytest.mark.parametrize(
    ("case", "given", "words"),
    [
        ("image", (), "needs --image"),
        ("image and last image", ("image",), "needs --last-image"),
    ],
)
def test_pictures_that_code_lacks_are_told(
    case: str, given: tuple[str, ...], words: str, supervisor: Supervisor, media: dict[str, str], tmp_path: Path
) -> None:
    model = takes_pictures(tmp_path / "model", case)
    with pytest.raises(errors.InvalidRequest, match=words) as caught:
        supervisor.generate(request(model, **{role: media[role] for role in given}))
    assert caught.value.exit_code == 2
