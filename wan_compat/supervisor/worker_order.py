"""What a worker is started for: the model and what may be done with it, and which other jobs it could serve."""

from __future__ import annotations

import dataclasses

from wan_compat.policies.facts import FileFact
from wan_compat.policies.policy import Policy
from wan_compat.protocol.values import Mode, PipelineSpec


@dataclasses.dataclass(frozen=True)
class WorkerOrder:
    """What a worker is started for. Two jobs with equal orders can share one.

    `requested_limit_bytes` takes part in the comparison, `memory_limit_bytes` does not: without a request it follows
    from the memory that happens to be free, and a warm worker is as good as a new one. A worker that ran approved code
    serves that very tree and no safe job: mode and tree are part of the order.
    """

    admitted: tuple[FileFact, ...]
    pipeline: PipelineSpec | None  # None: nothing is built (a conversion)
    requested_limit_bytes: int | None
    memory_limit_bytes: int = dataclasses.field(compare=False)
    policy: Policy
    mode: Mode
    tree_hash: str | None = None  # of the approved repository, in trust mode
    site: str | None = None  # packages of the model's own environment, which come before the usual ones
    model: str = dataclasses.field(default="", compare=False)  # as the request named it; for people

    @property
    def threads(self) -> int:
        return self.pipeline.threads if self.pipeline is not None else 1
