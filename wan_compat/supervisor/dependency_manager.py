"""What a model needs that is not installed: told, planned, and put into an environment of its own (`environments.py`).

    plan          facts of the model, registry, installed packages, lock -> ModelPlan      changes nothing
    carry_out     fetch each wheel -> unpack all -> look -> rename -> this model uses it   all of it, or nothing

Names come from the project's own list alone (`policies/dependencies.py`), versions and hashes from its lock. What a
repository says that it requires is shown and never installed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from packaging.markers import default_environment
from packaging.tags import sys_tags

from wan_compat.policies import dependencies as policy
from wan_compat.policies.architecture import VersionCompatibility
from wan_compat.policies.dependencies import Feature, Need
from wan_compat.policies.dependency_lock import Lock, parse_lock
from wan_compat.policies.dependency_plan import Action, Have, InstallPlan, Interpreter, plan_installation
from wan_compat.policies.detection.decide import detect
from wan_compat.policies.detection.traits import traits_of
from wan_compat.policies.judgement.versions import minimum_diffusers
from wan_compat.protocol.errors import (
    DiskExceeded,
    EnvironmentLacks,
    ModelNotCompatible,
    ModelNotFound,
    VersionConflict,
    WanCompatError,
)
from wan_compat.protocol.values import Mode
from wan_compat.supervisor import audit_log
from wan_compat.supervisor.audit_log import AuditEvent
from wan_compat.supervisor.downloader import is_hub_id
from wan_compat.supervisor.environments import Environment, Environments
from wan_compat.supervisor.inspection import read_facts
from wan_compat.supervisor.installed import find_distributions, find_version
from wan_compat.supervisor.own_requirements import OwnRequirements, read_own_requirements
from wan_compat.supervisor.pipeline_code import FetchedCode, fetch_missing_code
from wan_compat.supervisor.registry import CompatibilityRegistry
from wan_compat.supervisor.repository_tree import identify, read_tree
from wan_compat.supervisor.settings import load_settings
from wan_compat.supervisor.trust_gate import require_trust
from wan_compat.supervisor.wheels import DEFAULT_INDEX, fetch_wheel, require_pip, unpack_wheels

LOCK_PATH = Path(__file__).parents[1] / "data" / "dependencies.lock.json"
PLAN_SCHEMA_VERSION = 1
# Wheels are compressed, and are there twice for a moment.
_UNPACKED_PER_DOWNLOADED = 6
_HUB = "https://huggingface.co"


@dataclasses.dataclass
class RemoteCodeStatus:
    """Code that a repository brings. `is_available`: it lies here. `security_hash` is that of the whole tree, which an
    approval is about; `version` the revision, where one is known."""

    is_available: bool
    source_url: str | None
    version: str | None
    security_hash: str | None


@dataclasses.dataclass
class FetchResult:
    """`code_path` is the folder with the code; nothing of it was run. `error` says why there is none."""

    success: bool
    code_path: str | None = None
    sha256: str | None = None
    source_url: str | None = None
    error: str | None = None


@dataclasses.dataclass
class InstallationResult:
    """Names with versions. `skipped` were there already; `log` tells what was done, in order."""

    success: bool
    installed: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    log: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class InstallStep:
    """What is being done now: `number` of `total` steps. `subject` is a package with its version, or all of them."""

    what: Literal["fetch", "unpack"]
    subject: str
    number: int
    total: int
    bytes: int


Progress = Callable[[InstallStep], None]


@dataclasses.dataclass(frozen=True)
class ModelPlan:
    """What would be done for a model. `source` is the name under which its environment is remembered; `exists` says
    that the environment is there already, whole, and `in_use` that the model uses it."""

    model: str
    source: str
    features: tuple[Feature, ...]
    plan: InstallPlan
    own: tuple[OwnRequirements, ...]
    exists: bool
    in_use: bool

    def to_json(self) -> dict[str, Any]:
        """Return the document of `install-deps`, without what became of it."""
        return {
            "schema_version": PLAN_SCHEMA_VERSION,
            "model": self.model,
            "features": [feature.value for feature in self.features],
            "environment": self.plan.fingerprint if self.plan.changes else None,
            "exists": self.exists,
            "in_use": self.in_use,
            "interpreter": self.plan.interpreter,
            "packages": [
                {
                    "name": step.name,
                    "action": step.action.value,
                    "have": step.have,
                    "need": step.need,
                    "version": step.version,
                    "wanted_by": list(step.wanted_by),
                    "reason": step.reason,
                    "wheel": step.wheel.model_dump() if step.wheel is not None else None,
                }
                for step in self.plan.steps
            ],
            "conflicts": list(self.plan.conflicts),
            "download_bytes": self.plan.download_bytes,
            "own_requirements": [dataclasses.asdict(item) for item in self.own],
        }


class DependencyManager:
    """
    Args:
        registry: What is known about models; None is this user's.
        environments: Where environments lie; None is this user's.
        lock: What may be installed; None is the one that comes with the package.
        index: Where wheels come from: an address or a folder; None is the one of the settings, else PyPI.
    """

    def __init__(
        self,
        registry: CompatibilityRegistry | None = None,
        *,
        environments: Environments | None = None,
        lock: Lock | None = None,
        index: str | None = None,
    ) -> None:
        self._registry = registry or CompatibilityRegistry()
        self.interpreter = current_interpreter()
        self.environments = environments or Environments(interpreter=self.interpreter.name)
        self._lock = lock or shipped_lock()
        self.index = index or load_settings().package_index or DEFAULT_INDEX

    # -- code of a repository ------------------------------------------------------------------------------------

    def check_remote_code_availability(self, model_path: str) -> RemoteCodeStatus:
        """Say whether a repository brings Python of its own. Reads and hashes it; runs and fetches nothing.

        Raises:
            ModelNotFound, ModelInvalid, ...: As `read_tree`.
        """
        place, _ = identify(model_path)
        url = _url(place.repository, place.revision)
        if place.is_file:
            return RemoteCodeStatus(False, url, place.revision, None)
        tree = read_tree(model_path)
        code = any(file.path.lower().endswith(".py") for file in tree.files)
        return RemoteCodeStatus(code, url, tree.revision, tree.hash)

    def fetch_pipeline_code(self, model_path: str, trust_remote_code: bool = False) -> FetchResult:
        """Return where the code of a repository lies; fetch it from the hub, at one commit, if it is not here.

        What was fetched is scanned and hashed, never run. `wan-compat trust add` shows and approves it.

        Args:
            trust_remote_code: Asks for trust mode. It gives nothing by itself: what was not approved, to the byte, is
                not handed out.
        """
        if not trust_remote_code:
            return FetchResult(False, error="safe mode neither fetches nor runs code of a repository")
        fetched: FetchedCode | None = None
        try:
            status = self._code_here(model_path)
            if not status.is_available and (fetched := fetch_missing_code(model_path, load_settings().policy)):
                model_path = fetched.downloaded.path
                status = self.check_remote_code_availability(model_path)
            if not status.is_available:
                return FetchResult(
                    False, source_url=status.source_url, error="this repository has no Python of its own"
                )
            tree = require_trust(model_path, Mode.TRUST).tree
        except WanCompatError as error:
            if fetched is None:
                return FetchResult(False, error=error.message)
            return FetchResult(False, model_path, None, status.source_url, f"{fetched.verdict}. {error.message}")
        return FetchResult(True, tree.root, tree.hash, status.source_url)

    def _code_here(self, model_path: str) -> RemoteCodeStatus:
        """As `check_remote_code_availability`, where a hub id that is not in the cache has no code here."""
        try:
            return self.check_remote_code_availability(model_path)
        except ModelNotFound:
            if not is_hub_id(model_path):
                raise
            return RemoteCodeStatus(False, _url(model_path, None), None, None)

    def validate_code_version(self, local_code: str, model_version: str) -> VersionCompatibility:
        """Say whether the code that is here runs what a model was made with.

        Args:
            local_code: A version, or the name of an installed package such as `diffusers`.
            model_version: As `policies.dependencies.validate_code_version`.
        """
        found = local_code if local_code[:1].isdigit() else find_version(local_code) if local_code else None
        return policy.validate_code_version(found or "", model_version)

    # -- packages ------------------------------------------------------------------------------------------------

    def install_dependencies(self, requirements: list[str]) -> InstallationResult:
        """Install packages of the project's list into an environment that no model uses yet. Asks nobody.

        Args:
            requirements: Names, with versions or without. One outside the list refuses all of them.
        """
        result = InstallationResult(False)
        try:
            plan = self._plan(policy.require_allowed(requirements, "the request"))
            result.skipped = [f"{step.name} {step.have}" for step in plan.steps if step.action is Action.KEEP]
            _require_possible(plan)
            environment = self._build(plan, lambda step: result.log.append(_words(step)))
        except WanCompatError as error:
            result.failed = list(requirements)
            result.log += [error.message, *error.fixes]
            return result
        result.success = True
        result.installed = [f"{step.name} {step.version}" for step in plan.changes]
        result.log.append(f"environment {environment.site}" if environment else "everything is installed already")
        return result

    def plan(self, model: str, features: Iterable[Feature] = ()) -> ModelPlan:
        """Return what a model needs and what would be done about it. Changes nothing, and needs no network.

        Args:
            model: A folder or file, a hub id in the local cache, or any name that the registry knows.
            features: Wanted besides what lies in the model, such as LORA for a model that LoRAs are for. What was
                asked for before stays.

        Raises:
            ModelNotFound: Neither here nor in the registry.
            ModelNotCompatible: It is no Wan model: its needs are another program's.
            StateUnsafe, StateCorrupt: The record of environments cannot be believed.
        """
        found: set[Feature] = set()
        own: tuple[OwnRequirements, ...] = ()
        try:
            facts = read_facts(model)
        except ModelNotFound:
            known = self._registry.entry(model)
            if known is None:
                raise _unknown(model) from None
            source, registered = known[0], known[1].required_dependencies
        else:
            architecture = detect(facts, traits_of(facts))
            if architecture.is_wan is False:
                raise ModelNotCompatible(
                    f"{model!r} is no Wan model ({architecture.architecture_type}); nothing is installed for it",
                    hint="see what it is: wan-compat check MODEL",
                )
            source = identify(model)[1]
            known = self._registry.entry(architecture.variant) if architecture.variant is not None else None
            minimum = minimum_diffusers(architecture, known[1] if known else None)
            registered = (
                *(known[1].required_dependencies if known else ()),
                *([f"diffusers>={minimum}"] if minimum else []),
            )
            found = set(policy.features_of(facts, architecture))
            own = read_own_requirements(facts)
        earlier = self.environments.assignment(source)
        asked = {*features, *(earlier.features if earlier is not None else ())}
        plan = self._plan(policy.needs_of(source, registered, found | asked))
        exists = bool(plan.changes) and self._exists(plan)
        in_use = exists and earlier is not None and earlier.environment == plan.fingerprint
        return ModelPlan(model, source, tuple(sorted(asked)), plan, own, exists, in_use)

    def forget(self, model: str, *, dry_run: bool = False) -> bool:
        """Have a model use the usual packages again; return whether it used others. The environment itself stays.

        Raises:
            ModelNotFound: Neither here nor in the registry.
            StateUnsafe, StateCorrupt: The record of environments cannot be believed.
        """
        try:
            source = identify(model)[1]
        except ModelNotFound:
            known = self._registry.entry(model)
            if known is None:
                raise _unknown(model) from None
            source = known[0]
        used = self.environments.assignment(source) is not None
        if used and not dry_run:
            self.environments.assign(source, None)
        return used

    def carry_out(self, found: ModelPlan, progress: Progress = lambda step: None) -> Environment | None:
        """Do what a plan says, and have the model use it. Returns its environment, None where the usual one will do.

        Raises:
            VersionConflict: The plan cannot hold.
            HashMismatch, FetchFailed, DiskExceeded, EnvironmentLacks, ...: A step failed. Nothing was changed.
        """
        _require_possible(found.plan)
        environment = self._build(found.plan, progress, model=found.model)
        self.environments.assign(found.source, environment.id if environment else None, found.features)
        return environment

    def _plan(self, needs: Sequence[Need]) -> InstallPlan:
        have = {name: Have(*found) for name, found in find_distributions().items()}
        return plan_installation(needs, have, self._lock, self.interpreter)

    def _exists(self, plan: InstallPlan) -> bool:
        try:
            self.environments.get(plan.fingerprint)
        except WanCompatError:
            return False
        return True

    def _build(self, plan: InstallPlan, progress: Progress, model: str | None = None) -> Environment | None:
        if not plan.changes:
            return None
        packages = [f"{step.name} {step.version}" for step in plan.changes]
        note = functools.partial(
            audit_log.note, AuditEvent.INSTALLATION, model=model, packages=packages, environment=plan.fingerprint
        )
        filled = False

        def fill(site: Path, scratch: Path) -> None:
            nonlocal filled
            filled = True
            self._fill(plan, site, scratch, progress)

        try:
            environment = self.environments.build(plan, fill)
        except WanCompatError as error:
            note(outcome="failed", code=error.code, index=self.index)
            raise
        except BaseException:  # Ctrl-C
            note(outcome="interrupted", index=self.index)
            raise
        note(outcome="installed" if filled else "reused", index=self.index)
        return environment

    def _fill(self, plan: InstallPlan, site: Path, scratch: Path, progress: Progress) -> None:
        require_pip()
        needed, free = plan.download_bytes * _UNPACKED_PER_DOWNLOADED, shutil.disk_usage(site).free
        if free < needed:
            raise DiskExceeded(
                f"about {needed >> 20} MiB are needed at {site}, {free >> 20} MiB are free",
                hint="free some, or set XDG_DATA_HOME to another disk",
            )
        total = len(plan.changes) + 1
        wheels = []
        for number, step in enumerate(plan.changes, 1):
            assert step.wheel is not None and step.version is not None
            progress(InstallStep("fetch", f"{step.name} {step.version}", number, total, step.wheel.bytes))
            wheels.append(fetch_wheel(step.name, step.version, step.wheel, self.index, scratch))
        subject = f"{len(wheels)} package{'' if len(wheels) == 1 else 's'}"
        progress(InstallStep("unpack", subject, total, total, plan.download_bytes))
        unpack_wheels(wheels, site, scratch)
        for step in plan.changes:
            found = find_version(step.name, str(site))
            if found != step.version:
                raise EnvironmentLacks(
                    f"{step.name} {step.version} was installed, but {found or 'nothing'} is there",
                    hint="please report this; nothing was changed",
                )


def current_interpreter() -> Interpreter:
    """Return this very Python, which is also the workers'."""
    markers = {name: str(value) for name, value in default_environment().items()}
    return Interpreter(tuple(str(tag) for tag in sys_tags()), markers)


@functools.cache
def shipped_lock() -> Lock:
    """Return the package's own lock, parsed once."""
    return parse_lock(LOCK_PATH.read_bytes(), os.fspath(LOCK_PATH))


def _require_possible(plan: InstallPlan) -> None:
    if plan.conflicts:
        raise VersionConflict(
            "; ".join(plan.conflicts),
            hint="upgrade what is named where wan-compat is installed, or ask for less; nothing was changed",
            details={"conflicts": list(plan.conflicts)},
        )


def _unknown(model: str) -> ModelNotFound:
    hub_id = is_hub_id(model)
    return ModelNotFound(
        f"{model!r} is neither a file or folder here, nor in the local cache, nor known to the registry",
        hint=f"fetch it first: wan-compat check {model} --download" if hub_id else "give a folder, a file or a hub id",
    )


def _words(step: InstallStep) -> str:
    return f"{step.what} {step.subject} ({step.bytes} bytes)"


def _url(repository: str | None, revision: str | None) -> str | None:
    if repository is None:
        return None
    return f"{_HUB}/{repository}" + (f"/tree/{revision}" if revision else "")
