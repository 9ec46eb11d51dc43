"""Enters the confinement of the program that fetches, then tries what it must not do; prints what it could, as JSON."""

from __future__ import annotations

import json
import os
import socket
import sys

from wan_compat.sandbox.network_client import confine

SECRET, FOLDER, PORT, HANDED, PARENT = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])


def possible(what: object) -> bool:
    try:
        what()  # type: ignore[operator]
    except (OSError, ValueError):
        return False
    return True


def listen() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))


confine(keep=[HANDED], read_paths=[], file_size_bytes=100, parent_pid=PARENT)
print(
    json.dumps(
        {
            "read a secret": possible(lambda: os.open(SECRET, os.O_RDONLY)),
            "make a file": possible(lambda: os.open(f"{FOLDER}/new", os.O_WRONLY | os.O_CREAT)),
            "write a file": possible(lambda: os.open(SECRET, os.O_WRONLY)),
            "list the folder": possible(lambda: os.listdir(FOLDER)),
            "start a program": possible(lambda: os.execv("/bin/true", ["true"])),
            "listen": possible(listen),
            "write too much": possible(lambda: os.pwrite(HANDED, b"x" * 10, 200)),
            "write what was handed over": possible(lambda: os.pwrite(HANDED, b"x", 0)),
            "connect": possible(lambda: socket.create_connection(("127.0.0.1", PORT), 5).close()),
            "import": possible(lambda: __import__("huggingface_hub")),
        }
    )
)
