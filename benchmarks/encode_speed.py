"""Frames to a file: our default encoding against diffusers' export_to_video, 49 frames of 832x480.

    ours        the bytes as a worker gives them (uint8) through the whole delivery: confined ffmpeg, a copy of the
                frames on disk, file read back, hashed, synced and renamed
    reference   export_to_video of the same frames as diffusers' pipelines return them, floats in [0, 1]

The pictures are a moving gradient with a disc and grain. `.loss` is our mean error per byte, decoded back, against the
reference's: below 1 means that nothing is visible which is not in theirs.

`.veryfast` is the choice of the preset: the encoder alone, with our settings and with x264's veryfast at the same crf;
`.veryfast_loss` and `.veryfast_size` are what the quicker one costs.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.child import Child, answer
from benchmarks.harness import Benchmark, Row, Samples, alternate, faster, part, timed
from wan_compat.policies.encoding import plan_encoding
from wan_compat.protocol.values import FrameSpec
from wan_compat.supervisor.encode_file import encode_file
from wan_compat.supervisor.encoder import spawn_encoder
from wan_compat.supervisor.ffmpeg import find_ffmpeg
from wan_compat.supervisor.frame_rescue import feed

FRAMES = FrameSpec(width=832, height=480, num_frames=49)


def run(_shared: object) -> Iterator[Row]:
    frames = pictures()
    with tempfile.TemporaryDirectory(prefix="wan-compat-encode-") as folder, Child("benchmarks.encode_speed") as child:
        ours, theirs = f"{folder}/ours.mp4", f"{folder}/theirs.mp4"

        def encode() -> float:
            views = (memoryview(frame) for frame in frames)
            return timed(lambda: encode_file(views, FRAMES, 16, ours, overwrite=True))

        samples = alternate(encode, lambda: float(child.ask(do="export", output=theirs)), 5, warm_up=1)
        yield Row("encode_speed", samples, "s", faster(1.5))
        loss = Samples((_error(ours, frames),), (_error(theirs, frames),))
        yield Row("encode_speed.loss", loss, "steps", part(1.0))
        sizes = Samples((Path(ours).stat().st_size / 1e6,), (Path(theirs).stat().st_size / 1e6,))
        yield Row("encode_speed.size", sizes, "MB", part())
        presets = (f"{folder}/default.mp4", None), (f"{folder}/veryfast.mp4", "veryfast")
        default, veryfast = (functools.partial(_encode_only, frames, *arm) for arm in presets)
        yield Row("encode_speed.veryfast", alternate(default, veryfast, 5, warm_up=1), "s", faster())
        (first, _), (second, _) = presets
        loss = Samples((_error(first, frames),), (_error(second, frames),))
        yield Row("encode_speed.veryfast_loss", loss, "steps", part(1.02))
        sizes = Samples((Path(first).stat().st_size / 1e6,), (Path(second).stat().st_size / 1e6,))
        yield Row("encode_speed.veryfast_size", sizes, "MB", part())


def _encode_only(frames, path: str, preset: str | None) -> float:  # type: ignore[no-untyped-def]
    config = plan_encoding(FRAMES.width, FRAMES.height, 16, ".mp4")
    config.additional_params.update({"preset": preset} if preset else {})
    Path(path).touch()

    def encode() -> None:
        with spawn_encoder(config, FRAMES.num_frames, path) as encoder:
            feed(encoder, (memoryview(frame) for frame in frames), 60)
            encoder.finish(60)

    return timed(encode)


def pictures():  # type: ignore[no-untyped-def]
    import numpy as np

    height, width = FRAMES.height, FRAMES.width
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    grain = np.random.default_rng(0).normal(0, 3, (FRAMES.num_frames + 1, height, width, 1)).astype(np.float32)
    made = []
    for index in range(FRAMES.num_frames):
        sky = np.stack([255 * x / width, 255 * y / height, 128 + 127 * np.sin(x / 60 + index / 8)], -1)
        disc = (x - 100 - 12 * index) ** 2 + (y - 240) ** 2 < 80**2
        sky[disc] = (220, 60, 40)
        made.append((sky + grain[index]).clip(0, 255).astype(np.uint8))
    return np.stack(made)


def _error(path: str, frames) -> float:  # type: ignore[no-untyped-def]
    import numpy as np

    decoded = subprocess.run(
        [find_ffmpeg().path, "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"],
        capture_output=True,
        check=True,
    )
    back = np.frombuffer(decoded.stdout, np.uint8).reshape(frames.shape)
    return float(np.abs(back.astype(np.int16) - frames).mean())


def _be_child() -> None:
    import time

    import numpy as np

    from benchmarks.plain_script import export as export_to_video

    floats = pictures().astype(np.float32) / 255

    def export(output: str) -> float:
        started = time.perf_counter()
        export_to_video(floats, output, 16)
        return time.perf_counter() - started

    answer(export=export)


BENCHMARK = Benchmark("encode_speed", "49 frames to mp4 against export_to_video", run)

if __name__ == "__main__":
    _be_child()
