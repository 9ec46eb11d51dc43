from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from wan_compat.sandbox import landlock

PROGRAM = Path(__file__).parents[1] / "programs" / "network_client.py"


def test_the_program_that_fetches_can_connect_and_write_what_it_was_handed_and_nothing_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with open(tmp_path / "handed", "w+b") as handed, socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(secret), str(tmp_path), str(server.getsockname()[1]), str(handed.fileno()), str(os.getpid())]
        ended = subprocess.run(
            [sys.executable, str(PROGRAM), *arguments],
            env={"PYTHONPATH": str(PROGRAM.parents[2]), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
            pass_fds=[handed.fileno()],
            capture_output=True,
            timeout=30,
            check=True,
        )
    could = json.loads(ended.stdout)
    may = {"write what was handed over", "connect", "import"}
    if landlock.abi() < 4:  # TCP is none of Landlock's business before
        may.add("listen")
    assert {what for what, possible in could.items() if possible} == may
