"""The tables of system calls, against the headers of this machine where it has them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from wan_compat.protocol.errors import SandboxEntryFailed
from wan_compat.sandbox import syscalls
from wan_compat.sandbox.syscalls import AARCH64, ARCHITECTURES, X86_64

X86_64_HEADERS = [Path(p) for p in ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h")]
GENERIC_HEADER = Path("/usr/include/asm-generic/unistd.h")


def numbers_of(header: Path) -> dict[str, int]:
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


def test_x86_64_table_agrees_with_the_headers() -> None:
    header = next((path for path in X86_64_HEADERS if path.exists()), None)
    if header is None:
        pytest.skip("no kernel headers here")
    theirs = numbers_of(header)
    assert {name: X86_64.get(name) for name in theirs} == theirs


def test_aarch64_table_agrees_with_the_generic_header() -> None:
    if not GENERIC_HEADER.exists():
        pytest.skip("no kernel headers here")
    theirs = numbers_of(GENERIC_HEADER)
    assert {name: number for name, number in AARCH64.items() if theirs.get(name, number) != number} == {}
    # fstatat is called newfstatat on 64-bit machines; the time64 calls exist on 32-bit ones only.
    missing = theirs.keys() - AARCH64.keys() - {"fstatat", "syscalls", "arch_specific_syscall", "sync_file_range2"}
    assert {name for name in missing if not re.search(r"time(r|rfd)?(_\w+)?64$|time64", name)} == set()


@pytest.mark.parametrize("table", [X86_64, AARCH64], ids=["x86_64", "aarch64"])
def test_no_number_is_given_twice(table: dict[str, int]) -> None:
    assert len(set(table.values())) == len(table)


def test_calls_since_5_1_have_one_number_everywhere() -> None:
    assert {name for name in AARCH64 if AARCH64[name] >= 424 and X86_64[name] != AARCH64[name]} == set()


def test_calls_are_named_for_reports() -> None:
    assert ARCHITECTURES["x86_64"].name_of(101) == "ptrace"
    assert ARCHITECTURES["x86_64"].name_of(9999) == "call 9999"


def test_other_machines_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "6.1", "#1", "riscv64")))
    with pytest.raises(SandboxEntryFailed, match="riscv64") as caught:
        syscalls.architecture()
    assert caught.value.hint
