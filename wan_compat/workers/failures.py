"""Foreign errors, translated where they are understood: torch, diffusers, transformers and safetensors speak here.

A worker may report few codes (WORKER_MAY_REPORT in protocol/errors.py); whatever is not recognised becomes
GenerationFailed with the name of its type. The text may come from the model's files, so it is cleaned and bounded.
"""

from __future__ import annotations

import errno
import traceback

from wan_compat.protocol.errors import (
    MAX_FIX_CHARS,
    MAX_FIXES,
    WORKER_MAY_REPORT,
    GenerationFailed,
    InvalidRequest,
    MemoryExceeded,
    ModelCorrupt,
    ModelNotCompatible,
    ModelUnreadable,
    WanCompatError,
    WorkerExtraMissing,
    clean_text,
)
from wan_compat.protocol.messages import Failed

_MAX_FOREIGN_CHARS = 1500

# PyTorch raises a plain RuntimeError for memory on CPU; these are its words (c10/core/impl/alloc_cpu.cpp), libc's and
# pybind11's. The last is oneDNN's: it says no more when the code that it generates finds no memory.
_MEMORY_WORDS = (
    *("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "could not allocate"),
    "could not create a primitive",
)

_MEMORY_FIXES = (
    "ask for fewer frames or a smaller picture",
    "raise the worker's limit with --memory-limit",
    "choose a smaller or quantised model",
)


def to_message(error: BaseException, job: int) -> Failed:
    """Return the message that reports `error`; `job` is 0 while loading."""
    known = translate(error, loading=job == 0)
    return Failed(
        job=job,
        code=known.code if known.code in WORKER_MAY_REPORT else GenerationFailed.code,
        message=clean_text(known.message),
        fixes=tuple(clean_text(fix, MAX_FIX_CHARS) for fix in known.fixes[:MAX_FIXES]),
        component=known.details.get("component"),
    )


def translate(error: BaseException, *, loading: bool, component: str | None = None) -> WanCompatError:
    """Return our error for a foreign one; our own pass through.

    Args:
        error: What was raised.
        loading: True while the model is built, when a ValueError speaks of files and not of the request.
        component: The part that was being loaded, named in the message.
    """
    if isinstance(error, WanCompatError):
        return error
    where = f"{component}: " if component else ""
    text = where + _describe(error)
    if _is_memory(error):
        return MemoryExceeded(f"{where}the worker ran out of memory: {_describe(error)}", fixes=_MEMORY_FIXES)
    if isinstance(error, ImportError):
        return _translate_import(error, text)
    if loading:
        if isinstance(error, PermissionError):
            return ModelUnreadable(text, hint="check that the worker's user may read the model's files")
        if component is not None and _is_broken_file(error):
            return ModelCorrupt(text, hint="download the model's files again and compare their checksums")
    elif isinstance(error, ValueError | TypeError) and _raised_in(error, "check_inputs"):
        return InvalidRequest(text)
    return GenerationFailed(text)


def _describe(error: BaseException) -> str:
    """Name the error and, where a library wrapped it in a general one, what it began with."""
    # The first lines name the cause; diffusers' mismatch reports go on for every tensor of a model.
    text = clean_text(f"{type(error).__name__}: {error}".strip(), _MAX_FOREIGN_CHARS)
    origin = _origin(error)
    if origin is not error:
        text += clean_text(f" (from {type(origin).__name__}: {origin})", _MAX_FOREIGN_CHARS)
    return text


def _origin(error: BaseException) -> BaseException:
    while (before := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = before
    return error


def _is_memory(error: BaseException) -> bool:
    if isinstance(_origin(error), MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | OSError) and any(word in str(error).lower() for word in _MEMORY_WORDS)


def _translate_import(error: ImportError, text: str) -> WanCompatError:
    # diffusers and transformers raise ImportError with advice when an optional package is missing.
    if error.name is None or not error.name.startswith("wan_compat"):
        return WorkerExtraMissing(text, hint="pip install 'wan-compat[worker]'")
    return ModelNotCompatible(text)


def _is_broken_file(error: BaseException) -> bool:
    # KeyError and TypeError: a config that lacks a field, or has one of another type. RuntimeError: torch's
    # "size mismatch" of load_state_dict. Their messages are kept; only their kind is decided here.
    if type(error).__name__ == "SafetensorError":
        return True
    return isinstance(
        error, KeyError | ValueError | TypeError | AttributeError | RuntimeError | OSError | EOFError | AssertionError
    )


def _raised_in(error: BaseException, function: str) -> bool:
    return any(frame.name == function for frame in traceback.extract_tb(error.__traceback__))
