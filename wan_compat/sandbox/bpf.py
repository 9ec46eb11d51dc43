"""A tiny assembler for seccomp's classic BPF: enough to write "for this call, if this argument, then this answer".

A program is a list of instructions of eight bytes (`struct sock_filter`); jumps are relative, forward, and at most 255
long, which is why each call's rule is a self-contained block that ends in a return. Layout of what the filter reads
(`struct seccomp_data`, linux/seccomp.h): number at 0, architecture at 4, instruction pointer at 8, six 64-bit arguments
from 16, each loaded as two 32-bit halves. Only little-endian machines are in the tables of `syscalls.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

Program = list[bytes]

LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
JUMP_IF_BITS = 0x45  # BPF_JMP | BPF_JSET | BPF_K
AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

# What a filter answers (linux/seccomp.h).
KILL_PROCESS = 0x80000000
ALLOW = 0x7FFF0000
NOTIFY = 0x7FC00000  # SECCOMP_RET_USER_NOTIF: the call waits for whoever holds the filter's listener
_ERRNO = 0x00050000


def answer_errno(number: int) -> int:
    return _ERRNO | number


def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value & 0xFFFFFFFF)


def load_number() -> bytes:
    return instruction(LOAD_WORD, 0)


def load_architecture() -> bytes:
    return instruction(LOAD_WORD, 4)


def load_low(argument: int) -> bytes:
    return instruction(LOAD_WORD, 16 + 8 * argument)


def load_high(argument: int) -> bytes:
    return instruction(LOAD_WORD, 20 + 8 * argument)


def give(answer: int) -> bytes:
    return instruction(RETURN, answer)


def when_call(number: int, rule: Sequence[bytes]) -> Program:
    """Run `rule`, which must end in a return, for call `number`; otherwise the number stays loaded for the next."""
    if len(rule) > 255:
        raise ValueError(f"a rule of {len(rule)} instructions cannot be jumped over")
    return [instruction(JUMP_EQUAL, number, 0, len(rule)), *rule]


def one_of(argument: int, values: Sequence[int], then: int, otherwise: int) -> Program:
    """A rule: `then` if the argument is one of `values`. Low half only: for arguments that the kernel reads as int."""
    tests = [
        instruction(JUMP_EQUAL, value, len(values) - index)  # to the last instruction, past `otherwise`
        for index, value in enumerate(values)
    ]
    return [load_low(argument), *tests, give(otherwise), give(then)]


def is_zero(argument: int, then: int, otherwise: int) -> Program:
    """A rule: `then` if all 64 bits of the argument are zero (a NULL pointer)."""
    return [
        load_low(argument),
        instruction(JUMP_EQUAL, 0, 0, 3),
        load_high(argument),
        instruction(JUMP_EQUAL, 0, 0, 1),
        give(then),
        give(otherwise),
    ]


def all_bits(argument: int, bits: int, then: int, otherwise: int) -> Program:
    """A rule: `then` if every one of `bits` is set in the low half of the argument."""
    return [
        load_low(argument),
        instruction(AND, bits),
        instruction(JUMP_EQUAL, bits, 0, 1),
        give(then),
        give(otherwise),
    ]


def assemble(program: Sequence[bytes]) -> bytes:
    if len(program) > MAX_INSTRUCTIONS:
        raise ValueError(f"{len(program)} instructions, more than the kernel's {MAX_INSTRUCTIONS}")
    return b"".join(program)
