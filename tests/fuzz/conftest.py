"""Hypothesis keeps no examples between runs: the checkout may belong to another user than the one who tests it."""

from hypothesis import settings

settings.register_profile("no-database", database=None)
settings.load_profile("no-database")
