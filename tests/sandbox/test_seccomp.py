"""The filters, run here in a small interpreter of classic BPF: what they answer to each call, on both architectures.

That the kernel sees it the same way is shown by tests/security, where the calls are really made.
"""

from __future__ import annotations

import errno
import struct

import pytest

from wan_compat.sandbox import bpf, seccomp
from wan_compat.sandbox.syscalls import ARCHITECTURES, Architecture

OWN_PID = 7
EPERM, ENOSYS = bpf.answer_errno(errno.EPERM), bpf.answer_errno(errno.ENOSYS)

both = pytest.mark.parametrize("machine", ARCHITECTURES.values(), ids=lambda machine: machine.name)


def interpret(program: bytes, machine: Architecture, call: str | int, *arguments: int, audit: int | None = None) -> int:
    number = machine.numbers[call] if isinstance(call, str) else call
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=iIQ6Q", number, audit or machine.audit, 0, *(value & (2**64 - 1) for value in padded))
    code = [struct.unpack("=HBBI", program[at : at + 8]) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == bpf.LOAD_WORD:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif operation == bpf.AND:
            accumulator &= value
        elif operation == bpf.RETURN:
            return int(value)
        else:
            holds = {
                bpf.JUMP_EQUAL: accumulator == value,
                bpf.JUMP_AT_LEAST: accumulator >= value,
                bpf.JUMP_IF_BITS: bool(accumulator & value),
            }[operation]
            at += if_true if holds else if_false


def entry(machine: Architecture, call: str | int, *arguments: int, audit: int | None = None) -> int:
    return interpret(seccomp.entry_filter(machine, OWN_PID), machine, call, *arguments, audit=audit)


@both
def test_lists_do_not_overlap(machine: Architecture) -> None:
    assert not seccomp.ALLOWED & seccomp.FLAGRANT
    assert not seccomp.ALLOWED & seccomp.ABSENT
    assert not seccomp.FLAGRANT & seccomp.ABSENT
    known = {name for table in ARCHITECTURES.values() for name in table.numbers}
    assert known >= seccomp.ALLOWED | seccomp.FLAGRANT | seccomp.ABSENT | seccomp.SEALED


@both
def test_every_known_call_has_the_answer_of_its_list(machine: Architecture) -> None:
    ruled = {
        "socket",
        "socketpair",
        "clone",
        "prctl",
        "ioctl",
        "fcntl",
        "kill",
        "tgkill",
        "prlimit64",
        "mmap",
        "seccomp",
    }
    for name in machine.numbers.keys() - ruled:
        expected = (
            bpf.ALLOW if name in seccomp.ALLOWED
            else bpf.KILL_PROCESS if name in seccomp.FLAGRANT
            else ENOSYS if name in seccomp.ABSENT
            else EPERM
        )  # fmt: skip
        assert entry(machine, name) == expected, name


@both
def test_unknown_numbers_and_other_machines_are_refused(machine: Architecture) -> None:
    assert entry(machine, 1000) == EPERM
    assert entry(machine, "read", audit=0x40000003) == bpf.KILL_PROCESS  # i386, by int 0x80
    assert entry(machine, "read", audit=0xC00000B7 ^ 0xC000003E ^ machine.audit) == bpf.KILL_PROCESS


def test_x32_calls_are_killed() -> None:
    machine = ARCHITECTURES["x86_64"]
    assert entry(machine, 0x40000000 | 1) == bpf.KILL_PROCESS
    assert entry(machine, 0xFFFFFFFF - 2**32) == bpf.KILL_PROCESS


@both
def test_clone_makes_threads_and_nothing_else(machine: Architecture) -> None:
    glibc_thread = 0x3D0F00
    assert entry(machine, "clone", glibc_thread) == bpf.ALLOW
    assert entry(machine, "clone", glibc_thread | 0x400000) == bpf.ALLOW  # musl
    assert entry(machine, "clone", 17) == EPERM  # SIGCHLD: fork
    assert entry(machine, "clone", 0x4111) == EPERM  # VFORK | VM | SIGCHLD: posix_spawn
    for bit in (0x10000, 0x100, 0x800):
        assert entry(machine, "clone", glibc_thread & ~bit) == EPERM
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert entry(machine, "clone", glibc_thread | namespace) == bpf.KILL_PROCESS
    for flag in (0x2000, 0x8000, 0x800000):
        assert entry(machine, "clone", glibc_thread | flag) == EPERM


@both
def test_sockets_are_local_only(machine: Architecture) -> None:
    assert entry(machine, "socket", 1, 1, 0) == bpf.ALLOW
    for family in (0, 2, 10, 16, 17, 38, 40):
        assert entry(machine, "socket", family, 1, 0) == bpf.answer_errno(errno.EAFNOSUPPORT)


@both
def test_signals_reach_oneself_only(machine: Architecture) -> None:
    for call in ("kill", "tgkill"):
        assert entry(machine, call, OWN_PID, 9) == bpf.ALLOW
        for pid in (1, 0, -1, -OWN_PID):
            assert entry(machine, call, pid, 9) == EPERM


@both
def test_limits_can_be_read_but_not_set(machine: Architecture) -> None:
    assert entry(machine, "prlimit64", 0, 7, 0, 0x7F0000000000) == bpf.ALLOW
    assert entry(machine, "prlimit64", 0, 7, 0x7F0000000000, 0) == EPERM  # a pointer whose low half is zero
    assert entry(machine, "prlimit64", 0, 7, 0x1000, 0) == EPERM


@both
def test_shared_anonymous_memory_is_refused(machine: Architecture) -> None:
    for flags, answer in ((0x21, EPERM), (0x22, bpf.ALLOW), (0x01, bpf.ALLOW), (0x4021, EPERM), (0x02, bpf.ALLOW)):
        assert entry(machine, "mmap", 0, 4096, 3, flags, -1, 0) == answer


@both
def test_prctl_ioctl_and_fcntl_are_held_to_their_lists(machine: Architecture) -> None:
    assert entry(machine, "prctl", 15) == bpf.ALLOW
    for option in (1, 4, 8, 22, 24, 28, 35, 36, 40, 47):  # PDEATHSIG, DUMPABLE, ..., MM, SUBREAPER, CAP_AMBIENT
        assert entry(machine, "prctl", option) == EPERM, option
    assert entry(machine, "ioctl", 0, 0x541B) == bpf.ALLOW
    for request in (0x5412, 0x541C, 0x5410):  # TIOCSTI, TIOCLINUX, TIOCSPGRP
        assert entry(machine, "ioctl", 0, request) == bpf.answer_errno(errno.ENOTTY)
    for command, answer in ((1, bpf.ALLOW), (8, EPERM), (10, EPERM), (1031, EPERM), (1033, EPERM), (1024, EPERM)):
        assert entry(machine, "fcntl", 0, command) == answer, command


@both
def test_a_gpu_lets_its_drivers_ioctls_through_and_nothing_else(machine: Architecture) -> None:
    program = seccomp.entry_filter(machine, OWN_PID, allow_gpu=True)
    # RM_FREE, RM_CONTROL, CARD_INFO; UVM_INITIALIZE, UVM_REGISTER_GPU, UVM_MM_INITIALIZE; FIONREAD as ever
    for request in (0xC0104629, 0xC020462A, 0xC90046C8, 0x30000001, 0x30000002, 37, 75, 0x541B):
        assert interpret(program, machine, "ioctl", 0, request) == bpf.ALLOW, hex(request)
        if request != 0x541B:
            assert entry(machine, "ioctl", 0, request) == bpf.answer_errno(errno.ENOTTY)
    # TIOCSTI, TIOCLINUX, KVM_CREATE_VM, BTRFS_IOC_SNAP_CREATE, DRM_IOCTL_VERSION, FS_IOC_SETFLAGS
    for request in (0x5412, 0x541C, 0xAE01, 0x50009401, 0xC0406400, 0x40086602, 0x30000003, 0x80):
        assert interpret(program, machine, "ioctl", 0, request) == bpf.answer_errno(errno.ENOTTY), hex(request)
    assert interpret(program, machine, "execve") == EPERM


@both
def test_seal_refuses_connections_and_leaves_the_rest(machine: Architecture) -> None:
    program = seccomp.seal_filter(machine)
    for name in machine.numbers:
        expected = EPERM if name in seccomp.SEALED else bpf.ALLOW
        assert interpret(program, machine, name, 1) == expected, name
    assert interpret(program, machine, "read", audit=0x40000003) == bpf.KILL_PROCESS


@both
def test_only_filters_may_be_added(machine: Architecture) -> None:
    assert entry(machine, "seccomp", 1, 0) == bpf.ALLOW
    assert entry(machine, "seccomp", 1, 1) == bpf.ALLOW
    assert entry(machine, "seccomp", 1, 8) == EPERM  # NEW_LISTENER
    assert entry(machine, "seccomp", 3, 0) == EPERM


@both
def test_helper_may_execute_once_and_never_opens_a_socket(machine: Architecture) -> None:
    pointers = (0x7F1234567890, 0x7F1234567000, 0x5500000000)
    program = seccomp.exec_filter(machine, OWN_PID, pointers)
    assert interpret(program, machine, "execve", *pointers) == bpf.ALLOW
    for index in range(3):
        for difference in (1, 1 << 32):
            other = [*pointers]
            other[index] ^= difference
            assert interpret(program, machine, "execve", *other) == EPERM
    for name in ("socket", "connect", "execveat", "socketpair"):
        assert interpret(program, machine, name, 1) == EPERM
    assert interpret(program, machine, "write") == bpf.ALLOW
    assert interpret(program, machine, "ptrace") == bpf.KILL_PROCESS


def test_too_long_a_rule_is_a_bug() -> None:
    with pytest.raises(ValueError, match="cannot be jumped over"):
        bpf.when_call(1, [bpf.give(bpf.ALLOW)] * 256)
    with pytest.raises(ValueError, match="more than the kernel"):
        bpf.assemble([bpf.give(bpf.ALLOW)] * 4097)
