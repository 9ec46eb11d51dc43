"""Wheels of a few hundred bytes, and locks of them: what `install-deps` is tried with, without any network."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from wan_compat.policies.dependencies import ALLOWED
from wan_compat.policies.dependency_lock import Lock, LockedPackage, LockedWheel

FindDistributions = Callable[[], Mapping[str, tuple[str, tuple[str, ...]]]]


@dataclasses.dataclass(frozen=True)
class TinyPackage:
    name: str
    version: str
    code: str = "VALUE = 1\n"
    requires: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")


def write_wheel(folder: Path, package: TinyPackage) -> Path:
    """Write a pure wheel; the same package gives the same bytes."""
    info = f"{package.module}-{package.version}.dist-info"
    requires = "".join(f"Requires-Dist: {text}\n" for text in package.requires)
    files = {
        f"{package.module}/__init__.py": package.code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{package.module}-{package.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return path


def write_sdist(folder: Path, package: TinyPackage, marker: Path) -> Path:
    """Write a source package whose build leaves `marker` behind."""
    root = f"{package.module}-{package.version}"
    files = {
        "setup.py": f"open({str(marker)!r}, 'w').close()\nfrom setuptools import setup\nsetup()\n",
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{root}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"{root}/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def without_features(find: FindDistributions) -> FindDistributions:
    """Return `installed.find_distributions` without what only some models need: the suite has some of it installed for
    other tests, and plans must not depend on which."""
    hidden = {name for name, item in ALLOWED.items() if item.feature is not None} | {"ninja"}
    return lambda: {name: found for name, found in find().items() if name not in hidden}


def lock_of(folder: Path, *packages: TinyPackage) -> Lock:
    """Write the wheels into `folder` and return the lock that pins them."""
    locked = {}
    for package in packages:
        raw = write_wheel(folder, package).read_bytes()
        wheel = LockedWheel(
            filename=f"{package.module}-{package.version}-py3-none-any.whl",
            sha256=hashlib.sha256(raw).hexdigest(),
            bytes=len(raw),
        )
        locked[package.name] = LockedPackage(version=package.version, requires=package.requires, wheels=(wheel,))
    return Lock(packages=locked)
