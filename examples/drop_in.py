"""A script for diffusers, contained by a change of one line: the import.

    python examples/drop_in.py [MODEL]

docs/drop_in.md says what is the same and what is not.
"""

from __future__ import annotations

import sys

from wan_compat import SandboxedPipeline as WanPipeline  # was: from diffusers import WanPipeline
from wan_compat.supervisor.demo import demo_model


def main(model: str) -> None:
    with WanPipeline.from_pretrained(model) as pipe:
        pipe.vae.enable_tiling()

        def on_step(pipe, step, timestep, tensors):
            print(f"step {step + 1}, timestep {timestep:.0f}")
            return tensors

        output = pipe(
            prompt="a red ball moving right",
            negative_prompt="blurred",
            width=160,
            height=96,
            num_frames=9,
            num_inference_steps=4,
            guidance_scale=3.0,
            generator=7,  # or torch.Generator().manual_seed(7)
            callback_on_step_end=on_step,
        )
    video = output.frames[0]  # (num_frames, height, width, 3) float32 from 0 to 1
    print(f"{video.shape} {video.dtype}, from {video.min():.2f} to {video.max():.2f}")
    print(f"sandbox tier {output.results[0].sandbox.tier}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(demo_model()))
