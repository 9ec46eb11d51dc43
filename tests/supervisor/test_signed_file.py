"""A signed file is used only when its signature is right; fetching is https only and bounded."""

from __future__ import annotations

import base64
import datetime
import http.server
import os
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from wan_compat.protocol.errors import EnvironmentLacks, FetchFailed, InvalidRequest, RefusedByPolicy
from wan_compat.supervisor import signed_file
from wan_compat.supervisor.signed_file import fetch_signed, read_signed, verify

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
OTHER = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
CONTENT = b'{"schema_version": 1}'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "registry.json"
    path.write_bytes(CONTENT)
    (tmp_path / "registry.json.sig").write_bytes(KEY.sign(CONTENT))
    return path


def test_a_right_signature_gives_the_content(file: Path) -> None:
    assert read_signed(str(file), PUBLIC, 1000) == CONTENT
    Path(f"{file}.sig").write_bytes(base64.b64encode(KEY.sign(CONTENT)) + b"\n")
    assert read_signed(str(file), PUBLIC, 1000) == CONTENT


@pytest.mark.parametrize(
    "signature",
    [b"", b"\0" * 64, KEY.sign(b"other"), KEY.sign(CONTENT)[:63], b"not base64!", b"x" * 1024],
    ids=["empty", "zeros", "of other content", "cut short", "no base64", "large"],
)
def test_a_wrong_signature_is_refused(file: Path, signature: bytes) -> None:
    Path(f"{file}.sig").write_bytes(signature)
    with pytest.raises(RefusedByPolicy, match="not right"):
        read_signed(str(file), PUBLIC, 1000)


def test_a_changed_file_another_key_and_no_signature_are_refused(file: Path) -> None:
    with pytest.raises(RefusedByPolicy):
        read_signed(str(file), OTHER, 1000)
    file.write_bytes(CONTENT + b" ")
    with pytest.raises(RefusedByPolicy):
        read_signed(str(file), PUBLIC, 1000)
    Path(f"{file}.sig").unlink()
    with pytest.raises(RefusedByPolicy, match="not signed") as caught:
        read_signed(str(file), PUBLIC, 1000)
    assert caught.value.hint and "registry.json.sig" in caught.value.hint


def test_what_is_no_file_or_too_large_is_an_error(file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, limit in ((tmp_path / "absent", 100), (tmp_path, 100), (tmp_path / "fifo", 100), (file, 5)):
        with pytest.raises(InvalidRequest):
            read_signed(str(path), PUBLIC, limit)
    with pytest.raises(InvalidRequest):
        read_signed("a\0b", PUBLIC, 100)


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(EnvironmentLacks, match="cryptography") as caught:
        verify(CONTENT, KEY.sign(CONTENT), PUBLIC, "x")
    assert caught.value.hint and "wan-compat[signing]" in caught.value.hint


# -- fetching ---------------------------------------------------------------------------------------------------------------


class Answers(http.server.BaseHTTPRequestHandler):
    """Serves what `pages` says: bytes, an address to redirect to, or None for 404."""

    pages: ClassVar[dict[str, bytes | str]] = {}

    def do_GET(self) -> None:
        page = self.pages.get(self.path)
        self.send_response(404 if page is None else 302 if isinstance(page, str) else 200)
        if isinstance(page, str):
            self.send_header("Location", page)
        self.end_headers()
        if isinstance(page, bytes):
            self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()) + made.public_bytes(pem)
    )
    return path


@pytest.fixture
def server(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An https server on localhost; returns its address."""
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(Answers, "pages", {"/r.json": CONTENT, "/r.json.sig": KEY.sign(CONTENT)})
    yield f"https://localhost:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def test_a_signed_file_is_fetched(server: str, trusting: ssl.SSLContext) -> None:
    assert fetch_signed(f"{server}/r.json", PUBLIC, 1000, context=trusting) == CONTENT
    Answers.pages["/here"] = f"{server}/r.json"
    Answers.pages["/here.sig"] = f"{server}/r.json.sig"
    assert fetch_signed(f"{server}/here", PUBLIC, 1000, context=trusting) == CONTENT


def test_what_is_fetched_is_checked(server: str, trusting: ssl.SSLContext) -> None:
    with pytest.raises(RefusedByPolicy, match="not right"):
        fetch_signed(f"{server}/r.json", OTHER, 1000, context=trusting)
    with pytest.raises(FetchFailed, match="more than 5 bytes"):
        fetch_signed(f"{server}/r.json", PUBLIC, 5, context=trusting)
    with pytest.raises(FetchFailed, match="Not Found"):
        fetch_signed(f"{server}/absent", PUBLIC, 1000, context=trusting)


def test_an_unknown_certificate_is_refused(server: str) -> None:
    with pytest.raises(FetchFailed, match="certificate"):
        fetch_signed(f"{server}/r.json", PUBLIC, 1000)


@pytest.mark.parametrize("target", ["http://localhost/r.json", "file:///etc/passwd", "ftp://localhost/r.json"])
def test_only_https_is_followed(server: str, trusting: ssl.SSLContext, target: str) -> None:
    with pytest.raises(RefusedByPolicy, match="not an https"):
        fetch_signed(target, PUBLIC, 1000, context=trusting)
    Answers.pages["/away"] = target
    with pytest.raises((RefusedByPolicy, FetchFailed), match=r"not https|not allowed"):
        fetch_signed(f"{server}/away", PUBLIC, 1000, context=trusting)


def test_a_circle_of_redirects_ends(server: str, trusting: ssl.SSLContext) -> None:
    Answers.pages["/circle"] = f"{server}/circle"
    with pytest.raises(FetchFailed):
        fetch_signed(f"{server}/circle", PUBLIC, 1000, context=trusting)


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(signed_file, "FETCH_TIMEOUT_S", 0.2)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(FetchFailed):
            fetch_signed(f"https://localhost:{silent.getsockname()[1]}/r.json", PUBLIC, 1000)
