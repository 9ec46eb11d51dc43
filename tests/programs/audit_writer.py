"""Appends to the audit log for ever, saying after each entry how many there are; made to be killed half-way."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from wan_compat.supervisor import audit_log
from wan_compat.supervisor.audit_log import AuditEvent, AuditLog

folder, pause = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
real_write, real_head = os.write, audit_log._write_head


def half_a_line(descriptor: int, data: bytes) -> int:
    """Write half of it and wait for the end."""
    real_write(descriptor, data[: len(data) // 2])
    print("half", flush=True)
    sys.stdin.read()
    return 0


def no_head(*arguments: object) -> None:
    print("line", flush=True)
    sys.stdin.read()


log = AuditLog(folder)
log.append(AuditEvent.FIRST_USE, model="first")
if pause == "half":
    os.write = half_a_line
elif pause == "before head":
    audit_log._write_head = no_head
while True:
    entry = log.append(AuditEvent.FIRST_USE, model="x" * 100, pid=os.getpid())
    print(entry.seq, flush=True)
