"""`scan`: what lies in a repository that could harm who loads it. No worker, no torch; nothing is loaded or unpacked.

    list      every name, hidden ones too                              scanning/listing.py
    look      each file's bytes, as far as its format needs            scanning/contents.py, policies/scan/
    hash      small files always, weights when asked or remembered     hashing.py
    compare   every name again: is it still what was looked at?

The verdict advises. What is loaded is decided by policies/models.py from its own list, whatever a scan says.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Sequence

from wan_compat.policies.facts import FileFact
from wan_compat.policies.findings import Finding, Severity
from wan_compat.policies.scan.configs import read_template
from wan_compat.policies.scan.formats import Format
from wan_compat.policies.scan.report import ScannedFile, ScanReport, content_hash
from wan_compat.policies.scan.rules import RULES, Observation, rule_finding
from wan_compat.protocol.errors import WanCompatError, clean_text
from wan_compat.supervisor.hashing import FileChanged, FileIdentity, HashCache, HashRequest, hash_files
from wan_compat.supervisor.inspection import read_gguf_header, read_safetensors_header
from wan_compat.supervisor.inspection.locate import Place, locate
from wan_compat.supervisor.scanning.contents import Inspection, inspect_contents
from wan_compat.supervisor.scanning.listing import ListedFile, Listing, changes, list_everything
from wan_compat.supervisor.scanning.sources import Budget, FileContents

_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

# Files below this size are read whole and hashed anyway.
SMALL_BYTES = 1 << 20
# Of small files and of what is read whole: a hundred thousand files of a megabyte are not a model.
MAX_READ_BYTES = 8 << 30
MAX_FINDINGS = 2000
MAX_PER_FILE = 60
MAX_PATH_CHARS = 500

_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}

# Called with "files" or "bytes", how many are done, and how many there are.
ScanProgress = Callable[[str, int, int], None]


def scan_model(
    path: str, *, hash_weights: bool = False, progress: ScanProgress | None = None, cache: HashCache | None = None
) -> ScanReport:
    """Scan a folder, a file, a Hugging Face snapshot or a cached hub id.

    Args:
        hash_weights: Hash weights too, which takes as long as reading them; otherwise only remembered hashes are told.
        progress: Called in this thread; see ScanProgress.
        cache: Remembers hashes; None is the user's.

    Raises:
        ModelNotFound, ModelUnreadable: There is nothing to scan, or it may not be read at all.
    """
    place = locate(path)
    listing = list_everything(place)
    scan = _Scan(place, listing, cache if cache is not None else HashCache(), progress)
    scan.look()
    scan.hash_rest(hash_weights)
    for changed in changes(listing):
        scan.note(os.path.relpath(changed, place.real), Observation("scan-changed", "not what it was at the start"))
    return scan.report()


class _Scan:
    def __init__(self, place: Place, listing: Listing, cache: HashCache, progress: ScanProgress | None) -> None:
        self._place = place
        self._files = listing.files
        self._cache = cache
        self._progress = progress
        self._findings: list[Finding] = []
        self._dropped = 0
        self._formats: dict[str, Format] = {}
        self._hashes: dict[str, str] = {}
        self._read_bytes = 0
        self._budget = Budget()
        for path, observation in listing.notes:
            self.note(path, observation)

    def note(self, path: str, observation: Observation) -> None:
        """Keep a finding. Errors have room for as many again; how many were not kept is said."""
        found = rule_finding(observation, path=path or None, component=_component(path))
        room = MAX_FINDINGS * (2 if found.severity is Severity.ERROR else 1)
        if len(self._findings) < room:
            self._findings.append(found)
        else:
            self._dropped += 1

    def look(self) -> None:
        """Read what every file's format asks for."""
        for number, file in enumerate(self._files):
            if self._progress is not None and number % 64 == 0:
                self._progress("files", number, len(self._files))
            for observation in _first_ones(self._look_at(file)):
                self.note(file.path, observation)
        if self._progress is not None:
            self._progress("files", len(self._files), len(self._files))

    def hash_rest(self, hash_weights: bool) -> None:
        """Hash what was not read whole, if asked, else take what is remembered."""
        rest = [file for file in self._files if file.path not in self._hashes]
        if not hash_weights:
            for file in rest:
                if (known := self._cache.get(file.identity)) is not None:
                    self._hashes[file.path] = known
            return
        requests = [HashRequest(file.real_path, file.identity) for file in rest if file.path in self._formats]
        progress = self._progress
        found: dict[str, str] = {}
        try:
            found = hash_files(
                requests,
                progress=(lambda done, total: progress("bytes", done, total)) if progress is not None else None,
                cache=self._cache,
            )
        except FileChanged as error:
            self.note("", Observation("scan-changed", error.message))
        except WanCompatError as error:
            self.note("", Observation("file-unreadable", error.message))
        finally:
            self._cache.save()
        for file in rest:
            if file.real_path in found:
                self._hashes[file.path] = found[file.real_path]

    def report(self) -> ScanReport:
        if self._dropped:
            words = f"{self._dropped:,} more findings are not shown"
            self._findings.append(rule_finding(Observation("scan-limit", words), path=None))
        self._findings.sort(key=lambda item: (_ORDER[item.severity], item.path or "", item.line or 0, item.rule or ""))
        files = sorted(self._files, key=lambda file: os.fsencode(file.path))
        complete = all(file.path in self._hashes for file in files) and not any(
            item.rule in ("scan-changed", "folder-too-many", "folder-too-deep", "file-unreadable")
            for item in self._findings
        )
        return ScanReport(
            root=self._place.root,
            findings=tuple(self._findings),
            files=tuple(
                ScannedFile(
                    path=clean_text(file.path, MAX_PATH_CHARS),
                    sha256=self._hashes.get(file.path),
                    format=self._formats.get(file.path, Format.UNKNOWN).value,
                    bytes=file.identity.size,
                )
                for file in files
            ),
            content_hash=content_hash(
                (os.fsencode(file.path), file.identity.size, self._hashes[file.path]) for file in files
            )
            if complete
            else None,
        )

    def _look_at(self, file: ListedFile) -> Sequence[Observation]:
        size = file.identity.size
        if self._read_bytes > MAX_READ_BYTES:
            return [Observation("scan-limit", f"not looked at: {MAX_READ_BYTES >> 30} GiB were read before it")]
        try:
            descriptor = os.open(file.real_path, _OPEN_FLAGS)
        except OSError as error:
            return [Observation("file-unreadable", f"it cannot be opened: {error.strerror}")]
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode) or FileIdentity.of(info) != file.identity:
                return [Observation("scan-changed", "it is not the file that was listed")]
            contents = FileContents(descriptor, size)
            inspection = inspect_contents(contents, file.path, self._budget)
            self._formats[file.path] = inspection.format
            found = inspection.observations + self._header(file, inspection)
            raw = inspection.whole
            if raw is None and size < SMALL_BYTES:
                raw = contents.read(0, size)
            if raw is not None:
                self._read_bytes += len(raw)
                self._hashes[file.path] = hashlib.sha256(raw).hexdigest()
            after = os.fstat(descriptor)
            if FileIdentity.of(after) != file.identity or (raw is not None and len(raw) != size):
                self._hashes.pop(file.path, None)
                found.append(Observation("scan-changed", "it was written to while it was read"))
            return found
        except OSError as error:
            return [Observation("file-unreadable", f"it cannot be read: {error.strerror}")]
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _header(self, file: ListedFile, inspection: Inspection) -> list[Observation]:
        """Check the header of weights as a loader would be held to it."""
        if inspection.format not in (Format.SAFETENSORS, Format.GGUF):
            return []
        identity = file.identity
        fact = FileFact(file.path, file.real_path, identity.size, identity.device, identity.inode, identity.mtime_ns)
        read = read_safetensors_header if inspection.format is Format.SAFETENSORS else read_gguf_header
        try:
            weights = read(fact)
        except WanCompatError as error:
            return [Observation("format-corrupt", error.message)]
        # A GGUF brings its chat template along; llama-cpp-python ran it unconfined (CVE-2024-34359).
        texts = [value for key, value in weights.metadata.items() if "template" in key and isinstance(value, str)]
        return [Observation(item.rule, item.message) for text in texts for item in read_template(text)]


def _component(path: str) -> str | None:
    """The folder at the top that a file belongs to, which in diffusers layout is a component."""
    folder, slash, _ = path.partition("/")
    return folder if slash else None


def _first_ones(found: Sequence[Observation]) -> list[Observation]:
    if len(found) <= MAX_PER_FILE:
        return list(found)
    # Stable: within one severity the order of the readers stays.
    ranked = sorted(found, key=lambda item: _rank(item.rule))
    more = Observation("scan-limit", f"{len(found) - MAX_PER_FILE:,} more findings in this file")
    return [*ranked[:MAX_PER_FILE], more]


def _rank(rule: str) -> int:
    return _ORDER[RULES[rule].level]
