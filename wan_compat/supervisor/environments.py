"""Isolated environments: packages that some models need besides what wan-compat itself was installed with.

    <data>/wan-compat/environments/            0700, this user's
        <fingerprint of the plan>/             equal plans share one; never changed once it has its name
            manifest.json                      packages with versions and hashes, every file with its size, when
            site/                              goes to the front of sys.path of the zygote that serves these models
        .<fingerprint>.part/                   being made; removed by who fails, or by the next one who builds
    <state>/wan-compat/environments.json       which model uses which

It lies over the environment of wan-compat, and does not replace it: torch and whatever is recent enough stays where it
is. What an environment is used for rests on nobody else having written to it, so that is looked at each time: every
file of the manifest, with its size, and no other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import os
import platform
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from packaging.tags import interpreter_name, interpreter_version
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wan_compat.policies.dependencies import Feature
from wan_compat.policies.dependency_lock import PackageName, Version
from wan_compat.policies.dependency_plan import InstallPlan
from wan_compat.protocol.errors import DiskExceeded, StateCorrupt, StateUnsafe, WanCompatError
from wan_compat.supervisor.model_environment import RECORD_NAME
from wan_compat.supervisor.private_files import PrivateFolder, state_folder

MANIFEST_NAME = "manifest.json"
SITE_NAME = "site"

MAX_RECORD_BYTES = 4 << 20
MAX_MANIFEST_BYTES = 32 << 20
MAX_FILES = 100_000  # diffusers and transformers together have some 10,000 with their bytecode
MAX_DEPTH = 40
# A second installation waits for the first one, which may have gigabytes to fetch.
LOCK_TIMEOUT_S = 1800.0

EnvironmentId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InstalledWheel(_Strict):
    version: Version
    filename: Annotated[str, StringConstraints(max_length=200)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Manifest(_Strict):
    """`files` are relative to the site folder. `interpreter` is whom the wheels fit."""

    schema_version: Literal[1] = 1
    id: EnvironmentId
    interpreter: Annotated[str, StringConstraints(max_length=80)]
    made_at: Annotated[str, StringConstraints(max_length=40)]
    packages: Annotated[dict[PackageName, InstalledWheel], Field(max_length=200)]
    files: Annotated[dict[str, int], Field(max_length=MAX_FILES)]


class Assignment(_Strict):
    """Which environment a model uses, and which features were asked for by name."""

    environment: EnvironmentId
    features: tuple[Feature, ...] = ()
    at: Annotated[str, StringConstraints(max_length=40)] = ""


class Record(_Strict):
    schema_version: Literal[1] = 1
    models: Annotated[dict[str, Assignment], Field(max_length=10_000)] = {}


@dataclasses.dataclass(frozen=True)
class Environment:
    """One that was looked at and may be used. `packages` are (name, version)."""

    id: str
    site: str
    packages: tuple[tuple[str, str], ...]


def data_folder() -> Path:
    """Return where this user's environments lie; XDG_DATA_HOME moves it. Nothing is made."""
    return Path(platformdirs.user_data_dir("wan-compat", appauthor=False)) / "environments"


class Environments:
    """Args:
    folder: None is this user's own.
    state: Of the record; None is this user's own.
    interpreter: Whom environments must fit, see `Interpreter.name`; None is this Python.
    """

    def __init__(
        self, folder: Path | None = None, *, state: Path | None = None, interpreter: str | None = None
    ) -> None:
        self.folder = folder or data_folder()
        self._state = state or state_folder()
        self._interpreter = interpreter or f"{interpreter_name()}{interpreter_version()}-{platform.machine()}"

    # -- which model uses which ----------------------------------------------------------------------------------

    def of_model(self, source: str) -> Environment | None:
        """Return the environment that a model uses, None for the usual one.

        Args:
            source: Repository id or real path of the model (`repository_tree.identify`).

        Raises:
            StateUnsafe, StateCorrupt: It has one, which cannot be used: nobody falls back to another one unasked.
        """
        assignment = self.assignment(source)
        return None if assignment is None else self.get(assignment.environment)

    def assignment(self, source: str) -> Assignment | None:
        """Return what the record says about a model."""
        with PrivateFolder(self._state) as folder:
            return self._read_record(folder).models.get(source)

    def assign(self, source: str, environment: str | None, features: tuple[Feature, ...] = ()) -> None:
        """Have a model use an environment; None: the usual one again."""
        with PrivateFolder(self._state, create=True) as folder, folder.lock(RECORD_NAME):
            models = dict(self._read_record(folder).models)
            if environment is None:
                if models.pop(source, None) is None:
                    return
            else:
                models[source] = Assignment(environment=environment, features=features, at=_now())
            content = Record(models=models).model_dump_json(indent=1).encode()
            with _disk_errors(self._state / RECORD_NAME):
                folder.replace(RECORD_NAME, content)

    def _read_record(self, folder: PrivateFolder) -> Record:
        raw = folder.read(RECORD_NAME, MAX_RECORD_BYTES)
        try:
            return Record.model_validate_json(raw) if raw is not None else Record()
        except ValidationError as error:
            path = self._state / RECORD_NAME
            raise StateCorrupt(
                f"{path} is damaged ({error.error_count()} places)",
                hint=f"put it aside (mv {path} {path}.broken), then `wan-compat install-deps MODEL` where it was used",
            ) from error

    # -- the environments themselves -----------------------------------------------------------------------------

    def get(self, environment: str) -> Environment:
        """Look at an environment, file by file, and return it.

        Raises:
            StateUnsafe: Somebody else could have written to it.
            StateCorrupt: It is absent, incomplete, changed, or was made for another Python.
        """
        root = self.folder / environment
        with PrivateFolder(self.folder):
            pass  # ours, and nobody else's to write to, or an error
        try:
            with PrivateFolder(root) as folder:
                raw = folder.read(MANIFEST_NAME, MAX_MANIFEST_BYTES)
                if raw is None:
                    raise _damaged(root, "it is not there" if not folder.exists else f"it has no {MANIFEST_NAME}")
            manifest = Manifest.model_validate_json(raw)
        except ValidationError as error:
            raise _damaged(root, f"{MANIFEST_NAME} is malformed") from error
        if manifest.id != environment:
            raise _damaged(root, f"it was made as {manifest.id}")
        if manifest.interpreter != self._interpreter:
            raise _damaged(root, f"it was made for {manifest.interpreter}, this is {self._interpreter}")
        site = root / SITE_NAME
        _compare(root, dict(_files(site)), manifest.files)
        packages = tuple((name, wheel.version) for name, wheel in sorted(manifest.packages.items()))
        return Environment(environment, str(site), packages)

    def build(self, plan: InstallPlan, fill: Callable[[Path, Path], None]) -> Environment:
        """Make the environment of a plan, or return it where it is whole already.

        Args:
            fill: Called with an empty site folder and a folder for whatever else; raises to give up.

        Raises:
            DiskExceeded, StateUnsafe: The folder cannot be written.
            Whatever `fill` raises. In every case nothing of the environment is left.
        """
        with PrivateFolder(self.folder, create=True) as folder, folder.lock("environments", LOCK_TIMEOUT_S):
            for name in os.listdir(self.folder):
                if name.endswith(".part"):  # we hold the lock: whoever made it was killed
                    shutil.rmtree(self.folder / name, ignore_errors=True)
            root, part = self.folder / plan.fingerprint, self.folder / f".{plan.fingerprint}.part"
            if root.exists():
                with contextlib.suppress(StateUnsafe, StateCorrupt):
                    return self.get(plan.fingerprint)
                # Damaged: out of the way by a rename, so that nobody sees half of it, then removed.
                with _disk_errors(root):
                    os.rename(root, part)
                shutil.rmtree(part, ignore_errors=True)
            try:
                with _disk_errors(part):
                    _make(part, plan, fill)
                    os.rename(part, root)
                return self.get(plan.fingerprint)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise


def _make(part: Path, plan: InstallPlan, fill: Callable[[Path, Path], None]) -> None:
    os.mkdir(part, 0o700)
    site, scratch = part / SITE_NAME, part / "scratch"
    os.mkdir(site)
    os.mkdir(scratch)
    fill(site, scratch)
    shutil.rmtree(scratch)
    _close_to_writers(site)
    manifest = Manifest(
        id=plan.fingerprint,
        interpreter=plan.interpreter,
        made_at=_now(),
        packages={
            step.name: InstalledWheel(
                version=step.version or "", filename=step.wheel.filename, sha256=step.wheel.sha256
            )
            for step in plan.changes
            if step.wheel is not None
        },
        files=dict(_files(site)),
    )
    with PrivateFolder(part) as folder:
        folder.replace(MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())


def _close_to_writers(site: Path) -> None:
    """Take everybody else's right to write away, whatever the umask was, and give workers the right to read: as root
    they run as another user."""
    for folder, _, names in os.walk(site):
        os.chmod(folder, 0o755)  # noqa: S103 - nobody comes this far but through the view: what is above is 0700
        for name in names:
            os.chmod(os.path.join(folder, name), 0o644)


def _files(site: Path, inner: str = "", depth: int = 0) -> Iterator[tuple[str, int]]:
    """Yield (path, size) of every file; raise where something is there that was never installed so."""
    folder = site / inner
    if depth > MAX_DEPTH:
        raise _damaged(folder, "its folders are nested too deeply")
    try:
        _check(folder, os.lstat(folder), stat.S_IFDIR)
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = f"{inner}/{entry.name}" if inner else entry.name
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(site, path, depth + 1)
                else:
                    info = entry.stat(follow_symlinks=False)
                    _check(site / path, info, stat.S_IFREG)
                    yield path, info.st_size
    except OSError as error:
        raise _damaged(folder, f"it cannot be read: {error.strerror}") from error


def _check(path: Path, info: os.stat_result, kind: int) -> None:
    if stat.S_IFMT(info.st_mode) != kind:
        raise _damaged(path, "it is a link or no file, which nothing here was installed as")
    if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o022:
        raise StateUnsafe(
            f"{path} could have been written by others (owner {info.st_uid}, mode {stat.S_IMODE(info.st_mode):o})",
            hint="`wan-compat install-deps MODEL` makes the environment anew",
        )


def _compare(root: Path, found: Mapping[str, int], expected: Mapping[str, int]) -> None:
    for words, paths in (
        ("is missing", expected.keys() - found.keys()),
        ("was not installed", found.keys() - expected.keys()),
        ("has another size", {path for path in expected.keys() & found.keys() if found[path] != expected[path]}),
    ):
        if paths:
            more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
            raise _damaged(root, f"{min(paths)} {words}{more}")


def _damaged(path: Path, why: str) -> StateCorrupt:
    return StateCorrupt(
        f"the environment {path} cannot be used: {why}",
        hint="`wan-compat install-deps MODEL` makes it anew",
    )


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, WanCompatError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskExceeded(
                f"no space is left for {path}", hint="free some, or set XDG_DATA_HOME to another disk"
            ) from error
        raise StateUnsafe(
            f"{path} cannot be written: {error.strerror}",
            hint="set XDG_DATA_HOME to a folder that you can write to",
        ) from error


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
