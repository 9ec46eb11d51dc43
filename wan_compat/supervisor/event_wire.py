"""Events, errors and results as they cross the control socket, and back into the classes that a program knows.

The classes are those of events.py, errors.py and results.py themselves: what is added there crosses without a change
here.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import typing
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wan_compat.protocol import control as c
from wan_compat.protocol.errors import (
    MAX_FIX_CHARS,
    MAX_MESSAGE_CHARS,
    GenerationFailed,
    ProtocolViolation,
    WanCompatError,
    clean_text,
    error_class,
)
from wan_compat.protocol.results import ConversionReport, ProcessedFrames, VideoGenerationResult
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.sealed_frames import map_frames

_KINDS: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(ev.Event)}
_MAX_DETAILS = 200  # items of one collection in an error's details; whatever is longer is for the job's own log
_MAX_DEPTH = 6


def event_fields(event: ev.Event) -> tuple[str, dict[str, Any]]:
    """Return the kind and the fields of an event. Of Finished none: the result is asked for by itself."""
    kind = type(event).__name__
    if isinstance(event, ev.Finished):
        return kind, {}
    if isinstance(event, ev.Ended):
        return kind, {"error": refusal(event.error).model_dump(mode="python")}
    return kind, {field.name: plain(getattr(event, field.name)) for field in dataclasses.fields(event)}


def event_of(message: c.JobEvent) -> ev.Event | None:
    """Rebuild an event; None for Finished, which takes its result from elsewhere.

    Raises:
        ProtocolViolation: No such kind, or other fields than it has.
    """
    kind, fields = _KINDS.get(message.kind), message.fields
    if kind is None:
        raise ProtocolViolation(f"there is no event {clean_text(message.kind, 60)!r}")
    if kind is ev.Finished:
        return None
    try:
        if kind is ev.Ended:
            return ev.Ended(error_of(c.Refusal.model_validate(fields.get("error"))))
        if kind is ev.LatentPreview:
            fields = fields | {"pixels": base64.b64decode(fields["pixels"], validate=True)}
        if set(fields) != {field.name for field in dataclasses.fields(kind)}:
            raise ProtocolViolation(f"a {message.kind} with other fields than it has")
        event: ev.Event = _adapter(kind).validate_python(fields)
    except (ValidationError, KeyError, TypeError, binascii.Error) as error:
        raise ProtocolViolation(f"a {message.kind} that is none: {clean_text(str(error), 200)}") from error
    return event


def refusal(error: WanCompatError) -> c.Refusal:
    """Return an error in the form that crosses; of its details what is plain data."""
    return c.Refusal(
        code=error.code,
        message=error.message[:MAX_MESSAGE_CHARS],
        fixes=tuple(fix[:MAX_FIX_CHARS] for fix in error.fixes[:64]),
        diagnostic=error.diagnostic,
        details=plain(error.details),
    )


def error_of(message: c.Refusal) -> WanCompatError:
    """Rebuild an error as the class of its code; one that this version does not know is a GenerationFailed."""
    cls = error_class(message.code) or GenerationFailed
    return cls(message.message, fixes=message.fixes, diagnostic=message.diagnostic, details=lists(message.details))


def job_result(result: VideoGenerationResult | ConversionReport, error: WanCompatError | None = None) -> c.JobResult:
    """Return a result in the form that crosses, without pixels; with `error`, that of the videos that stand."""
    if isinstance(result, ConversionReport):
        return c.JobResult(conversion=result)
    failed = None if error is None else refusal(error)
    return c.JobResult(generation=_plain(c.result_document(result)), error=failed)


def _plain(document: c.ResultDocument) -> c.ResultDocument:
    # Whatever a dictionary of it holds besides plain data would be found by msgpack, too late for a good answer.
    changes = {name: plain(getattr(document.metadata, name)) for name in ("generation_params", "system_info", "plan")}
    others = [_plain(other) for other in document.others]
    return document.model_copy(update={"metadata": dataclasses.replace(document.metadata, **changes), "others": others})


def result_of(message: c.JobResult, descriptor: int | None) -> VideoGenerationResult | ConversionReport:
    """Rebuild a result. Takes `descriptor`, which holds the frames, whatever happens.

    Raises:
        ProtocolViolation: Neither or both kinds of result, or a descriptor where none belongs.
    """
    import os

    document = message.generation
    pixels = [] if document is None else document.pixels
    arrays: list[Any] = []
    if pixels and descriptor is not None:
        arrays = map_frames(descriptor, [shown.shape for shown in pixels])
    elif descriptor is not None:
        os.close(descriptor)
        raise ProtocolViolation("a descriptor came with a result without frames")
    elif pixels:
        raise ProtocolViolation("a result with frames came without them")
    if (document is None) == (message.conversion is None):
        raise ProtocolViolation("a result is either a video's or a conversion's")
    if document is None:
        assert message.conversion is not None
        return message.conversion
    if any(other.others for other in document.others):
        raise ProtocolViolation("a further video of a result has further videos")
    first, *others = (_rebuilt(one, arrays) for one in (document, *document.others))
    return VideoGenerationResult.of_videos([first, *others])


def _rebuilt(document: c.ResultDocument, arrays: list[Any]) -> VideoGenerationResult:
    """Return one video's result; takes its frames, if it has some, from the front of `arrays`."""
    names = set(type(document).model_fields) - {"frames", "others"}
    fields = {name: lists(getattr(document, name)) for name in names}
    metadata, shown = document.metadata, document.frames
    changes = {name: lists(getattr(metadata, name)) for name in ("generation_params", "system_info", "plan")}
    fields["metadata"] = dataclasses.replace(metadata, **changes)
    frames = None
    if shown is not None:
        frames = ProcessedFrames(arrays.pop(0), shown.fps, shown.duration, lists(shown.metadata))
    return VideoGenerationResult(**fields, frames=frames)


def plain(value: Any, depth: int = _MAX_DEPTH) -> Any:
    """Return `value` as nothing but numbers, text, lists and maps of them, bounded in depth and length."""
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of an enum, its text
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if depth == 0:
        return clean_text(str(value), 200)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), depth - 1) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        items = list(value.items())[:_MAX_DETAILS]
        return {str(key): plain(item, depth - 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth - 1) for item in list(value)[:_MAX_DETAILS]]
    return clean_text(str(value), 200)


def lists(value: Any) -> Any:
    """Return `value` with lists in the place of the tuples that the codec makes of arrays, as JSON would have them."""
    if isinstance(value, tuple | list):
        return [lists(item) for item in value]
    if isinstance(value, dict):
        return {key: lists(item) for key, item in value.items()}
    return value


@functools.cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
