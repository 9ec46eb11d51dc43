"""Which resource limits a spec leads to."""

from __future__ import annotations

import os
import resource

import pytest

from wan_compat.sandbox import rlimits
from wan_compat.sandbox.spec import Bind, ConfinementSpec, FileIdentity, GpuAccess, Identity, Layer, Limits, View

SPEC = ConfinementSpec(
    layers=frozenset({Layer.USER_NAMESPACE}), view=View(), limits=Limits(memory_bytes=1 << 30, threads=9)
)


def with_(**changed: object) -> ConfinementSpec:
    return ConfinementSpec(**{"layers": SPEC.layers, "view": SPEC.view, "limits": SPEC.limits, **changed})  # type: ignore[arg-type]


def test_private_memory_is_capped_where_no_cgroup_does_it() -> None:
    assert rlimits.limits_of(SPEC)[resource.RLIMIT_DATA] == 1 << 30
    assert resource.RLIMIT_DATA not in rlimits.limits_of(with_(layers=frozenset({Layer.CGROUP})))


def test_threads_are_capped_only_where_the_count_is_the_workers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rlimits.limits_of(SPEC)[resource.RLIMIT_NPROC] == 9
    assert rlimits.limits_of(with_(layers=frozenset(), identity=Identity(1, 1)))[resource.RLIMIT_NPROC] == 9
    assert resource.RLIMIT_NPROC not in rlimits.limits_of(with_(layers=frozenset()))
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "5.10.0-28-amd64", "#1", "x86_64")))
    assert resource.RLIMIT_NPROC not in rlimits.limits_of(SPEC)


def test_no_core_file_and_no_locked_memory() -> None:
    found = rlimits.limits_of(SPEC)
    assert found[resource.RLIMIT_CORE] == found[resource.RLIMIT_MEMLOCK] == found[resource.RLIMIT_MSGQUEUE] == 0


def test_address_space_leaves_room_for_the_model_and_for_a_gpu() -> None:
    huge = View(binds=(Bind("/a", "/model/a", FileIdentity(1, 1, 1 << 40, 1)),))
    assert rlimits.limits_of(with_(view=huge))[resource.RLIMIT_AS] > 1 << 40
    assert resource.RLIMIT_AS not in rlimits.limits_of(with_(gpu=GpuAccess(())))
