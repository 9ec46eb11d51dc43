"""How much there is to compute before the first denoising step is over, and how long that takes at the slowest.

Nobody can say how long it takes here; but how much it is follows from the model's sizes and the video's, and slower
than these rates no machine is that anybody waits for. So a worker that spins without an end is found in hours, where
nothing else bounds it before it has taken a step.
"""

from __future__ import annotations

from wan_compat.policies.limits import LEAST_PHASE_S, LONGEST_PHASE_S, SLOWEST_DISK_BYTES_PER_S
from wan_compat.policies.planning.courses import Job, course_of, forwards_of
from wan_compat.policies.planning.machine import GpuFacts
from wan_compat.policies.planning.shapes import ModelShape
from wan_compat.protocol.values import PipelineSpec

# Floating point operations per second. A core without vector units makes 5e9 (limits.py), one of today's ten times as
# many; a GPU that computes bfloat16 by other types, as those before 2020 do, may make a hundredth of what it says.
SLOWEST_CORE = 5e9
SLOWEST_GPU = 100e9
SLOWEST_RECENT_GPU = 1e12  # computes bfloat16 itself: the smallest of them make 5e12 in float32
RECENT = (8, 0)  # its compute capability
# No more of them are counted on: a container may have the time of a few, and see all of the machine's.
COUNTED_CORES = 4

# What a pipeline may do more in its first step than one pass for each prompt: pictures, caches, a second guidance.
ALLOWANCE = 2


def first_step_s(shape: ModelShape, job: Job, pipeline: PipelineSpec, gpu: GpuFacts | None = None) -> float:
    """Return how long the time until the end of the first denoising step can be, in seconds.

    Args:
        gpu: The one that the pipeline is run on, if it is run on one.
    """
    passes = (2 if job.guidance else 1) * job.at_once
    rate = SLOWEST_CORE * min(COUNTED_CORES, pipeline.threads)
    if pipeline.device == "cuda":
        capability = gpu.compute_capability if gpu is not None else None
        rate = SLOWEST_RECENT_GPU if capability is not None and capability >= RECENT else SLOWEST_GPU
    computing_s = passes * forward_operations(shape, job) / rate
    # Weights that come and go are read for each pass.
    weights = max((shape.weights[name].bytes_in("float32") for name in shape.experts), default=0)
    reading_s = passes * weights / SLOWEST_DISK_BYTES_PER_S
    return min(LONGEST_PHASE_S, LEAST_PHASE_S["denoise"] + ALLOWANCE * (computing_s + reading_s))


def forward_operations(shape: ModelShape, job: Job) -> float:
    """Return the multiplications and additions of one pass through the transformer, of the largest kind."""
    sizes = shape.denoiser
    context = job.text_tokens + sizes.image_tokens
    found = 0.0
    for forward in forwards_of(shape, job, course_of(shape, job)):
        tokens, keys = float(forward.tokens), float(max(forward.tokens, forward.keys))
        projections = 2 * sizes.dim**2 * (6 * tokens + 2 * context)  # q, k, v, out; of text q, out, and its k, v
        attention = 4 * tokens * (keys + context) * sizes.dim
        feed_forward = 4 * tokens * sizes.dim * sizes.ffn_dim
        found = max(found, (sizes.layers + sizes.vace_blocks) * (projections + attention + feed_forward))
    return found
