"""Watch a job: every event as it comes, what the video is becoming, and the frames without a file.

python examples/watch.py [MODEL]
"""

from __future__ import annotations

import dataclasses
import sys

from wan_compat import GenerationRequest, Supervisor
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.demo import demo_model


def main(supervisor: Supervisor, model: str) -> None:
    request = GenerationRequest(
        model=model,
        prompt="a yellow triangle growing",
        seed=3,
        width=160,
        height=96,
        num_frames=9,
        num_inference_steps=4,
        preview_latents=True,
    )
    job = supervisor.submit(request)
    for event in job.events():
        if isinstance(event, ev.LatentPreview):
            # (height, width, 3) uint8: small, rough, and there long before the first frame.
            print(f"preview after step {event.step}: {event.width}x{event.height}, {len(event.pixels)} bytes")
        elif isinstance(event, ev.Finished | ev.Ended):
            print(type(event).__name__)
        else:
            said = ", ".join(
                f"{name} {value}" for name, value in dataclasses.asdict(event).items() if value is not None
            )
            print(f"{type(event).__name__}: {said[:100]}")
    frames = job.result().frames
    assert frames is not None
    # (num_frames, height, width, 3) uint8, in this process's memory; nothing was written.
    brightness = frames.frames.mean(axis=(1, 2, 3))
    print(
        f"{len(brightness)} frames, {frames.duration:.1f} s; brightness {', '.join(f'{one:.0f}' for one in brightness)}"
    )


if __name__ == "__main__":
    with Supervisor() as supervisor:
        main(supervisor, sys.argv[1] if len(sys.argv) > 1 else str(demo_model()))
