"""The spec crosses a process boundary unchanged, and nothing else is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.sandbox.harness import full_layers
from wan_compat.sandbox.report import EntryReport
from wan_compat.sandbox.spec import (
    Bind,
    ConfinementSpec,
    FileIdentity,
    Identity,
    Layer,
    Limits,
    StaticFile,
    Tier,
    View,
    from_wire,
    to_wire,
)

SPEC = ConfinementSpec(
    layers=full_layers(),
    view=View(
        binds=(Bind("/a", "/b"), Bind("/c", "/d", FileIdentity(1, 2, 3, 4), executable=True)),
        files=(StaticFile("/e", b"\x00\xff"),),
        control_dir="/run/c",
        host_scratch_dir="/tmp/s",
    ),
    limits=Limits(memory_bytes=1, cpu_cores=0.5),
    identity=Identity(1, 2),
    cgroup_dirs=("/x", "/y"),
)


def test_spec_survives_the_wire() -> None:
    assert from_wire(to_wire(SPEC)) == SPEC


@pytest.mark.parametrize(
    "change",
    [
        {"unknown": 1},
        {"layers": ["no_such_layer"]},
        {"layers": "seccomp"},
        {"limits": {"memory_bytes": "1"}},
        {"limits": {"memory_bytes": True}},
        {"limits": {"memory_bytes": 1, "speed": 2}},
        {"view": {"binds": [{"source": "/a"}]}},
        {"view": {"binds": [["/a", "/b"]]}},
        {"identity": {"uid": 1}},
        {"hostname": None},
        {"gpu": 1},
    ],
    ids=str,
)
def test_anything_else_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        from_wire({**to_wire(SPEC), **change})


def test_earlier_tiers_satisfy_later_ones() -> None:
    assert Tier.A.satisfies(Tier.B) and Tier.B.satisfies(Tier.B)
    assert not Tier.C.satisfies(Tier.B)


def test_layers_are_listed_in_their_order_of_entry() -> None:
    assert next(iter(Layer)) is Layer.CGROUP
    assert next(reversed(Layer)) is Layer.SECCOMP


def test_report_survives_json() -> None:
    report = EntryReport(layers=("view", "seccomp"), timings_s={"view": 0.1}, landlock_abi=7, no_new_privs=True)
    assert EntryReport.from_wire(json.loads(json.dumps(to_wire(report)))) == report
    with pytest.raises(TypeError):
        EntryReport.from_wire({"layers": [], "unknown": 1})
