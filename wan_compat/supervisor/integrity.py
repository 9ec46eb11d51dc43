"""Are the files what somebody said they are? The hub by the names in its cache, a list of hashes, a signature.

    hub cache      blobs/<name>: the name is the SHA-256 (large files) or git's SHA-1 (small ones) of the content
    lists          SHA256SUMS, NAME.sha256, manifest.json in the folder                    policies/manifest.py
    signature      model.sig or *.sigstore.json, made by model_signing with a key; checked with the user's public key

A wrong hash or signature is an error, whatever else is right. What nobody gave a hash for is listed as that. Signatures
by identity (Sigstore's certificates) are told and not judged: that needs a network and its roots of trust.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from wan_compat.policies.facts import FileFact
from wan_compat.policies.findings import Finding, finding
from wan_compat.policies.manifest import (
    SignedEnvelope,
    Unusable,
    read_bundle,
    read_checksums,
    read_manifest,
    read_statement,
)
from wan_compat.protocol.errors import EnvironmentLacks, InvalidRequest, ModelCorrupt, RefusedByPolicy
from wan_compat.supervisor.admitted_files import check_unchanged
from wan_compat.supervisor.hashing import FileChanged, FileIdentity, HashCache, HashRequest, Progress, hash_files
from wan_compat.supervisor.hub_cache import git_sha1
from wan_compat.supervisor.inspection import parse_json
from wan_compat.supervisor.inspection.locate import locate
from wan_compat.supervisor.inspection.opening import opened, read_at
from wan_compat.supervisor.inspection.problems import Defect, Problems
from wan_compat.supervisor.inspection.walk import list_files

MAX_LIST_BYTES = 2 << 20
MAX_LISTS = 200
MAX_KEY_BYTES = 16 << 10
_SUMS = ("SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "sha256sum.txt", "checksums.sha256")
_SHA256_CHARS, _SHA1_CHARS = 64, 40


@dataclasses.dataclass(frozen=True)
class IntegrityReport:
    """What was compared.

    Args:
        findings: Errors for what is wrong, remarks for what could not be judged.
        verified: Path -> by what, of files whose bytes are as somebody said: "hub", "list" or "signature".
        unverified: Files that nobody gave a hash for.
    """

    findings: tuple[Finding, ...]
    verified: Mapping[str, str]
    unverified: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "verified": dict(self.verified),
            "unverified": list(self.unverified),
            "findings": [item.to_json() for item in self.findings],
        }


def verify_model(
    path: str, *, public_key: str | None = None, progress: Progress | None = None, cache: HashCache | None = None
) -> IntegrityReport:
    """Read and hash a model, and compare it with every hash that is known of it.

    Args:
        public_key: File with the PEM key (elliptic curve) that a signature must be of; None judges no signature.
        progress, cache: As in `hash_files`; None for the cache is the user's.

    Raises:
        ModelNotFound, ModelUnreadable, FileChanged: As `locate` and `hash_files`.
        InvalidRequest, EnvironmentLacks: The key cannot be used, or the package that checks signatures is missing.
    """
    place = locate(path)
    files = list_files(place, Problems())
    check = _Check(files, cache if cache is not None else HashCache())
    if place.repository is not None:
        check.against_hub()
    check.against_lists()
    check.against_signatures(_read_key(public_key) if public_key is not None else None)
    return check.carry_out(progress)


def require_verified(
    path: str, admitted: Iterable[FileFact], *, public_key: str | None = None, progress: Progress | None = None
) -> None:
    """Raise unless every admitted file is as somebody said: what the setting `require_manifest` asks for.

    Args:
        progress: As in `hash_files`; what it raises ends the hashing.

    Raises:
        ModelCorrupt: A file is not what its hash says.
        RefusedByPolicy: A signature is wrong, or a file has no hash at all.
    """
    report = verify_model(path, public_key=public_key, progress=progress)
    for item in report.findings:
        if item.severity == "error":
            raise item.to_error(path)
    admitted = tuple(admitted)
    # The files that were hashed are those that were judged: nothing moved them between the two looks.
    if touched := check_unchanged(admitted):
        raise FileChanged(f"{path}: {touched[0]} changed while it was checked", hint="do it again")
    lacking = sorted(fact.path for fact in admitted if fact.path not in report.verified)
    if lacking:
        raise RefusedByPolicy(
            f"{path}: nobody gave a hash for {len(lacking)} of the files that would be loaded, such as {lacking[0]}",
            hint="fetch it with --download, or put a SHA256SUMS beside it; require_manifest asks for one",
        )


class _Check:
    """The files of a model, and what is expected of each."""

    def __init__(self, files: Mapping[str, FileFact], cache: HashCache) -> None:
        self._files = files
        self._cache = cache
        self._findings: list[Finding] = []
        self._expected: list[tuple[str, str, str, str]] = []  # path, SHA-256, by what, in the words of a message
        self._git: list[tuple[str, str]] = []

    def against_hub(self) -> None:
        for path, fact in self._files.items():
            name = os.path.basename(fact.real_path)
            if len(name) == _SHA256_CHARS:
                self._expected.append((path, name, "hub", "the hub's hash"))
            elif len(name) == _SHA1_CHARS:
                self._git.append((path, name))

    def against_lists(self) -> None:
        lists = [path for path in self._files if path in _SUMS or path.endswith(".sha256") or path == "manifest.json"]
        for path in lists[:MAX_LISTS]:
            try:
                raw = self._read(path)
                found = (
                    read_manifest(_json(raw)) if path == "manifest.json" else read_checksums(raw.decode("utf-8"), path)
                )
            except (Unusable, UnicodeDecodeError) as error:
                self._note("manifest_unusable", f"{path} is no list of hashes: {error}", path)
                continue
            folder = path.rpartition("/")[0]
            self._expect(
                {f"{folder}/{name}" if folder else name: digest for name, digest in (found or {}).items()}, "list", path
            )

    def against_signatures(self, key: bytes | None) -> None:
        for path in [name for name in self._files if name == "model.sig" or name.endswith(".sigstore.json")][:20]:
            try:
                envelope = read_bundle(_json(self._read(path)))
                if not envelope.by_key:
                    self._note("signature_unverified", f"{path} is signed by an identity, not by a key", path)
                elif key is None:
                    self._note("signature_unverified", f"{path} was not checked: no public key was given", path)
                elif _is_signed(envelope, key):
                    self._expect(read_statement(_json(envelope.payload)), "signature", path)
                else:
                    self._note("signature_invalid", f"{path} was not made with that key, or was changed", path)
            except Unusable as error:
                self._note("signature_invalid", f"{path} is no usable signature: {error}", path)

    def carry_out(self, progress: Progress | None) -> IntegrityReport:
        wanted = {path for path, *_ in self._expected}
        requests = [
            HashRequest(fact.real_path, _identity(fact)) for path, fact in self._files.items() if path in wanted
        ]
        try:
            hashes = hash_files(requests, progress=progress, cache=self._cache)
        finally:
            self._cache.save()
        verified: dict[str, str] = {}
        wrong: set[str] = set()
        for path, digest, by, words in self._expected:
            if hashes[self._files[path].real_path] == digest:
                verified[path] = by
            else:
                wrong.add(path)
                self._note("hash_mismatch", f"{path} is not what {words} says", path)
        for path, digest in self._git:
            fact = self._files[path]
            if git_sha1(fact.real_path, fact.size) == digest:
                verified.setdefault(path, "hub")
            else:
                wrong.add(path)
                self._note("hash_mismatch", f"{path} is not what the hub's hash says", path)
        verified = {path: by for path, by in sorted(verified.items()) if path not in wrong}
        unverified = tuple(sorted(path for path in self._files if path not in verified and path not in wrong))
        return IntegrityReport(tuple(self._findings), verified, unverified)

    def _expect(self, digests: Mapping[str, str], by: str, source: str) -> None:
        self._expected += [(path, digest, by, source) for path, digest in digests.items() if path in self._files]
        missing = sorted(digests.keys() - self._files.keys())
        if missing:
            words = f"{len(missing)} files that {source} names are not here, such as {missing[0]}"
            self._note("manifest_file_missing", words, source)

    def _note(self, code: str, message: str, path: str) -> None:
        self._findings.append(finding(code, message, path=path))

    def _read(self, path: str) -> bytes:
        fact = self._files[path]
        if fact.size > MAX_LIST_BYTES:
            raise Unusable(f"it has more than {MAX_LIST_BYTES} bytes")
        try:
            with opened(fact) as descriptor:
                return read_at(descriptor, fact.size, 0)
        except Defect as defect:
            raise Unusable(defect.finding.message) from defect


def _identity(fact: FileFact) -> FileIdentity:
    return FileIdentity(fact.device, fact.inode, fact.size, fact.mtime_ns, fact.ctime_ns)


def _json(raw: bytes) -> Mapping[str, Any]:
    try:
        return parse_json(raw, "a list of hashes")
    except ModelCorrupt as error:
        raise Unusable(error.message) from error


def _read_key(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"the public key {path!r} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_KEY_BYTES:
        raise InvalidRequest(f"{path!r} is larger than any public key")
    return raw


def _is_signed(envelope: SignedEnvelope, key: bytes) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise EnvironmentLacks(
            "checking signatures needs the package cryptography, which is not installed",
            hint='pip install "wan-compat[signing]"',
        ) from error
    try:
        public = serialization.load_pem_public_key(key)
    except (ValueError, TypeError) as error:
        raise InvalidRequest("the public key is no key in PEM form") from error
    # The hash follows from the curve (model_signing, `get_ec_key_hash`).
    sizes: Mapping[int, hashes.HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.key_size not in sizes:
        raise InvalidRequest("the public key is not one of the curves P-256, P-384 and P-521")
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if envelope.key_hint is not None and envelope.key_hint != hashlib.sha256(pem).hexdigest():
        return False
    try:
        public.verify(envelope.signature, envelope.signed_bytes, ec.ECDSA(sizes[public.curve.key_size]))
    except InvalidSignature:
        return False
    return True
