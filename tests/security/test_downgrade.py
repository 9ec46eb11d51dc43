"""T16: whatever takes a mechanism away, or only says so, nothing is run with less than the policy names.

The downgrade works where a policy allows it: that is what the last tests show, with the tier in force told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.supervisor.conftest import PROGRAMS, misbehaving, request_for  # noqa: F401 - fixtures
from tests.supervisor.test_tiers import needs_a_public_interpreter
from wan_compat import Supervisor
from wan_compat.policies.policy import Policy
from wan_compat.protocol import errors
from wan_compat.sandbox import bwrap
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.settings import load_settings

# A kernel that is too old, or a container that forbids it: the call, its answer, and the layer that is then missing.
LACKS = {
    "landlock": ("landlock_create_ruleset", "ENOSYS", "landlock"),
    "seccomp": ("seccomp", "EINVAL", "seccomp"),
    "new mounts": ("open_tree", "ENOSYS", "view"),
    "pivot_root": ("pivot_root", "EPERM", "view"),
    "namespaces": ("unshare", "EPERM", "namespace"),
    "capabilities": ("capset", "EPERM", "credentials"),
    "close_range": ("close_range", "ENOSYS", "descriptors"),
}
IN_EVERY_TIER = sorted(set(LACKS) - {"new mounts", "pivot_root", "namespaces"})


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Supervisor]]:
    monkeypatch.setattr(bwrap, "_PLACES", "/nonexistent")  # it would be a way out, and a good one
    made: list[Supervisor] = []

    def make(lack: str, **options: object) -> Supervisor:
        supervisor = Supervisor(**options)  # type: ignore[arg-type]
        supervisor._zygote_program = (str(PROGRAMS / "zygote_lacking.py"), *LACKS[lack][:2])
        made.append(supervisor)
        return supervisor

    yield make
    for supervisor in made:
        supervisor.close()


def assert_refused(supervisor: Supervisor, request: object, layer: str) -> None:
    job = supervisor.submit(request)  # type: ignore[arg-type]
    phases = {event.phase for event in job.events() if isinstance(event, ev.PhaseStarted)}
    with pytest.raises(errors.SandboxUnavailable) as caught:
        job.result()
    assert caught.value.exit_code == 10 and caught.value.fixes
    # Root's worker has a uid of its own, which without a view may not even reach the interpreter.
    unreachable = os.geteuid() == 0 and "cannot read" in caught.value.message
    assert layer in str(caught.value.details.get("layer")) or unreachable
    assert "load" not in phases  # not a byte of the model was read by a worker


@pytest.mark.parametrize("lack", LACKS)
def test_machine_that_lacks_a_mechanism_runs_nothing_by_default(lack, lacking, request_for, tmp_path):  # noqa: F811
    assert_refused(lacking(lack), request_for(), LACKS[lack][2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lack", IN_EVERY_TIER)
def test_what_every_tier_has_cannot_be_given_up_by_naming_a_lower_one(lack, lacking, request_for):  # noqa: F811
    assert_refused(lacking(lack, min_tier="C"), request_for(output=None), LACKS[lack][2])


@needs_a_public_interpreter
@pytest.mark.parametrize("lack", sorted(set(LACKS) - set(IN_EVERY_TIER)))
def test_lower_tier_that_the_policy_names_is_used_and_told(lack, lacking, request_for):  # noqa: F811
    result = lacking(lack, min_tier="C").generate(request_for(output=None))
    assert result.sandbox.tier == "C" and any("tier C" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    "claim", ["open-door", "untold-door", "unsealed", "no-layer:net_namespace", "no-layer:landlock"]
)
def test_worker_whose_report_is_not_what_was_ordered_gets_no_model(claim, misbehaving, request_for, tmp_path):  # noqa: F811
    job = misbehaving(claim).submit(request_for())
    phases = {event.phase for event in job.events() if isinstance(event, ev.PhaseStarted)}
    with pytest.raises(errors.SandboxUnavailable) as caught:
        job.result()
    assert caught.value.exit_code == 10 and "load" not in phases
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["min_tier = 'C'", "min_tier = 'E'\nallow_unsandboxed = true", "allow_unsandboxed = true"]
)
def test_file_that_came_with_a_download_cannot_lower_the_tier(text, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "wan-compat.toml").write_text(f"[policy]\n{text}\n")
    with pytest.raises(errors.RefusedByPolicy):
        load_settings(tmp_path, {})
    # The same words in the user's own configuration are theirs to say: the attack is in the place, not in the words.
    own = tmp_path / "config" / "wan-compat" / "config.toml"
    own.parent.mkdir(parents=True)
    os.replace(tmp_path / "wan-compat.toml", own)
    assert load_settings(tmp_path, {}).policy != Policy()
