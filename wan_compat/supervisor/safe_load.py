"""`SafeLoadManager`: what may be loaded how, for programs that decide before they submit a job.

It reports what jobs are held to anyway. Nothing that is set here opens a door: a name in `trusted_sources` counts only
together with an approval of the very files (`trust add`), and files in the working folder only narrow the policy.
"""

from __future__ import annotations

import dataclasses
import math
import os

from wan_compat.policies.confinement import plan_candidates
from wan_compat.policies.limits import deadlines, memory_limit
from wan_compat.policies.policy import Policy
from wan_compat.policies.scan.python_source import read_python
from wan_compat.policies.scan.risk import SecurityValidation, validate
from wan_compat.policies.scan.rules import rule_finding
from wan_compat.policies.trust import decide_trust
from wan_compat.protocol.errors import WanCompatError
from wan_compat.protocol.values import Mode
from wan_compat.sandbox import cgroup as cgroups
from wan_compat.sandbox import selftest
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.inspection import read_facts
from wan_compat.supervisor.repository_tree import identify, read_tree
from wan_compat.supervisor.sandbox_environment import SandboxEnvironment
from wan_compat.supervisor.scanner import scan_model
from wan_compat.supervisor.settings import load_settings
from wan_compat.supervisor.trust_store import TrustStore

__all__ = ["SafeLoadManager", "SafeLoadingOptions", "SandboxEnvironment", "SecurityValidation"]

# What no mode does, besides what the sandbox denies.
_NEVER = ("unpickle", "fetch_code", "pass_trust_remote_code_to_libraries")


@dataclasses.dataclass
class SafeLoadingOptions:
    """How one model is loaded here. `restricted_operations` are the names of what the sandbox's self-test must find
    denied (see `doctor -v`), and of what is done in no mode; `memory_limit_mb` is in MiB."""

    allow_remote_code: bool
    use_sandbox: bool
    restricted_operations: list[str]
    timeout_seconds: int
    memory_limit_mb: int


class SafeLoadManager:
    """Answers for models how they may be loaded.

    Args:
        default_mode: "safe" or "trust".

    Raises:
        ValueError: Another mode.
        InvalidRequest, RefusedByPolicy: A policy file is malformed, or one in the working folder loosens something.
        StateUnsafe, StateCorrupt: The store of approvals cannot be believed.
    """

    def __init__(self, default_mode: str = "safe") -> None:
        self.mode = _checked(default_mode)
        self.security_policies: Policy = self._load_security_policies()
        self.trusted_sources: set[str] = {grant.source for grant in TrustStore().grants()}

    def _load_security_policies(self) -> Policy:
        """Return what user configuration, environment and working folder allow together."""
        return load_settings().policy

    def set_loading_mode(self, mode: str) -> None:
        """Set the mode. Raises ValueError for anything but "safe" and "trust"."""
        self.mode = _checked(mode)

    def is_source_trusted(self, model_source: str) -> bool:
        """Whether the code of this source may run in trust mode as it lies there now.

        True needs both: the source in `trusted_sources`, and an approval that covers its files to the byte.

        Raises:
            StateUnsafe, StateCorrupt: The store of approvals cannot be believed.
        """
        try:
            if identify(model_source)[1] not in self.trusted_sources:
                return False
            tree = read_tree(model_source)
        except WanCompatError:
            return False  # what cannot be read to its end is not what was approved
        return decide_trust(Mode.TRUST, tree, TrustStore().grants()).runs_code

    def validate_remote_code_safety(self, code_source: str) -> SecurityValidation:
        """Scan code before anything of it is run. The answer advises; the sandbox holds whatever it says.

        Args:
            code_source: A folder, a file, a cached hub id; or Python source, if it has more than one line.

        Raises:
            ModelNotFound, ModelUnreadable: There is nothing to scan.
        """
        if "\n" in code_source and not os.path.lexists(code_source):
            observations = read_python(code_source.encode("utf-8", "surrogatepass"), "")
            return validate([rule_finding(observation, path=None) for observation in observations])
        return scan_model(code_source).validation()

    def create_sandboxed_environment(self) -> SandboxEnvironment:
        """Return a place to run small programs of somebody else, in tier A or B.

        Raises:
            SandboxUnavailable: This machine has neither.
        """
        return SandboxEnvironment(self.security_policies)

    def get_safe_loading_options(self, model_path: str) -> SafeLoadingOptions:
        """Return what a job with this model is held to, here and now, in the mode that is set.

        Raises:
            ModelNotFound, ...: There is no such model.
            SandboxUnavailable, MemoryExceeded: It could not be loaded here at all.
        """
        policy = self.security_policies
        facts = read_facts(model_path)
        trust = self.mode == Mode.TRUST.value and policy.mode is Mode.TRUST
        host, support = read_host(), cgroups.detect()
        candidates = plan_candidates(
            host,
            policy,
            Mode.TRUST if trust else Mode.SAFE,
            has_cgroup=support.available,
            why_no_cgroup=support.reason,
            cgroup_remedy=support.remedy,
        )
        # The weakest that would be accepted: what it denies is denied in any case.
        weakest = candidates[-1]
        denied = selftest.expected_denied(weakest.layers) | selftest.expected_sealed(weakest.layers)
        allowed = trust and not facts.is_file and self.is_source_trusted(model_path)
        code = () if allowed else ("run_repository_code",)
        loading = deadlines(weight_bytes=sum(file.size for file in facts.files.values()), timeout_s=policy.timeout_s)
        timeout_s = loading.load_s if policy.timeout_s is None else min(loading.load_s, policy.timeout_s)
        return SafeLoadingOptions(
            allow_remote_code=allowed,
            use_sandbox=weakest.tier is not Tier.E,
            restricted_operations=sorted({*denied, *_NEVER, *code}),
            timeout_seconds=math.ceil(timeout_s),
            memory_limit_mb=memory_limit(policy.memory_limit_bytes, host) >> 20,
        )


def _checked(mode: str) -> str:
    known = [item.value for item in Mode]
    if mode not in known:
        raise ValueError(f"the mode is {mode!r}; known are {' and '.join(map(repr, known))}")
    return str(mode)
