"""A policy is read whole or refused whole, and only the user's own sources can loosen it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_compat.policies.limits import LEAST_PHASE_S
from wan_compat.policies.policy import Policy, narrow, read_policy, replace
from wan_compat.protocol.errors import InvalidRequest, RefusedByPolicy
from wan_compat.protocol.values import Mode
from wan_compat.sandbox.spec import Tier

REFUSED = {
    "unknown key": {"colour": "red"},
    "key of another spelling": {"min-tier": "A"},
    "tier that is none": {"min_tier": "Z"},
    "tier as a number": {"min_tier": 1},
    "truth as text": {"allow_unsandboxed": "yes"},
    "truth as number": {"allow_unsandboxed": 1},
    "negative memory": {"memory_limit": -1},
    "negative memory as text": {"memory_limit": "-8GB"},
    "memory without sense": {"memory_limit": "lots"},
    "infinite memory": {"memory_limit": float("inf")},
    "fractional memory": {"memory_limit": 1.5e9},
    "too little memory": {"memory_limit": "1MB"},
    "memory beyond range": {"memory_limit": 1 << 60},
    "infinite cores": {"cpu_cores": float("inf")},
    "no cores": {"cpu_cores": 0},
    "cores that are none": {"cpu_cores": float("nan")},
    "cores as text": {"cpu_cores": "2"},
    "negative threads": {"threads": -5},
    "threads as text": {"threads": "64"},
    "threads as truth": {"threads": True},
    "timeout of nothing": {"timeout": "0s"},
    "infinite timeout": {"timeout": float("inf")},
    "a phase that is none": {"phase_timeouts": "lead=20m"},
    "a phase of no length": {"phase_timeouts": {"load": "soon"}},
    "a phase of more than a week": {"phase_timeouts": "load=200h"},
    "phases as a number": {"phase_timeouts": 20},
    "a list": {"scratch": ["64MiB"]},
    "a table": {"scratch": {"size": 5}},
    "mode that is none": {"mode": "brave"},
    "one mistake among good ones": {"min_tier": "A", "threads": 64, "oops": 1},
}


@pytest.mark.parametrize("case", REFUSED)
def test_malformed_policy_is_refused_whole_and_names_its_source(case):
    with pytest.raises(InvalidRequest, match="somewhere"):
        read_policy(REFUSED[case], "somewhere")


def test_good_policy_is_read_in_a_persons_units():
    fields = read_policy(
        {"min_tier": "A", "memory_limit": "8GB", "scratch": "32MiB", "timeout": "1.5h", "cpu_cores": 2, "mode": "safe"},
        "somewhere",
    )
    assert fields == {
        "min_tier": Tier.A,
        "memory_limit_bytes": 8_000_000_000,
        "scratch_bytes": 32 << 20,
        "timeout_s": 5400.0,
        "cpu_cores": 2.0,
        "mode": Mode.SAFE,
    }


WIDER = [
    {"min_tier": Tier.C},
    {"allow_unsandboxed": True},
    {"threads": 500},
    {"open_files": 1000},
    {"scratch_bytes": 1 << 30},
    {"memory_limit_bytes": None},
    {"memory_limit_bytes": 16 << 30},
    {"timeout_s": 7200.0},
    {"cpu_cores": None},
    {"mode": Mode.TRUST},
    {"allow_restricted": True},
    {"phase_timeouts": {"load": 601.0}},
    {"phase_timeouts": {"load": 60.0, "decode": LEAST_PHASE_S["decode"] + 1}},
]
BASE = replace(
    Policy(),
    {
        "memory_limit_bytes": 8 << 30,
        "timeout_s": 3600.0,
        "cpu_cores": 2.0,
        "mode": Mode.SAFE,
        "allow_restricted": False,
        "phase_timeouts": {"load": 600.0},
    },
)


@pytest.mark.parametrize("fields", WIDER, ids=str)
def test_widening_is_refused_and_says_what(fields):
    with pytest.raises(RefusedByPolicy, match=next(iter(fields))):
        narrow(BASE, fields, "wan-compat.toml")


def test_narrowing_is_taken():
    narrowed = narrow(BASE, {"min_tier": Tier.A, "memory_limit_bytes": 1 << 30, "threads": 32}, "job")
    assert (narrowed.min_tier, narrowed.memory_limit_bytes, narrowed.threads) == (Tier.A, 1 << 30, 32)
    assert narrowed.timeout_s == BASE.timeout_s


def test_of_phases_each_is_narrowed_by_itself():
    fields = read_policy({"phase_timeouts": "load=90s, decode=20m"}, "wan-compat.toml")
    assert narrow(BASE, fields, "wan-compat.toml").phase_timeouts == {"load": 90.0, "decode": 1200.0}
    more = narrow(BASE, read_policy({"phase_timeouts": {"encode": 60}}, "job"), "job")
    assert more.phase_timeouts == {"load": 600.0, "encode": 60.0}, "of the others, what was said before stays"


@given(st.lists(st.sampled_from(WIDER), min_size=1, max_size=4), st.booleans())
def test_no_combination_with_a_widening_field_gets_through(parts, strict_first):
    fields = {"min_tier": Tier.A} if strict_first else {}
    for part in parts:
        fields |= part
    if fields == {"min_tier": Tier.A}:
        return
    with pytest.raises(RefusedByPolicy):
        narrow(BASE, fields, "x")
