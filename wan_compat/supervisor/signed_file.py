"""A file with a detached Ed25519 signature: read or fetched under limits, and used only when the signature is right.

    registry.json        the content
    registry.json.sig    64 bytes, or their base64

Whose key counts is said by the caller. Nothing is parsed before its signature was checked.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import os
import ssl
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, Any

from wan_compat.protocol.errors import EnvironmentLacks, FetchFailed, InvalidRequest, RefusedByPolicy, clean_text

SIGNATURE_SUFFIX = ".sig"
SIGNATURE_BYTES = 64
MAX_SIGNATURE_FILE_BYTES = 1024
FETCH_TIMEOUT_S = 15.0
MAX_REDIRECTS = 5
_CHUNK_BYTES = 64 << 10


def read_signed(path: str, public_key: bytes, max_bytes: int) -> bytes:
    """Return a local file's content after checking the signature beside it.

    Raises:
        InvalidRequest: No such file, too large, or no regular file.
        RefusedByPolicy: The signature is missing or wrong.
        EnvironmentLacks: The package that checks signatures is not installed.
    """
    content = _read(path, max_bytes)
    try:
        signature = _read(path + SIGNATURE_SUFFIX, MAX_SIGNATURE_FILE_BYTES)
    except InvalidRequest as error:
        raise RefusedByPolicy(
            f"{path} is not signed: {error.message}", hint=f"get {os.path.basename(path)}{SIGNATURE_SUFFIX} with it"
        ) from error
    verify(content, signature, public_key, path)
    return content


def fetch_signed(url: str, public_key: bytes, max_bytes: int, *, context: ssl.SSLContext | None = None) -> bytes:
    """Return what lies at an https address after checking the signature at the same address with `.sig`.

    Raises:
        FetchFailed: It cannot be reached, answers with an error, or with more than `max_bytes`.
        RefusedByPolicy: The signature is wrong, or a redirect leads away from https.
        EnvironmentLacks: The package that checks signatures is not installed.
    """
    deadline = time.monotonic() + FETCH_TIMEOUT_S
    content = _fetch(url, max_bytes, deadline, context)
    parts = urllib.parse.urlsplit(url)
    beside = parts._replace(path=parts.path + SIGNATURE_SUFFIX).geturl()
    signature = _fetch(beside, MAX_SIGNATURE_FILE_BYTES, deadline, context)
    verify(content, signature, public_key, url)
    return content


def verify(content: bytes, signature: bytes, public_key: bytes, source: str) -> None:
    """Check an Ed25519 signature of `content`; returns for a right one only.

    Raises:
        RefusedByPolicy: It is not the signature of this content by this key.
        EnvironmentLacks: The package that checks signatures is not installed.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise EnvironmentLacks(
            "checking signatures needs the package cryptography, which is not installed",
            hint='pip install "wan-compat[signing]"',
        ) from error
    if len(signature) != SIGNATURE_BYTES:
        try:
            signature = base64.b64decode(signature.strip(), validate=True)
        except (binascii.Error, ValueError):
            signature = b""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, content)
    except (InvalidSignature, ValueError) as error:
        raise RefusedByPolicy(
            f"the signature of {source} is not right: it was changed, or signed with another key",
            hint="get file and signature again from where your key belongs to; nothing of it was used",
        ) from error


def _read(path: str, max_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidRequest(f"{path} is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise InvalidRequest(f"{path} is larger than {max_bytes} bytes")
    return content


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https://"):
            raise RefusedByPolicy(f"{req.full_url} leads to {clean_text(newurl, 200)}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, max_bytes: int, deadline: float, context: ssl.SSLContext | None) -> bytes:
    if not url.startswith("https://"):
        raise RefusedByPolicy(f"{clean_text(url, 200)} is not an https address")
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _OnlyHttps)
    content = bytearray()
    try:
        timeout_s = max(0.1, deadline - time.monotonic())
        with opener.open(urllib.request.Request(url), timeout=timeout_s) as answer:  # noqa: S310 - https only, above
            while chunk := answer.read1(_CHUNK_BYTES):
                content += chunk
                if len(content) > max_bytes:
                    raise FetchFailed(f"{url} answers with more than {max_bytes} bytes")
                # A server that sends a byte a second never runs into the timeout of a single read.
                if time.monotonic() > deadline:
                    raise FetchFailed(f"{url} took longer than {FETCH_TIMEOUT_S:g} s")
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        why = clean_text(str(getattr(error, "reason", error)) or type(error).__name__, 300)
        raise FetchFailed(
            f"{url} cannot be fetched: {why}", hint="everything else works without it; try again later"
        ) from error
    return bytes(content)
