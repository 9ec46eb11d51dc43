"""What an entered sandbox says of itself: plain data, made in the worker, read by the launcher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class EntryReport:
    """The layers that were entered, in order, and what entering them found.

    It tells what was done, not what holds: that is found by `selftest.run_probes`, from inside.
    """

    layers: tuple[str, ...] = ()
    timings_s: dict[str, float] = dataclasses.field(default_factory=dict)
    landlock_abi: int = 0
    no_new_privs: bool = False
    uid: int = -1
    gid: int = -1
    pid_inside: int = -1

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> EntryReport:
        """Rebuild a report from `spec.to_wire(report)`; unknown keys raise TypeError."""
        return cls(**{**data, "layers": tuple(data.get("layers", ()))})
