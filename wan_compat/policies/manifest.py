"""Hashes that come with a model: checksum lists, manifests, and what an OpenSSF model signature says of each file.

    SHA256SUMS          lines of sha256sum(1): "<hash>  <path>", or BSD's "SHA256 (<path>) = <hash>"
    NAME.sha256         the same, or the hash alone: then it is that of NAME
    manifest.json       {"files": {path: hash}} or {"files": [{"path": path, "sha256": hash}]}
    model.sig           a Sigstore bundle around an in-toto statement (model_signing 1.0 by key)

A list in the same folder shows damage, not a forger: who changes a file changes the list. A signature shows both, to
whoever has the right key. https://github.com/sigstore/model-transparency
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any

MAX_ENTRIES = 5000
MAX_LINE_CHARS = 1200
MAX_PATH_CHARS = 1000
PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_COREUTILS = re.compile(r"\\?([0-9a-fA-F]{64}) [ *](.+)")
_BSD = re.compile(r"SHA256 \((.+)\) = ([0-9a-fA-F]{64})")


class Unusable(ValueError):
    """What is there is no list of hashes; the message says why."""


@dataclasses.dataclass(frozen=True)
class SignedEnvelope:
    """What a bundle carries. `signed_bytes` is what the signature is over; `key_hint` the SHA-256 of the signer's PEM,
    where it tells."""

    payload: bytes
    signed_bytes: bytes
    signature: bytes
    key_hint: str | None
    by_key: bool


def read_checksums(text: str, name: str) -> dict[str, str]:
    """Return path -> SHA-256 of a checksum list called `name`.

    Raises:
        Unusable: A line is no checksum, or there are too many.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) > MAX_ENTRIES:
        raise Unusable(f"it has more than {MAX_ENTRIES} lines")
    if len(lines) == 1 and name.endswith(".sha256") and _SHA256.fullmatch(lines[0].strip()):
        return {name.rpartition("/")[2].removesuffix(".sha256"): lines[0].strip().lower()}
    found: dict[str, str] = {}
    for line in lines:
        if len(line) > MAX_LINE_CHARS:
            raise Unusable("it has a line that is too long")
        if (match := _COREUTILS.fullmatch(line)) is not None:
            digest, path = match.groups()
        elif (match := _BSD.fullmatch(line)) is not None:
            path, digest = match.groups()
        else:
            raise Unusable("a line is no SHA-256 with a path")
        _add(found, path, digest)
    return found


def read_manifest(document: Mapping[str, Any]) -> dict[str, str] | None:
    """Return path -> SHA-256 of a manifest.json, None where it is one of some other kind.

    Raises:
        Unusable: It has a list of files that makes no sense.
    """
    files = document.get("files")
    if isinstance(files, Mapping):
        pairs = [(path, value.get("sha256") if isinstance(value, Mapping) else value) for path, value in files.items()]
    elif isinstance(files, list) and all(isinstance(item, Mapping) for item in files):
        pairs = [(item.get("path") or item.get("name"), item.get("sha256")) for item in files]
    else:
        return None
    if len(pairs) > MAX_ENTRIES:
        raise Unusable(f"it names more than {MAX_ENTRIES} files")
    found: dict[str, str] = {}
    for path, digest in pairs:
        if not isinstance(digest, str) or _SHA256.fullmatch(digest) is None:
            raise Unusable("a file has no SHA-256")
        _add(found, path, digest)
    return found


def read_bundle(document: Mapping[str, Any]) -> SignedEnvelope:
    """Return what a Sigstore bundle carries; nothing of it is believed before the signature was checked.

    Raises:
        Unusable: It is no bundle with one signature over an in-toto statement.
    """
    envelope, material = document.get("dsseEnvelope"), document.get("verificationMaterial")
    if not isinstance(envelope, Mapping) or not isinstance(material, Mapping):
        raise Unusable("it is no Sigstore bundle with an envelope")
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], Mapping):
        raise Unusable("it has not exactly one signature")
    if envelope.get("payloadType") != PAYLOAD_TYPE:
        raise Unusable("it signs something else than an in-toto statement")
    payload, signature = _base64(envelope.get("payload")), _base64(signatures[0].get("sig"))
    key = material.get("publicKey")
    hint = key.get("hint") if isinstance(key, Mapping) else None
    # https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md, "PAE"
    prefix = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode()
    return SignedEnvelope(
        payload=payload,
        signed_bytes=prefix + payload,
        signature=signature,
        key_hint=hint if isinstance(hint, str) and hint else None,
        by_key=isinstance(key, Mapping),
    )


def read_statement(document: Mapping[str, Any]) -> dict[str, str]:
    """Return path -> SHA-256 of the statement in an envelope whose signature is right.

    Raises:
        Unusable: It speaks of something else than a model's files by SHA-256, or contradicts itself.
    """
    subject, predicate = document.get("subject"), document.get("predicate")
    if document.get("predicateType") != PREDICATE_TYPE or not isinstance(predicate, Mapping):
        raise Unusable("it is no statement of model_signing 1.0")
    serialization, resources = predicate.get("serialization"), predicate.get("resources")
    if not isinstance(serialization, Mapping) or serialization.get("method") != "files":
        raise Unusable("it hashes pieces of files, which is not known here")
    if not isinstance(resources, list) or not resources or len(resources) > MAX_ENTRIES:
        raise Unusable("it names no files, or too many")
    found: dict[str, str] = {}
    together = hashlib.sha256()
    for item in resources:
        digest = item.get("digest") if isinstance(item, Mapping) else None
        if not isinstance(digest, str) or _SHA256.fullmatch(digest) is None or item.get("algorithm") != "sha256":
            raise Unusable("a file is not hashed with SHA-256")
        together.update(bytes.fromhex(digest))
        _add(found, item.get("name"), digest)
    first = subject[0] if isinstance(subject, list) and len(subject) == 1 else None
    digests = first.get("digest") if isinstance(first, Mapping) else None
    if not isinstance(digests, Mapping) or digests.get("sha256") != together.hexdigest():
        raise Unusable("its files do not add up to what it is about")
    return found


def _add(found: dict[str, str], path: Any, digest: str) -> None:
    if not isinstance(path, str) or not path or len(path) > MAX_PATH_CHARS:
        raise Unusable("a file has no usable name")
    path = path.removeprefix("./")
    if path.startswith("/") or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise Unusable("a name leads out of the model")
    if found.setdefault(path, digest.lower()) != digest.lower():
        raise Unusable("a file has two hashes")


def _base64(value: Any) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "*", validate=True)
    except (binascii.Error, ValueError):
        raise Unusable("a part of it is not base64") from None
