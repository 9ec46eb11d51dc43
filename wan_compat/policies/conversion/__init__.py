"""How weights in other forms become safetensors in diffusers layout, decided without reading one.

sources     which files a worker is shown         components  what a group of tensors is, and its configuration
renames     the tables of names, and vae's own    layout      safetensors files, planned to the byte
plan        the order of it all
"""

from wan_compat.policies.conversion.layout import PlannedFile, PlannedTensor
from wan_compat.policies.conversion.plan import ConversionPlan, plan_conversion
from wan_compat.policies.conversion.sources import Source, choose_sources

__all__ = ["ConversionPlan", "PlannedFile", "PlannedTensor", "Source", "choose_sources", "plan_conversion"]
