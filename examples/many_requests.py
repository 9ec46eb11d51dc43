"""Many requests at once: two workers, an urgent one, a mistaken one, and what is going on meanwhile.

    python examples/many_requests.py [MODEL]

For long lists with files, use `wan-compat batch run`, which remembers what is done (docs/batch.md).
"""

from __future__ import annotations

import concurrent.futures
import sys

from wan_compat import GenerationRequest, Supervisor
from wan_compat.protocol.errors import WanCompatError
from wan_compat.supervisor.demo import demo_model

SMALL = {"width": 160, "height": 96, "num_frames": 5, "num_inference_steps": 2}


def main(supervisor: Supervisor, model: str) -> None:
    prompts = ["a red ball", "a blue square", "a green triangle"]
    jobs = [
        supervisor.submit(GenerationRequest(model=model, prompt=prompt, seed=seed, **SMALL), label=prompt)
        for seed, prompt in enumerate(prompts)
    ]
    # Higher priorities go first; groups take turns, so that one user's hundred do not hold up another's one.
    urgent = GenerationRequest(model=model, prompt="a white ball", seed=9, **SMALL)
    jobs.append(supervisor.submit(urgent, priority=5, group="urgent", label="urgent"))
    mistaken = GenerationRequest(model=model, prompt="too wide", **SMALL | {"width": 170})
    jobs.append(supervisor.submit(mistaken, label="mistaken"))  # its error comes with its result, and stops nobody

    status = supervisor.status()  # at any time, from any thread
    print(f"{len(status.running)} running, {len(status.queued)} waiting")

    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as waiting:
        for job, outcome in zip(jobs, waiting.map(result_or_error, jobs), strict=True):
            print(f"{job.id} {job.status().label}: {outcome}")


def result_or_error(job) -> str:
    try:
        result = job.result(timeout=600)
    except WanCompatError as error:
        return f"{error.code}: {error.message}; {error.hint}"
    return f"{result.frames.frames.shape} in {result.timings.total_s:.1f} s"


if __name__ == "__main__":
    with Supervisor(workers=2) as supervisor:
        main(supervisor, sys.argv[1] if len(sys.argv) > 1 else str(demo_model()))
