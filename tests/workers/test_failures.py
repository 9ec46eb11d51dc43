"""Foreign errors become ours: a table of what the libraries raise, and of what a person is told."""

from __future__ import annotations

import errno

import pytest

from wan_compat.protocol.errors import MAX_MESSAGE_CHARS, WORKER_MAY_REPORT, JobCancelled, ModelCorrupt
from wan_compat.workers.failures import to_message, translate


class OutOfMemoryError(RuntimeError):
    """As torch.cuda names it."""


class SafetensorError(Exception):
    """As safetensors names it."""


ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:119] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"
)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError(ALLOCATOR),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1099511627776 bytes"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("unable to mmap 4096 bytes from file: Cannot allocate memory (12)"),
    ],
)
@pytest.mark.parametrize("loading", [True, False])
def test_no_memory_by_any_name_is_memory_exceeded_with_advice(error: Exception, loading: bool) -> None:
    known = translate(error, loading=loading, component="transformer" if loading else None)
    assert known.code == "memory_exceeded"
    assert known.fixes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SafetensorError("Error while deserializing header: header too large"), "model_corrupt"),
        (KeyError("num_layers"), "model_corrupt"),
        (TypeError("__init__() got an unexpected keyword argument 'x'"), "model_corrupt"),
        (RuntimeError("Error(s) in loading state_dict: size mismatch for proj_out.weight"), "model_corrupt"),
        (OSError("Error no file named diffusion_pytorch_model.safetensors found"), "model_corrupt"),
        (PermissionError(errno.EACCES, "Permission denied"), "model_unreadable"),
        (ImportError("requires the sentencepiece library", name="sentencepiece"), "worker_extra_missing"),
        (ZeroDivisionError("division by zero"), "generation_failed"),
    ],
)
def test_while_a_part_loads_its_files_are_to_blame(error: Exception, code: str) -> None:
    known = translate(error, loading=True, component="vae")
    assert known.code == code
    assert "vae" in known.message


def test_a_value_error_of_the_pipeline_s_own_checks_is_an_invalid_request() -> None:
    def check_inputs() -> None:
        raise ValueError("`height` and `width` have to be divisible by 16")

    def elsewhere() -> None:
        raise ValueError("expected a tensor")

    for function, code in ((check_inputs, "invalid_request"), (elsewhere, "generation_failed")):
        try:
            function()
        except ValueError as error:
            assert translate(error, loading=False).code == code


def test_an_unknown_error_keeps_its_type_s_name() -> None:
    message = to_message(ZeroDivisionError("division by zero"), job=4)
    assert (message.job, message.code) == (4, "generation_failed")
    assert message.message == "ZeroDivisionError: division by zero"


def test_text_from_a_model_s_files_is_cleaned_and_bounded() -> None:
    message = to_message(KeyError("\x1b[2J\u202egpj.exe" + "x" * 100_000), job=0)
    assert "\x1b" not in message.message and "\u202e" not in message.message
    assert len(message.message) <= MAX_MESSAGE_CHARS


def test_fixes_are_bounded_too() -> None:
    message = to_message(ModelCorrupt("bad", fixes=["y" * 10_000] * 50), job=0)
    assert len(message.fixes) == 8 and all(len(fix) <= 500 for fix in message.fixes)


def test_a_code_that_a_worker_may_not_report_is_not_reported() -> None:
    assert JobCancelled.code not in WORKER_MAY_REPORT
    assert to_message(JobCancelled("I say you cancelled"), job=1).code == "generation_failed"
