"""One decision: the next step of a job that failed, or why there is none."""

from __future__ import annotations

from wan_compat.policies.recovery.ladders import steps
from wan_compat.policies.recovery.steps import MAX_STEPS_PER_ERROR, MAX_STEPS_PER_JOB, Failure, Situation, Step, Stop


def next_step(failure: Failure, situation: Situation) -> Step | Stop:
    """Return what to try next. A step is tried once in a job; three for one kind of failure and six in all at most."""
    category = failure.category
    if failure.component is not None:
        return Stop(f"the weights of {failure.component} are no numbers, which no other way of computing mends")
    if failure.kept:
        return Stop("the frames are kept, and the error says how to finish the video")
    if failure.wanted:
        return Stop("a limit that was set is kept")
    if category == "none":
        return Stop("this is no failure that another attempt could mend")
    if len(situation.tried) >= MAX_STEPS_PER_JOB:
        return Stop(f"{MAX_STEPS_PER_JOB} steps were tried in this job")
    if situation.times(category) >= MAX_STEPS_PER_ERROR:
        return Stop(f"{MAX_STEPS_PER_ERROR} steps were tried against this failure")
    done = {name for _, name in situation.tried}
    for step in steps(failure, situation):
        if step.name not in done:
            return step
    return Stop("everything that is known against this failure was tried" if done else "no other way is known")
