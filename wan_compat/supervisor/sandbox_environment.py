"""`SandboxEnvironment`: a place to run a small Python program that nobody trusts, without a model and without torch.

Made once, which tries what this machine offers; then each `run` is a process of its own in a fresh sandbox.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
from collections.abc import Sequence
from types import TracebackType

from wan_compat.policies.confinement import TRUST_MINIMUM, Candidate, decide_tier, plan_candidates, plan_limits
from wan_compat.policies.limits import memory_limit
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    SandboxEntryFailed,
    SandboxUnavailable,
    clean_text,
)
from wan_compat.protocol.values import Mode
from wan_compat.sandbox import cgroup as cgroups
from wan_compat.sandbox.program import MAX_PROGRAM_BYTES, ProgramReport, program_argv, read_report
from wan_compat.sandbox.spec import ConfinementSpec, Layer, Limits, Tier, View
from wan_compat.supervisor.ffmpeg import run_bounded
from wan_compat.supervisor.host import fresh_identity, read_host

DEFAULT_TIMEOUT_S = 60.0
MAX_OUTPUT_BYTES = 1 << 20
MAX_ARGUMENTS_BYTES = 64 << 10
MAX_MEMORY_BYTES = 4 << 30  # a small program; a policy can only narrow it


@dataclasses.dataclass(frozen=True)
class SandboxRun:
    """How a program ended. `output` is what it wrote, cleaned and cut: text of somebody who is not trusted.

    `exit_code` is negative for the signal that ended it; -31 (SIGSYS) is a forbidden system call.
    """

    exit_code: int
    output: str
    layers: tuple[str, ...]


class SandboxEnvironment:
    """Runs programs in the strongest sandbox that can be entered here, tier B at least. Use as a context manager.

    Args:
        policy: What they may use; None is the built-in one. Tier C and E are never used for this, whatever it says.
        timeout_s: Default and upper bound for each run.

    Raises:
        SandboxUnavailable: Neither tier A nor B can be entered, or it does not hold.
    """

    def __init__(self, policy: Policy | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._policy = policy or Policy()
        self.timeout_s = timeout_s if self._policy.timeout_s is None else min(timeout_s, self._policy.timeout_s)
        host = read_host()
        bound = min(memory_limit(self._policy.memory_limit_bytes, host), MAX_MEMORY_BYTES)
        self.limits: Limits = plan_limits(self._policy, memory_limit_bytes=bound, threads=host.cpu_count)
        self._closed = False
        self._candidate, self.level = self._choose()

    def run(self, program: str, *arguments: str, timeout_s: float | None = None) -> SandboxRun:
        """Run a Python file to its end and return how that was.

        Raises:
            ModelNotFound: There is no such regular file of MAX_PROGRAM_BYTES at most.
            InvalidRequest: The environment is closed, or the arguments are too long.
            DeadlineExceeded: It did not end in time, and was killed.
            SandboxUnavailable: The sandbox could not be entered, or does not hold; the program was not run.
        """
        if self._closed:
            raise InvalidRequest("the sandbox environment is closed", hint="make a new one")
        if sum(len(text) for text in arguments) > MAX_ARGUMENTS_BYTES or any("\0" in text for text in arguments):
            raise InvalidRequest(f"the arguments are longer than {MAX_ARGUMENTS_BYTES} bytes or hold a NUL")
        path, sha256 = _identify(program)
        limit_s = self.timeout_s if timeout_s is None else min(timeout_s, self.timeout_s)
        report, output = self._run(self._candidate, path, sha256, arguments, limit_s)
        if report.wait_status is None or report.not_denied:
            raise _not_run(report)
        return SandboxRun(
            exit_code=os.waitstatus_to_exitcode(report.wait_status),
            output=clean_text(output.decode("utf-8", "replace"), MAX_OUTPUT_BYTES),
            layers=report.entered,
        )

    def close(self) -> None:
        """Run nothing more. Nothing outlives a run, so there is nothing else to end."""
        self._closed = True

    def __enter__(self) -> SandboxEnvironment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _choose(self) -> tuple[Candidate, Tier]:
        """Enter what could be had, strongest first, with an empty program."""
        support = cgroups.detect()
        # Trust mode's rule for code that is not ours: namespaces of its own, or not at all.
        candidates = plan_candidates(
            read_host(),
            self._policy,
            Mode.TRUST,
            has_cgroup=support.available,
            why_no_cgroup=support.reason,
            cgroup_remedy=support.remedy,
        )
        last: SandboxUnavailable | None = None
        # What bubblewrap would have to make around a launcher is for workers only.
        for candidate in (item for item in candidates if not item.outer and item.tier.satisfies(TRUST_MINIMUM)):
            try:
                report, _ = self._run(candidate, os.devnull, hashlib.sha256(b"").hexdigest(), (), self.timeout_s)
            except SandboxEntryFailed as error:
                last = error
                continue
            if report.wait_status == 0 and not report.not_denied:
                return candidate, decide_tier(report.entered).tier
            last = _not_run(report)
        raise last or SandboxUnavailable(
            f"tier {TRUST_MINIMUM.value} is required for code of somebody else, and cannot be entered here",
            hint="run `wan-compat doctor` to see what is missing and how to get it",
        )

    def _run(
        self, candidate: Candidate, path: str, sha256: str, arguments: Sequence[str], timeout_s: float
    ) -> tuple[ProgramReport, bytes]:
        group = None
        if Layer.CGROUP in candidate.layers:
            group = cgroups.create(f"program-{secrets.token_hex(4)}", self.limits)
        try:
            spec = ConfinementSpec(
                layers=candidate.layers,
                view=View(scratch_bytes=self._policy.scratch_bytes),
                limits=self.limits,
                identity=fresh_identity(),
                cgroup_dirs=group.dirs if group is not None else (),
            )
            finished = run_bounded(
                program_argv(spec, path, sha256, arguments), timeout_s=timeout_s, max_bytes=MAX_OUTPUT_BYTES
            )
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the program did not end within {timeout_s:g} s, and was killed", hint="allow more time"
            ) from error
        finally:
            if group is not None:
                group.kill()
                group.remove()
        return read_report(finished.stderr), finished.stdout


def _identify(program: str) -> tuple[str, str]:
    path = os.path.realpath(program)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            content = file.read(MAX_PROGRAM_BYTES + 1) if os.path.isfile(path) else None
    except OSError as error:
        raise ModelNotFound(f"{program!r} cannot be read: {error.strerror}", hint="give a Python file") from error
    if content is None or len(content) > MAX_PROGRAM_BYTES:
        raise ModelNotFound(
            f"{program!r} is no regular file of at most {MAX_PROGRAM_BYTES} bytes", hint="give a Python file"
        )
    return path, hashlib.sha256(content).hexdigest()


def _not_run(report: ProgramReport) -> SandboxUnavailable:
    if report.not_denied:
        return SandboxUnavailable(
            f"the sandbox's self-test failed: {', '.join(report.not_denied)} should have been denied",
            hint="run `wan-compat doctor` and report its output; nothing was run",
        )
    return SandboxUnavailable(
        f"the program was not run: {report.error or 'it ended during the self-test'}",
        hint=report.hint or "run `wan-compat doctor` to see what is missing and how to get it",
    )
