"""A small hub on this machine: the two addresses that wan-compat asks, and a server's ways to misbehave.

    GET /api/models/<id>/revision/<revision>?blobs=true     commit and files
    GET /<id>/resolve/<commit>/<path>                       a file's bytes, from a range on

Used as a context manager; `requests` has (path, headers) of everything that was asked.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_BYTES = 4096  # larger files have a SHA-256


def entry(path: str, content: bytes) -> dict[str, Any]:
    sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": sha1}
    if len(content) > LFS_BYTES:
        found["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return found


class FakeHub:
    def __init__(self, files: dict[str, bytes], repository: str = "org/tiny") -> None:
        self.repository = repository
        self.files = files
        self.siblings = [entry(path, content) for path, content in files.items()]
        self.requests: list[tuple[str, dict[str, str]]] = []
        # Path of a file -> what is sent in place of its bytes.
        self.faults: dict[str, Callable[[http.server.BaseHTTPRequestHandler, bytes], None]] = {}
        self.listing_fault: Callable[[http.server.BaseHTTPRequestHandler, bytes], None] | None = None
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.close_connection = True
                hub.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                try:
                    hub._answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def fetched(self) -> list[str]:
        return [path.split(f"/resolve/{COMMIT}/")[1] for path, _ in self.requests if "/resolve/" in path]

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(handler.path).path)
        if path.startswith(f"/api/models/{self.repository}/revision/"):
            document = {"id": self.repository, "sha": COMMIT, "siblings": self.siblings}
            body = json.dumps(document).encode()
            (self.listing_fault or send)(handler, body)
            return
        name = path.removeprefix(f"/{self.repository}/resolve/{COMMIT}/")
        if name == path or name not in self.files:
            send(handler, b'{"error":"Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})
            return
        (self.faults.get(name) or send_range)(handler, self.files[name])


def send(
    handler: http.server.BaseHTTPRequestHandler, body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(body)


def send_range(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    wanted = handler.headers.get("Range")
    if wanted is None:
        send(handler, body)
        return
    start = int(wanted.removeprefix("bytes=").rstrip("-"))
    send(handler, body[start:], 206, {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"})


def send_slowly(handler: http.server.BaseHTTPRequestHandler, body: bytes, *, first: int = 1 << 16) -> None:
    """Send the first bytes, then one every twentieth of a second."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:first])
    for byte in body[first:]:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.05)


def send_without_end(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    while True:
        handler.wfile.write(b"\0" * (1 << 20))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
