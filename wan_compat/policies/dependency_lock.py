"""The lock: one version of every package that `install-deps` may install, with the hash of each of its wheels.

    {"schema_version": 1,
     "packages": {"gguf": {"version": "0.19.0", "requires": ["numpy>=1.17"], "requires_python": ">=3.10",
                           "wheels": [{"filename": "gguf-0.19.0-py3-none-any.whl", "sha256": "...", "bytes": 1}]}}}

Made by `python -m tools.lock_dependencies` and checked in. Whoever serves the files is not trusted: what does not have
one of these hashes is not installed. torch is not in it: its builds are a matter of the machine, and its gigabytes of
the environment that wan-compat itself lives in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from wan_compat.protocol.errors import InvalidRequest, clean_text

MAX_LOCK_BYTES = 4 << 20
_MAX_PACKAGES = 200
_MAX_WHEELS = 60

PackageName = Annotated[str, StringConstraints(max_length=80, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
Version = Annotated[str, StringConstraints(max_length=40, pattern=r"^[0-9]+(\.[0-9]+)*([a-z0-9.+]*)$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LockedWheel(_Strict):
    filename: Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9_.+-]+\.whl$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=1, le=4 << 30)]


class LockedPackage(_Strict):
    """`requires` are its own dependencies, extras left out, with their markers."""

    version: Version
    requires: Annotated[tuple[Annotated[str, StringConstraints(max_length=300)], ...], Field(max_length=100)] = ()
    requires_python: Annotated[str, StringConstraints(max_length=80)] = ""
    wheels: Annotated[tuple[LockedWheel, ...], Field(min_length=1, max_length=_MAX_WHEELS)]

    def wheel_for(self, tags: Sequence[str]) -> LockedWheel | None:
        """Return the wheel that fits an interpreter best, None where none does.

        Args:
            tags: What the interpreter takes, best first, such as `cp311-cp311-manylinux_2_28_x86_64`.
        """
        rank = {tag: place for place, tag in reversed(list(enumerate(tags)))}
        fitting = []
        for wheel in self.wheels:
            places = [rank[str(tag)] for tag in _tags(wheel.filename) if str(tag) in rank]
            if places:
                fitting.append((min(places), wheel.filename, wheel))
        return min(fitting)[2] if fitting else None


class Lock(_Strict):
    schema_version: Literal[1] = 1
    packages: Annotated[dict[PackageName, LockedPackage], Field(max_length=_MAX_PACKAGES)]

    @model_validator(mode="after")
    def _files_belong_to_their_package(self) -> Lock:
        for name, package in self.packages.items():
            for wheel in package.wheels:
                try:
                    of, version, _, _ = parse_wheel_filename(wheel.filename)
                except InvalidWheelFilename as error:
                    raise ValueError(f"{wheel.filename} is no wheel's name") from error
                if of != canonicalize_name(name) or str(version) != package.version:
                    raise ValueError(f"{wheel.filename} is not {name} {package.version}")
        return self


def parse_lock(raw: bytes, source: str) -> Lock:
    """Parse a lock; whole or not at all.

    Raises:
        InvalidRequest: Too large, no JSON, unknown keys, or a wheel that is not its package's.
    """
    if len(raw) > MAX_LOCK_BYTES:
        raise InvalidRequest(f"{source} has {len(raw)} bytes; a lock has at most {MAX_LOCK_BYTES}")
    try:
        return Lock.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise InvalidRequest(f"{source}: {clean_text(where, 200)}: {clean_text(first['msg'], 200)}") from error


def _tags(filename: str) -> frozenset[Tag]:
    return parse_wheel_filename(filename)[3]
