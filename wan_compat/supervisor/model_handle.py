"""A model in a sandboxed worker, with the `generate` of a pipeline that is loaded in the process.

The worker is the supervisor's, and stays warm from one call to the next; the handle holds nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wan_compat.protocol.results import VideoGenerationResult
from wan_compat.protocol.values import GenerationRequest

if TYPE_CHECKING:
    from wan_compat.supervisor.client import Job, Supervisor


class ModelHandle:
    """Args:
    supervisor: Runs the jobs.
    model: Folder or file of a Wan model.
    follow: Waits for a job and returns its result; shows its progress, where somebody looks. None only waits.
    fields: Of each GenerationRequest, unless `generate` says otherwise (`mode`, `task`, `image`, ...).
    """

    def __init__(
        self,
        supervisor: Supervisor,
        model: str,
        *,
        follow: Callable[[Job], VideoGenerationResult] | None = None,
        **fields: Any,
    ) -> None:
        self.model = model
        self._supervisor, self._follow, self._fields = supervisor, follow, fields

    def load(self, **fields: Any) -> VideoGenerationResult:
        """Load the model in a worker and generate nothing. Raises as `generate`."""
        return self.generate("", **{**fields, "load_only": True})

    def generate(self, prompt: str, **fields: Any) -> VideoGenerationResult:
        """Make one video and return its frames, or the file that `output` names.

        Raises:
            WanCompatError: Whatever ended the job, with its code.
        """
        request = GenerationRequest(**{**self._fields, **fields, "model": self.model, "prompt": prompt})
        job = self._supervisor.submit(request)
        return self._follow(job) if self._follow is not None else job.result()
