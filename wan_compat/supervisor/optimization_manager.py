"""The deciding half of `OptimizationManager`: reads the machine and chooses. Imports no torch.

The acting half has the same name in `wan_compat.workers.optimization_manager`: it carries a plan out on a pipeline, in
the process that has one. `apply_memory_optimizations` and `enable_chunked_processing` are there.
"""

from __future__ import annotations

from wan_compat.policies.architecture import ModelRequirements
from wan_compat.policies.planning.contract import OptimizationPlan, SystemResources, resources_of
from wan_compat.policies.planning.recommend import recommend
from wan_compat.supervisor.machine import read_machine


class OptimizationManager:
    """Decides how a model is made to fit. `wan-compat plan` and jobs decide by a model's own headers, which is better
    (policies/planning/choice.py); this answers from a registry's figures, before there are files."""

    def analyze_system_resources(self) -> SystemResources:
        """Return GPUs, memory, cores and disk of this machine; sizes under our own cgroup's limits.

        Raises:
            EnvironmentLacks: /proc does not tell.
        """
        return resources_of(read_machine())

    def recommend_optimizations(
        self, model_requirements: ModelRequirements, system_resources: SystemResources
    ) -> OptimizationPlan:
        """Return the cheapest plan whose figures fit the machine; see `ModelRequirements` for what they hold for."""
        return recommend(model_requirements, system_resources)


__all__ = ["ModelRequirements", "OptimizationManager", "OptimizationPlan", "SystemResources"]
