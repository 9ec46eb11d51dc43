"""What to do about the packages that a model needs. Pure: it reads nothing.

    needs      what a model asks for (`dependencies.py`)
    have       what is installed where workers of other models run
    lock       the one version of each package that would be installed, with its hashes
               -> InstallPlan: keep, install, upgrade; or why not

There is no search: a lock has one version of each package, so a plan either holds or names who disagrees with whom. It
never lowers what is installed, never goes below a floor for security, and never touches torch: which build of it is
right is for the machine to say, and its gigabytes belong into the environment of wan-compat itself.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from wan_compat.policies.dependencies import ALLOWED, NEVER_INSTALLED, Need
from wan_compat.policies.dependency_lock import Lock, LockedWheel


@dataclasses.dataclass(frozen=True)
class Have:
    """One installed package. `requires` as in its metadata."""

    version: str
    requires: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """Whom a plan is for: which wheels it takes (best first), and what markers may ask about it."""

    tags: tuple[str, ...]
    markers: Mapping[str, str]

    @property
    def name(self) -> str:
        """Return what decides which wheels fit, such as `cp311-x86_64`."""
        return f"{self.tags[0].split('-')[0]}-{self.markers['platform_machine']}"


class Action(enum.StrEnum):
    KEEP = "keep"
    INSTALL = "install"
    UPGRADE = "upgrade"
    REFUSE = "refuse"


@dataclasses.dataclass(frozen=True)
class PlanStep:
    """What becomes of one package. `wheel` is what would be installed, None for KEEP and REFUSE."""

    name: str
    action: Action
    have: str | None
    need: str
    version: str | None
    wanted_by: tuple[str, ...]
    reason: str
    wheel: LockedWheel | None = None


@dataclasses.dataclass(frozen=True)
class InstallPlan:
    """Everything that would be done. `conflicts` say why it cannot be: a plan with one is not carried out at all."""

    steps: tuple[PlanStep, ...]
    interpreter: str

    @property
    def changes(self) -> tuple[PlanStep, ...]:
        return tuple(step for step in self.steps if step.wheel is not None)

    @property
    def conflicts(self) -> tuple[str, ...]:
        return tuple(step.reason for step in self.steps if step.action is Action.REFUSE)

    @property
    def download_bytes(self) -> int:
        return sum(step.wheel.bytes for step in self.steps if step.wheel is not None)

    @property
    def fingerprint(self) -> str:
        """Return the name of the environment that this plan makes: equal plans make one."""
        wheels = sorted((step.wheel.filename, step.wheel.sha256) for step in self.changes if step.wheel is not None)
        text = json.dumps({"interpreter": self.interpreter, "wheels": wheels}, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def plan_installation(
    needs: Sequence[Need], have: Mapping[str, Have], lock: Lock, interpreter: Interpreter
) -> InstallPlan:
    """Decide what to keep, install and upgrade.

    Args:
        needs: Packages outside the allow list end as REFUSE steps.
        have: By canonical name, of the environment that workers of other models use.
    """
    return _Planner(have, lock, interpreter).plan(needs)


class _Planner:
    def __init__(self, have: Mapping[str, Have], lock: Lock, interpreter: Interpreter) -> None:
        self._have, self._lock, self._interpreter = have, lock, interpreter
        self._demands: dict[str, list[tuple[SpecifierSet, str]]] = {}
        self._steps: dict[str, PlanStep] = {}

    def plan(self, needs: Sequence[Need]) -> InstallPlan:
        for need in needs:
            requirement = Requirement(need.requirement)
            needed = canonicalize_name(requirement.name)
            if needed not in ALLOWED:
                reason = f"{needed}, wanted by {need.wanted_by}, is not on the list of packages that may be installed"
                self._steps[needed] = PlanStep(
                    needed, Action.REFUSE, None, str(requirement.specifier), None, (need.wanted_by,), reason
                )
                continue
            # The list's own range comes along with whatever else is asked: a floor holds for everybody.
            self._demand(needed, SpecifierSet(ALLOWED[needed].specifier), "wan-compat")
            self._demand(needed, requirement.specifier, need.wanted_by)
        queue: list[str] = list(self._demands)
        while queue:
            name = queue.pop(0)
            step = self._decide(name)
            before = self._steps.get(name)
            self._steps[name] = step
            if step.wheel is not None and (before is None or before.wheel is None):
                queue += self._follow(name)
        self._check_the_installed()
        order = {Action.REFUSE: 0, Action.UPGRADE: 1, Action.INSTALL: 2, Action.KEEP: 3}
        steps = sorted(self._steps.values(), key=lambda step: (order[step.action], step.name))
        return InstallPlan(tuple(steps), self._interpreter.name)

    def _demand(self, name: str, specifier: SpecifierSet, wanted_by: str) -> None:
        demands = self._demands.setdefault(name, [])
        if (specifier, wanted_by) not in demands:
            demands.append((specifier, wanted_by))

    def _follow(self, name: str) -> Iterator[str]:
        """Take in what a package that will be installed wants itself; yield whom that concerns."""
        locked = self._lock.packages[name]
        for requirement in self._applying(locked.requires):
            wanted = canonicalize_name(requirement.name)
            self._demand(wanted, requirement.specifier, f"{name} {locked.version}")
            yield wanted

    def _applying(self, requires: Iterable[str]) -> Iterator[Requirement]:
        for text in requires:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:  # of an installed package: its own affair
                continue
            marker = requirement.marker
            if marker is None or marker.evaluate({**self._interpreter.markers, "extra": ""}):
                yield requirement

    def _decide(self, name: str) -> PlanStep:
        demands = self._demands[name]
        have = self._have[name].version if name in self._have else None
        need = ",".join(sorted({str(item) for specifier, _ in demands for item in specifier}))
        wanted_by = tuple(dict.fromkeys(by for _, by in demands if by != "wan-compat")) or ("wan-compat",)
        why = ALLOWED[name].why if name in ALLOWED else f"needed by {wanted_by[0]}"

        def refuse(reason: str) -> PlanStep:
            return PlanStep(name, Action.REFUSE, have, need, None, wanted_by, reason)

        if have is not None and all(_satisfies(have, specifier) for specifier, _ in demands):
            return PlanStep(name, Action.KEEP, have, need, have, wanted_by, why)
        asked = "; ".join(f"{by} wants {name}{specifier}" for specifier, by in demands if str(specifier))
        if name in NEVER_INSTALLED:
            return refuse(
                f"{asked or f'{name} is needed'}, installed is {have or 'none'}: {name} is never installed by "
                "wan-compat, because its build depends on the machine; upgrade it where wan-compat is installed"
            )
        locked = self._lock.packages.get(name)
        if locked is None:
            return refuse(f"{asked or f'{name} is needed'}, and this version of wan-compat has no locked release of it")
        if not all(_satisfies(locked.version, specifier) for specifier, _ in demands):
            return refuse(
                f"version conflict: {asked}; the locked release is {locked.version}, installed is {have or 'none'}"
            )
        if have is not None and _version(have) >= Version(locked.version):
            return refuse(f"version conflict: {asked}; installed is {have}, and {locked.version} would lower it")
        python = self._interpreter.markers["python_full_version"]
        if locked.requires_python and not SpecifierSet(locked.requires_python).contains(python, prereleases=True):
            return refuse(f"{name} {locked.version} needs Python {locked.requires_python}, this is {python}")
        wheel = locked.wheel_for(self._interpreter.tags)
        if wheel is None:
            return refuse(f"{name} {locked.version} has no wheel for this machine ({self._interpreter.name})")
        action = Action.INSTALL if have is None else Action.UPGRADE
        return PlanStep(name, action, have, need, locked.version, wanted_by, why, wheel)

    def _check_the_installed(self) -> None:
        """Refuse what an installed package that stays does not get along with."""
        for name in self._lock.packages.keys() & self._have.keys():
            known = self._steps.get(name)
            if known is not None and known.wheel is not None:
                continue  # replaced, and its locked requirements were followed
            for requirement in self._applying(self._have[name].requires):
                step = self._steps.get(canonicalize_name(requirement.name))
                if step is None or step.wheel is None or step.version is None:
                    continue
                if not _satisfies(step.version, requirement.specifier):
                    reason = (
                        f"version conflict: the installed {name} {self._have[name].version} wants {requirement}, "
                        f"{step.wanted_by[0]} wants {step.name}{step.need}; the locked release is {step.version}"
                    )
                    self._steps[step.name] = dataclasses.replace(
                        step, action=Action.REFUSE, version=None, wheel=None, reason=reason
                    )


def _satisfies(version: str, specifier: SpecifierSet) -> bool:
    """Whether a version fits. The local part (`2.13.0+cpu`) says which build it is, and decides nothing."""
    try:
        return specifier.contains(Version(version).public, prereleases=True)
    except InvalidVersion:
        return False


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")
