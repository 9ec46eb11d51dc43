"""What a model is, from facts alone: `detect` answers, `traits_of` shows the parts it looked at.

survey      one pass over tensor names                 configs     what a config.json says
headers     what tensors are (lora, foreign_headers)   traits      both voices, part by part
layout      how the files lie                          rules       the decision table
hints       what chooses among candidates              pipelines   which class would run it
decide      the order of it all                        contract    the same in the contract's classes
"""

from wan_compat.policies.detection.decide import detect
from wan_compat.policies.detection.traits import Traits, traits_of

__all__ = ["Traits", "detect", "traits_of"]
