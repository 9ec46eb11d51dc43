"""Options that several verbs share, with one spelling and one help text each."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no remarks; problems only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Tell more: sandbox layers, timings, tracebacks.")]

PhaseTimeout = Annotated[
    list[str] | None,
    typer.Option(
        "--phase-timeout", metavar="PHASE=TIME", help="Most that one phase may take: load=20m. May be repeated."
    ),
]


class MinTier(enum.StrEnum):
    """The letters of `sandbox.spec.Tier`, weaker ones last."""

    A = "A"
    B = "B"
    C = "C"
    D = "D"
    E = "E"


# The values of protocol.values.Mode and Isolation; written again because that module costs 80 ms of pydantic, which
# `--help` and `--version` need not pay. tests/cli/test_main.py holds the two in step.
class Mode(enum.StrEnum):
    SAFE = "safe"
    TRUST = "trust"


class Isolation(enum.StrEnum):
    MODEL = "model"
    JOB = "job"
