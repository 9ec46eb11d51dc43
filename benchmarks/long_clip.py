"""161 frames of 256x448 in 5B layout, from latents to a file: what three benchmarks look at.

One step of denoising by a tiny transformer makes the latents; what counts begins with its end. The supervisor's job and
the plain script take turns, three each, since a run takes a dozen seconds. Both send conv3d to oneDNN.
"""

from __future__ import annotations

import dataclasses
import functools

from benchmarks.arms import Job, Shared
from wan_compat.supervisor import events as ev

TURNS = 3


@dataclasses.dataclass(frozen=True)
class Turn:
    """Seconds from the end of denoising, on each side."""

    first_frame_s: float  # the whole first frame is in the encoder's pipe
    last_frame_s: float  # the last frame was published by the worker
    file_s: float  # the file stands: encoded, read back, synced, renamed
    script_decode_s: float  # vae.decode returned
    script_export_s: float  # what export_to_video took
    script_file_s: float  # export_to_video returned


@functools.cache
def measure(shared: Shared) -> tuple[Turn, ...]:
    shared.plain_load("ti2v")
    size = {"num_frames": 161, "height": 256, "width": 448, "num_inference_steps": 1, "guidance_scale": 1.0}
    shared.job("ti2v")  # a warm worker, as the script is warm
    turns = []
    for turn in range(TURNS):
        job = shared.job("ti2v", output=str(shared.folder / f"ours{turn}.mp4"), **size)
        script = shared.plain_generate(job.request, output=str(shared.folder / f"script{turn}.mp4"))
        turns.append(_turn(job, script))
    return tuple(turns)


def _turn(job: Job, script: dict[str, float]) -> Turn:
    denoised = job.at(ev.Progress, "denoise")
    return Turn(
        first_frame_s=job.at(ev.FirstFrame) - denoised,
        last_frame_s=job.at(ev.Progress, "decode") - denoised,
        file_s=job.at(ev.Encoded) - denoised,
        script_decode_s=script["decoded"] - script["denoised"],
        script_export_s=script["exported"] - script["frames"],
        script_file_s=script["exported"] - script["denoised"],
    )
