"""One video from a program: submit, follow, get the result or the error with its fixes.

    python examples/embed.py [MODEL]

Nothing of torch or diffusers is imported here; the model runs in a contained worker.
"""

from __future__ import annotations

import sys

from wan_compat import GenerationRequest, Supervisor
from wan_compat.protocol.errors import WanCompatError
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.demo import demo_model


def main(supervisor: Supervisor, model: str) -> None:
    report = supervisor.check(model)  # reads headers; no worker, no torch
    if not report.compatible_here:
        print(*(finding.message for finding in report.findings), sep="\n")
        return
    job = supervisor.submit(
        GenerationRequest(
            model=model,
            prompt="a red ball moving right",
            output="ball.mp4",
            overwrite=True,
            seed=7,
            # Small, for the model that comes along; leave these out for a model's own sizes.
            width=160,
            height=96,
            num_frames=9,
            num_inference_steps=4,
        )
    )
    try:
        for event in job.events():
            match event:
                case ev.Started(tier=tier):
                    print(f"contained: tier {tier}")
                case ev.Progress(phase="denoise", step=step, total=total, eta_s=eta_s):
                    print(f"step {step} of {total}" + (f", {eta_s:.0f} s left" if eta_s else ""))
                case ev.Warned(message=message):
                    print(f"warning: {message}")
        result = job.result()
    except KeyboardInterrupt:
        job.cancel()
        raise
    except WanCompatError as error:
        print(f"{error.code}: {error.message}", *(f"try: {fix}" for fix in error.fixes), sep="\n")
        return
    assert result.output is not None
    print(f"wrote {result.output.path}: {result.output.num_frames} frames in {result.timings.total_s:.1f} s")


if __name__ == "__main__":
    with Supervisor() as supervisor:  # starts nothing until needed; ends and removes everything on exit
        main(supervisor, sys.argv[1] if len(sys.argv) > 1 else str(demo_model()))
