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
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import psutil

from tests.assets.breakage import cut_text
from tests.faults import models
from wan_compat.policies.limits import Deadlines
from wan_compat.protocol.errors import DiskExceeded
from wan_compat.supervisor import delivery, encoder, job_run, rescue, spill
from wan_compat.supervisor import events as ev

PROGRAMS = Path(__file__).parents[1] / "programs"
FRAME_BYTES = 64 * 96 * 3

CAP = {"memory_limit_bytes": 1 << 30}
TRUST = {"mode": "trust"}
NO_SPACE = "av_interleaved_write_frame(): No space left on device"

Outside = Callable[[], contextlib.AbstractContextManager[Callable[[ev.Event], None]]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One fault.

    Args:
        category: Of the contract's table.
        error: Code of the error that the fault makes.
        says: What the message or a fix must have in it, where the fault cannot be survived.
        warns: What a warning must have in it, where the fault needs no recovery.
        exact: Frames must be those of a run without the fault; otherwise a step changes pixels, and says so.
        worker, outside, break_model: The fault, in one of three places.
    """

    name: str
    category: str
    error: str
    recovers: bool = True
    says: str = ""
    warns: str = ""
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


def encoder_quits(
    after_frames: float,
    times: int | None,
    *,
    with_copy: bool = True,
    words: str = "x264 broke",
    status: int = 7,
    only: tuple[str, ...] = (),
) -> Outside:
    """An encoder that ends so, that often (None: always); `only` those with one of these words in their command line."""

    @contextlib.contextmanager
    def outside() -> Iterator[Callable[[ev.Event], None]]:
        original, left = encoder.confined_argv, [times]
        program = str(PROGRAMS / "encoder_quits.py")

        def argv(*args: Any, **options: Any) -> Any:
            if (left[0] is not None and left[0] <= 0) or (only and not set(only) & set(args[0])):
                return original(*args, **options)
            left[0] = None if left[0] is None else left[0] - 1
            return [sys.executable, program, str(int(after_frames * FRAME_BYTES)), words, str(status)]

        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(encoder, "confined_argv", argv))
            if not with_copy:
                stack.enter_context(mock.patch.object(delivery, "reserve_spill", lambda *_: None))
            yield lambda _event: None

    return outside


@contextlib.contextmanager
def encoder_hangs() -> Iterator[Callable[[ev.Event], None]]:
    """The first encoder never ends, and a second of that is enough here."""
    original, limits, spawned = encoder.confined_argv, job_run.deadlines, []

    def deadlines(**options: Any) -> Deadlines:
        return dataclasses.replace(limits(**options), encode_tail_s=1.0)

    def argv(*args: Any, **options: Any) -> Any:
        spawned.append(original(*args, **options))
        return spawned[-1] if len(spawned) > 1 else [sys.executable, "-c", "import time; time.sleep(60)"]

    with mock.patch.object(encoder, "confined_argv", argv), mock.patch.object(job_run, "deadlines", deadlines):
        yield lambda _event: None


@contextlib.contextmanager
def encoder_lacks() -> Iterator[Callable[[ev.Event], None]]:
    """An ffmpeg as some distributions build it, without H.264."""
    ready = rescue.find_ffmpeg()
    lacking = dataclasses.replace(ready, encoders=ready.encoders - {"libx264", "libx264rgb"})
    with mock.patch.object(rescue, "find_ffmpeg", lambda: lacking):
        yield lambda _event: None


@contextlib.contextmanager
def copy_gives_out() -> Iterator[Callable[[ev.Event], None]]:
    original, written = spill.Spill.write_all, []

    def write_all(self: spill.Spill, view: memoryview) -> None:
        written.append(len(view))
        if sum(written) > 3 * FRAME_BYTES:
            raise DiskExceeded("no space left on device")
        original(self, view)

    with mock.patch.object(spill.Spill, "write_all", write_all):
        yield lambda _event: None


@contextlib.contextmanager
def impatient() -> Iterator[Callable[[ev.Event], None]]:
    """Silence of two seconds is enough here."""
    original = job_run.deadlines

    def deadlines(**options: Any) -> Deadlines:
        return dataclasses.replace(original(**options), silence_s=2.0)

    with mock.patch.object(job_run, "deadlines", deadlines):
        yield lambda _event: None


# The faults that were looked for first, before there was a recovery for any of their kind but plans and encoders (22 of
# them recovered then): whoever adds a case together with its recovery raises the rate of all, and not of these.
FIRST = frozenset((
    "decoder has no room for a frame", "no room beside the text encoder", "weights do not fit as a whole",
    "worker killed at its memory cap", "no room in any way", "attention gives NaN",
    "black video of overflowing attention", "convolutions give NaN", "decoder gives NaN once", "weights are NaN",
    "decoding fails once", "streamed decoding fails", "no kernel for attention", "worker killed while loading",
    "worker killed while denoising", "worker killed while decoding", "zygote killed while denoising",
    "worker crashes once", "convolutions crash", "worker ends at its start", "worker hangs", "encoder dies once",
    "encoder dies, no copy of frames", "encoder dies every time", "parts in three precisions", "truncated weights",
    "weights of another shape", "missing component", "damaged index", "missing index",
    "pipeline class that is nowhere", "code of the repository", "weights only as pickle",
))  # fmt: skip

CASES = (
    # not enough memory
    Case("decoder has no room for a frame", "memory", "memory_exceeded", exact=False, worker="oom_decode"),
    Case("no room beside the text encoder", "memory", "memory_exceeded", worker="oom_denoise"),
    Case("weights do not fit as a whole", "memory", "memory_exceeded", worker="oom_load"),
    Case("text encoder does not fit as a whole", "memory", "memory_exceeded", worker="oom_text_encoder"),
    Case("worker killed at its memory cap while loading", "memory", "memory_exceeded", worker="memory_cap_load", fields=CAP),
    Case(
        "worker killed at its memory cap while decoding", "memory", "memory_exceeded", worker="memory_cap_decode",
        fields=CAP, exact=False,
    ),
    Case("worker killed at its memory cap", "memory", "memory_exceeded", worker="memory_cap", fields=CAP),
    Case("no room in any way", "memory", "memory_exceeded", recovers=False, says="fewer frames", worker="oom_always"),
    # corrupted frames
    Case("attention gives NaN", "frames", "unusable_frames", worker="nan_attention"),
    Case("black video of overflowing attention", "frames", "unusable_frames", worker="black_attention"),
    Case("convolutions give NaN", "frames", "unusable_frames", worker="nan_convolution"),
    Case("decoder gives NaN once", "frames", "unusable_frames", worker="nan_decode_once"),
    Case(
        "weights are NaN", "frames", "unusable_frames", recovers=False, says="weights of transformer", break_model=models.nan_weights
    ),
    # decoding and computing
    Case("decoding fails once", "decoding", "generation_failed", worker="decode_once"),
    Case("streamed decoding fails", "decoding", "generation_failed", worker="decode_streaming"),
    Case("no kernel for attention", "computing", "generation_failed", worker="attention_kernel"),
    Case("an error of the GPU's driver", "computing", "generation_failed", worker="driver_error"),
    # dead workers
    Case("worker killed while loading", "death", "worker_died", worker="slow", outside=killing("load")),
    Case("worker killed while denoising", "death", "worker_died", worker="slow#1", outside=killing("denoise")),
    Case("worker killed while decoding", "death", "worker_died", worker="slow#2", outside=killing("decode")),
    Case("zygote killed while denoising", "death", "worker_died", worker="slow#3", outside=killing("denoise", "zygote")),
    Case("worker crashes once", "death", "worker_died", worker="crash_denoise"),
    Case("convolutions crash", "death", "worker_died", worker="crash_convolution"),
    Case("worker ends at its start", "death", "worker_died", worker="exit_at_start"),
    Case("worker hangs", "death", "worker_silent", worker="hang", outside=impatient),
    Case(
        "threads of a worker wait for each other", "death", "worker_stalled", worker="deadlock",
        fields={"phase_timeouts": {"stall": 2.0}},
    ),
    # encoding
    Case("encoder dies once", "encoding", "encoding_failed", outside=encoder_quits(3.5, 1)),
    Case("encoder dies, no copy of frames", "encoding", "encoding_failed", outside=encoder_quits(3.5, 1, with_copy=False)),
    Case("encoder hangs", "encoding", "encoding_failed", outside=encoder_hangs),
    Case(
        "encoder ends early without a word", "encoding", "encoding_failed", outside=encoder_quits(3.5, 1, words="", status=0)
    ),
    Case(
        "one encoder dies every time", "encoding", "encoding_failed", outside=encoder_quits(3.5, None, only=("libx264",))
    ),
    Case(
        "the encoders of two codecs die every time", "encoding", "encoding_failed",
        outside=encoder_quits(3.5, None, only=("libx264", "libx265")),
    ),
    Case("ffmpeg lacks the usual encoder", "encoding", "", warns="libx264", outside=encoder_lacks),
    Case(
        "the output's disk is full", "encoding", "disk_exceeded", outside=encoder_quits(3.5, 1, words=NO_SPACE),
    ),
    Case("the copy of the frames has no more room", "encoding", "", warns="was given up", outside=copy_gives_out),
    Case(
        "encoder dies every time", "encoding", "encoding_failed", recovers=False, says="wan-compat encode",
        outside=encoder_quits(3.5, None),
    ),
    Case(
        "no disk has room", "encoding", "disk_exceeded", recovers=False, says="wan-compat encode",
        outside=encoder_quits(3.5, None, words=NO_SPACE),
    ),
    # another way of being called
    Case("pipeline takes fewer arguments", "arguments", "incompatible arguments", worker="fewer_arguments"),
    Case("pipeline wants other arguments", "arguments", "incompatible arguments", worker="other_arguments"),
    Case(
        "repository's pipeline speaks as Wan's program", "arguments", "incompatible arguments",
        break_model=models.own_words, fields=TRUST,
    ),
    Case(
        "repository's pipeline wants what no job has", "arguments", "model_not_compatible", recovers=False,
        says="camera_path", break_model=models.own_wants, fields=TRUST,
    ),
    # the model's files
    Case("parts in three precisions", "model", "", break_model=models.wrong_dtypes, exact=False),
    Case("files of a later diffusers", "model", "", warns="0.99.0", break_model=models.of_a_later_diffusers),
    Case("damaged index", "model", "model_corrupt", break_model=lambda model: cut_text(model / models.INDEX)),
    Case("missing index", "model", "model_index_missing", break_model=lambda model: (model / models.INDEX).unlink()),
    Case("the folder above the model", "model", "model_index_missing", break_model=models.one_folder_deeper),
    Case("index without a class", "model", "model_corrupt", break_model=lambda model: models.index(model, _class_name=None)),
    Case(
        "pipeline class that is nowhere", "model", "model_not_compatible",
        break_model=lambda model: models.index(model, _class_name="WanDreamPipeline"),
    ),
    Case("damaged configuration of a part", "model", "model_corrupt", break_model=models.cut_configuration),
    Case("no list of shards", "model", "model_corrupt", break_model=models.no_list_of_shards),
    Case("a shard lacks beside a whole file", "model", "model_corrupt", break_model=models.shard_gone_beside_whole),
    Case("an LFS pointer beside shards", "model", "model_corrupt", break_model=models.pointer_beside_shards),
    Case(
        "truncated weights beside a variant", "model", "model_corrupt", exact=False,
        break_model=models.truncated_beside_variant,
    ),
    Case("weights in a variant only", "model", "model_corrupt", exact=False, break_model=models.variant_only),
    Case("truncated weights", "model", "model_corrupt", recovers=False, says="vae", break_model=models.truncated),
    Case("a shard lacks", "model", "model_corrupt", recovers=False, says="00001-of-00002", break_model=models.shard_gone),
    Case("configuration of another size", "model", "model_corrupt", break_model=models.other_size),
    Case("weights of another shape", "model", "model_corrupt", recovers=False, says="vae", break_model=models.other_shape),
    Case(
        "missing component", "model", "model_corrupt", recovers=False, says="vae",
        break_model=partial(models.without, "vae"),
    ),
    Case(
        "pipeline class with code of its own", "model", "remote_code_refused", recovers=False, says="pipeline.py",
        break_model=models.class_with_code,
    ),
    Case(
        "code of the repository", "model", "remote_code_refused", recovers=False, says="wan-compat scan",
        break_model=lambda model: models.index(model, transformer=["my_transformer", "MyTransformer"]),
    ),
    Case("weights only as pickle", "model", "pickle_refused", recovers=False, says="convert", break_model=models.pickled),
)  # fmt: skip
