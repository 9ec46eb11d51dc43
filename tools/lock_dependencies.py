"""wan_compat/data/dependencies.lock.json from PyPI: `python -m tools.lock_dependencies` prints it, `--write` puts it
in place. For maintainers; it is the only part of the project that asks PyPI what there is.

Roots are the packages of `policies/dependencies.py`; their dependencies follow, torch and what only it needs left out.
What constraints.txt pins, and so what the suite ran with, is taken in that version; else the newest stable release that
satisfies everybody who asked. Wheels for CPython 3.11 to 3.13 on Linux, x86-64 and ARM.
"""

from __future__ import annotations

import contextlib
import email.message
import hashlib
import io
import json
import re
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from wan_compat.policies.dependencies import ALLOWED, NEVER_INSTALLED
from wan_compat.policies.dependency_lock import LockedPackage, LockedWheel

REPOSITORY = Path(__file__).resolve().parents[1]
LOCK = REPOSITORY / "wan_compat" / "data" / "dependencies.lock.json"
PYTHONS = ("3.11", "3.12", "3.13")
# Floors for wheels: what the oldest supported distributions have.
_PLATFORM = re.compile(r"(manylinux\w*_(x86_64|aarch64)|any)$")
_INTERPRETER = re.compile(r"(cp31[123]|cp3[0-9]|cp310|py3|py2\.py3|py31[0-3])$")


def main(arguments: list[str]) -> int:
    pins = dict(
        line.split("==")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line and line[0] != "#"
    )
    pins = {canonicalize_name(name): version.strip() for name, version in pins.items()}
    chosen = resolve(pins)
    document = {
        "schema_version": 1,
        "packages": {name: chosen[name].model_dump(mode="json", exclude_defaults=True) for name in sorted(chosen)},
    }
    text = json.dumps(document, indent=1) + "\n"
    if "--write" in arguments:
        LOCK.write_text(text)
        print(f"{len(chosen)} packages, {sum(len(p.wheels) for p in chosen.values())} wheels -> {LOCK}")
    else:
        print(text, end="")
    return 0


def resolve(pins: dict[str, str]) -> dict[str, LockedPackage]:
    """Return the locked packages. No going back on a choice: should two ask for what cannot both be, it says so."""
    wanted: dict[str, list[tuple[str, SpecifierSet]]] = {
        name: [("wan-compat", SpecifierSet(package.specifier))]
        for name, package in ALLOWED.items()
        if name not in NEVER_INSTALLED
    }
    chosen: dict[str, LockedPackage] = {}
    queue = list(wanted)
    while queue:
        name = queue.pop(0)
        found = pick(name, wanted[name], pins.get(name))
        print(f"{name} {found.version}: {len(found.wheels)} wheels", file=sys.stderr)
        chosen[name] = found
        for text in found.requires:
            requirement = Requirement(text)
            needed = canonicalize_name(requirement.name)
            if needed in NEVER_INSTALLED or not _applies(requirement):
                continue
            wanted.setdefault(needed, []).append((name, requirement.specifier))
            if needed in chosen:
                if not requirement.specifier.contains(chosen[needed].version, prereleases=True):
                    raise SystemExit(
                        f"{name} wants {requirement}, chosen was {chosen[needed].version}: pin one of them"
                    )
            elif needed not in queue:
                queue.append(needed)
    return chosen


def pick(name: str, wanted: list[tuple[str, SpecifierSet]], pin: str | None) -> LockedPackage:
    index = fetch(f"https://pypi.org/simple/{name}/", "application/vnd.pypi.simple.v1+json")
    releases: dict[Version, list[dict[str, Any]]] = {}
    for file in json.loads(index)["files"]:
        if file["filename"].endswith(".whl") and not file.get("yanked"):
            with contextlib.suppress(InvalidVersion, InvalidWheelFilename):
                _, version, _, tags = parse_wheel_filename(file["filename"])
                if not version.is_prerelease and any(map(_wanted, tags)):
                    releases.setdefault(version, []).append(file)
    for version in [Version(pin)] if pin else sorted(releases, reverse=True):
        files = releases.get(version, [])
        if files and all(specifier.contains(version) for _, specifier in wanted):
            return _locked(version, sorted(files, key=lambda file: file["filename"]))
    raise SystemExit(
        f"{name}: no release with wheels satisfies {[f'{who}: {spec}' for who, spec in wanted]} (pin {pin})"
    )


def _locked(version: Version, files: list[dict[str, Any]]) -> LockedPackage:
    requires = _metadata(min(files, key=lambda file: file["size"])).get_all("Requires-Dist") or []
    return LockedPackage(
        version=str(version),
        requires=tuple(text for text in requires if not re.search(r"extra\s*==", text)),
        requires_python=files[0].get("requires-python") or "",
        wheels=tuple(
            LockedWheel(filename=file["filename"], sha256=file["hashes"]["sha256"], bytes=file["size"])
            for file in files
        ),
    )


def _metadata(file: dict[str, Any]) -> email.message.Message:
    """Return a wheel's METADATA; all wheels of a release have the same dependencies."""
    try:
        return email.message_from_bytes(fetch(f"{file['url']}.metadata"))  # PEP 658
    except urllib.error.HTTPError:
        wheel = fetch(file["url"])
    if hashlib.sha256(wheel).hexdigest() != file["hashes"]["sha256"]:
        raise SystemExit(f"{file['filename']} is not what the index says")
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return email.message_from_bytes(archive.read(name))


def fetch(url: str, accept: str = "*/*") -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=60) as reply:
        return reply.read()


def _wanted(tag: Tag) -> bool:
    free_threaded = tag.abi.endswith("t") and tag.abi != "abi3t"
    own = tag.interpreter == tag.abi and tag.interpreter in ("cp311", "cp312", "cp313")
    return (
        not free_threaded
        and bool(_PLATFORM.match(tag.platform))
        and (own or tag.abi in ("none", "abi3"))
        and bool(_INTERPRETER.match(tag.interpreter))
    )


def _applies(requirement: Requirement) -> bool:
    marker = requirement.marker
    machines = ("x86_64", "aarch64")
    return marker is None or any(
        marker.evaluate(
            {
                "python_version": python,
                "python_full_version": f"{python}.0",
                "platform_machine": machine,
                "sys_platform": "linux",
                "platform_system": "Linux",
                "os_name": "posix",
                "extra": "",
            }
        )
        for python in PYTHONS
        for machine in machines
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
