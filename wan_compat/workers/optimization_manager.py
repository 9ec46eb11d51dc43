"""The acting half of `OptimizationManager`: what needs a pipeline, and therefore torch.

The deciding half, which reads the machine and chooses, has the same name in the supervisor
(`wan_compat.supervisor.optimization_manager`) and imports no torch; its plans are carried out here. Two classes,
because the process that decides and the one that acts are never the same.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

from typing import Any, Protocol

from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.plan import PlanSpec
from wan_compat.workers.optimizations import apply_plan
from wan_compat.workers.pipeline_loader import Precision, WanPipelineLoader

_CHUNK = 4  # frames that Wan's VAE makes of one latent frame; the first makes one


class Plan(Protocol):
    """What is used of a plan (`OptimizationPlan`)."""

    use_mixed_precision: bool
    dtype: Precision
    device: str
    spec: PlanSpec


class OptimizationManager:
    """Applies plans to pipelines in this process."""

    def apply_memory_optimizations(self, pipeline: Any, plan: Plan) -> Any:
        """Carry `plan` out and return the pipeline. Raises InvalidRequest for a plan of another kind of machine."""
        if plan.use_mixed_precision:
            WanPipelineLoader().configure_precision(pipeline, plan.dtype)
        apply_plan(pipeline, plan.spec, plan.device)
        return pipeline

    def enable_chunked_processing(self, pipeline: Any, chunk_size: int | None = None) -> Any:
        """Decode in pieces: clips one by one, frames in tiles; returns the pipeline.

        Wan denoises all frames of a clip together, so that chunks of any other kind make another video. Frames leave
        the VAE in chunks of four by `WanPipelineWrapper.generate` and in workers, whatever is set here.

        Args:
            chunk_size: Frames; None or 4.

        Raises:
            InvalidRequest: Another size.
        """
        if chunk_size not in (None, _CHUNK):
            raise InvalidRequest(
                f"chunks of {chunk_size} frames would change the video: Wan denoises all frames together, "
                f"and its VAE decodes {_CHUNK} at a time",
                hint="leave chunk_size out; for less memory ask for fewer frames",
            )
        pipeline.vae.enable_slicing()
        pipeline.vae.enable_tiling()
        return pipeline
