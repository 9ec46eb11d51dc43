"""Judgement: given the facts of a model, everything that is wrong or noteworthy about it. One file per subject."""
