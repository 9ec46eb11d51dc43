"""A supervisor with jobs that take long, for onlookers: `python -m tests.programs.slow_jobs MODEL COUNT`.

Prints a line when each job is over, `j1 JobCancelled`, and ends when all are.
"""

from __future__ import annotations

import sys

from wan_compat import GenerationRequest, Supervisor
from wan_compat.protocol.errors import WanCompatError

STEPS = 1000  # the most there are; tens of seconds, even of a tiny model


def main() -> None:
    model, count = sys.argv[1], int(sys.argv[2])
    with Supervisor(workers=1) as supervisor:
        jobs = [
            supervisor.submit(
                GenerationRequest(
                    model=model,
                    prompt=f"fox \x1b[2J {number}",
                    num_inference_steps=STEPS,
                    num_frames=5,
                    height=32,
                    width=32,
                )
            )
            for number in range(1, count + 1)
        ]
        for job in jobs:
            try:
                job.result()
                outcome = "done"
            except WanCompatError as error:
                outcome = type(error).__name__
            print(job.id, outcome, flush=True)


if __name__ == "__main__":
    main()
