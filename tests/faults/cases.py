"""The faults: where each is put, and what must come of it.

    worker     a library's function fails inside a real, confined worker (tests/programs/faulty_zygote.py)
    outside    this process does something to the job: it kills, or replaces the encoder
    model      the files are broken

`RECOVERS`: a video must come, by itself. `EXPLAINS`: no way of computing mends it, and the error must say exactly what
is wrong and what to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import psutil
from safetensors.numpy import load_file, save_file

from wan_compat.policies.limits import Deadlines
from wan_compat.supervisor import delivery, encoder, job_run
from wan_compat.supervisor import events as ev

PROGRAMS = Path(__file__).parents[1] / "programs"
FRAME_BYTES = 64 * 96 * 3

CAP = {"memory_limit_bytes": 1 << 30}

Outside = Callable[[], contextlib.AbstractContextManager[Callable[[ev.Event], None]]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One fault.

    Args:
        category: Of the contract's table.
        error: Code of the error that the fault makes.
        says: What the message or a fix must have in it, where the fault cannot be survived.
        exact: Frames must be those of a run without the fault; otherwise a step changes pixels, and says so.
        worker, outside, break_model: The fault, in one of three places.
    """

    name: str
    category: str
    error: str
    recovers: bool = True
    says: str = ""
    exact: bool = True
    worker: str = ""
    outside: Outside | None = None
    break_model: Callable[[Path], None] | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


# ---- from outside ---------------------------------------------------------------------------------------------------


def killing(phase: str, what: Literal["worker", "zygote"] = "worker") -> Outside:
    """SIGKILL when a phase begins to show, once."""

    @contextlib.contextmanager
    def outside() -> Iterator[Callable[[ev.Event], None]]:
        killed: list[psutil.Process] = []

        def see(event: ev.Event) -> None:
            shows = (
                isinstance(event, ev.FirstFrame)
                if phase == "decode"
                else isinstance(event, ev.Progress) and event.phase == phase
            )
            if shows and not killed:
                zygotes = [
                    child for child in psutil.Process().children() if "faulty_zygote" in " ".join(_arguments(child))
                ]
                victims = zygotes if what == "zygote" else [c for zygote in zygotes for c in zygote.children()]
                for victim in victims:
                    victim.kill()
                killed.extend(victims)

        yield see

    return outside


def _arguments(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):  # it ended meanwhile
        return process.cmdline()
    return []


def encoder_quits(after_frames: float, times: int | None, *, spill: bool = True) -> Outside:
    @contextlib.contextmanager
    def outside() -> Iterator[Callable[[ev.Event], None]]:
        original, left = encoder.confined_argv, [times]
        program = str(PROGRAMS / "encoder_quits.py")

        def argv(*args: Any, **options: Any) -> Any:
            if left[0] is not None and left[0] <= 0:
                return original(*args, **options)
            left[0] = None if left[0] is None else left[0] - 1
            return [sys.executable, program, str(int(after_frames * FRAME_BYTES)), "x264 broke", "7"]

        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(encoder, "confined_argv", argv))
            if not spill:
                stack.enter_context(mock.patch.object(delivery, "reserve_spill", lambda *_: None))
            yield lambda _event: None

    return outside


@contextlib.contextmanager
def impatient() -> Iterator[Callable[[ev.Event], None]]:
    """Silence of two seconds is enough here."""
    original = job_run.deadlines

    def deadlines(**options: Any) -> Deadlines:
        return dataclasses.replace(original(**options), silence_s=2.0)

    with mock.patch.object(job_run, "deadlines", deadlines):
        yield lambda _event: None


# ---- of the model ---------------------------------------------------------------------------------------------------


def weights(model: Path, part: str) -> Path:
    return next((model / part).glob("*.safetensors"))


def nan_weights(model: Path) -> None:
    tensors = load_file(weights(model, "transformer"))
    name = next(name for name in sorted(tensors) if name.endswith("attn1.to_q.weight"))
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, weights(model, "transformer"), metadata={"format": "pt"})


def truncated(model: Path) -> None:
    path = weights(model, "vae")
    path.write_bytes(path.read_bytes()[:-1000])


def wrong_dtypes(model: Path) -> None:
    for part, dtype in (("vae", np.float16), ("text_encoder", np.float64)):
        tensors = {name: tensor.astype(dtype) for name, tensor in load_file(weights(model, part)).items()}
        save_file(tensors, weights(model, part), metadata={"format": "pt"})


def index(model: Path, **changes: Any) -> None:
    path = model / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickled(model: Path) -> None:
    weights(model, "vae").unlink()
    (model / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04]q\x00.")


def other_shape(model: Path) -> None:
    path = model / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_dim": 24}))


CASES = (
    # not enough memory
    Case("decoder has no room for a frame", "memory", "memory_exceeded", exact=False, worker="oom_decode"),
    Case("no room beside the text encoder", "memory", "memory_exceeded", worker="oom_denoise"),
    Case("weights do not fit as a whole", "memory", "memory_exceeded", worker="oom_load"),
    Case("worker killed at its memory cap", "memory", "memory_exceeded", worker="memory_cap", fields=CAP),
    Case("no room in any way", "memory", "memory_exceeded", recovers=False, says="fewer frames", worker="oom_always"),
    # corrupted frames
    Case("attention gives NaN", "frames", "unusable_frames", worker="nan_attention"),
    Case("black video of overflowing attention", "frames", "unusable_frames", worker="black_attention"),
    Case("convolutions give NaN", "frames", "unusable_frames", worker="nan_convolution"),
    Case("decoder gives NaN once", "frames", "unusable_frames", worker="nan_decode_once"),
    Case(
        "weights are NaN", "frames", "unusable_frames", recovers=False, says="weights of transformer", break_model=nan_weights
    ),
    # decoding and computing
    Case("decoding fails once", "decoding", "generation_failed", worker="decode_once"),
    Case("streamed decoding fails", "decoding", "generation_failed", worker="decode_streaming"),
    Case("no kernel for attention", "computing", "generation_failed", worker="attention_kernel"),
    # dead workers
    Case("worker killed while loading", "death", "worker_died", worker="slow", outside=killing("load")),
    Case("worker killed while denoising", "death", "worker_died", worker="slow#1", outside=killing("denoise")),
    Case("worker killed while decoding", "death", "worker_died", worker="slow#2", outside=killing("decode")),
    Case("zygote killed while denoising", "death", "worker_died", worker="slow#3", outside=killing("denoise", "zygote")),
    Case("worker crashes once", "death", "worker_died", worker="crash_denoise"),
    Case("convolutions crash", "death", "worker_died", worker="crash_convolution"),
    Case("worker ends at its start", "death", "worker_died", worker="exit_at_start"),
    Case("worker hangs", "death", "worker_silent", worker="hang", outside=impatient),
    # encoding
    Case("encoder dies once", "encoding", "encoding_failed", outside=encoder_quits(3.5, 1)),
    Case("encoder dies, no copy of frames", "encoding", "encoding_failed", outside=encoder_quits(3.5, 1, spill=False)),
    Case(
        "encoder dies every time", "encoding", "encoding_failed", recovers=False, says="wan-compat encode",
        outside=encoder_quits(3.5, None),
    ),
    # the model's files
    Case("parts in three precisions", "model", "", break_model=wrong_dtypes, exact=False),
    Case("truncated weights", "model", "model_corrupt", recovers=False, says="vae", break_model=truncated),
    Case("weights of another shape", "model", "model_corrupt", recovers=False, says="vae", break_model=other_shape),
    Case(
        "missing component", "model", "model_corrupt", recovers=False, says="vae",
        break_model=lambda model: shutil.rmtree(model / "vae"),
    ),
    Case(
        "damaged index", "model", "model_corrupt", recovers=False, says="--repair",
        break_model=lambda model: (model / "model_index.json").write_text('{"_class_name": "Wan'),
    ),
    Case(
        "missing index", "model", "model_index_missing", recovers=False, says="--repair",
        break_model=lambda model: (model / "model_index.json").unlink(),
    ),
    Case(
        "pipeline class that is nowhere", "model", "model_not_compatible", recovers=False, says="WanDreamPipeline",
        break_model=lambda model: index(model, _class_name="WanDreamPipeline"),
    ),
    Case(
        "code of the repository", "model", "remote_code_refused", recovers=False, says="wan-compat scan",
        break_model=lambda model: index(model, transformer=["my_transformer", "MyTransformer"]),
    ),
    Case("weights only as pickle", "model", "pickle_refused", recovers=False, says="convert", break_model=pickled),
)  # fmt: skip
