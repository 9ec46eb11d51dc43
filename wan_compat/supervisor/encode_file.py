"""Frames that are all there, given to a delivery: blocks until there is a file."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable
from typing import Any

from wan_compat.protocol.errors import DeadlineExceeded, EncodingFailed
from wan_compat.protocol.results import OutputReport
from wan_compat.protocol.values import FrameSpec
from wan_compat.protocol.video import VideoOptions
from wan_compat.supervisor import sidecar
from wan_compat.supervisor.delivery import Delivery, prepare_delivery


def encode_file(
    frames: Iterable[memoryview],
    spec: FrameSpec,
    fps: float,
    output: str | os.PathLike[str],
    *,
    options: VideoOptions | None = None,
    overwrite: bool = False,
    timeout_s: float = 600.0,
    document: dict[str, Any] | None = None,
    label: str = "",
) -> OutputReport:
    """Encode frames to a file: prepare, feed, finish, verify, commit. Blocks."""
    with prepare_delivery(output, spec, fps, options, overwrite=overwrite) as delivery:
        deliver(delivery, frames, timeout_s=timeout_s, label=label)
        report = delivery.commit()
        if document is not None:
            delivery.write_sidecar(document, report)
        else:
            sidecar.forget(report.path)
        return report


def deliver(delivery: Delivery, frames: Iterable[memoryview], *, timeout_s: float, label: str = "") -> None:
    """Start, feed and finish a delivery; blocks.

    Args:
        frames: `num_frames` buffers of (height, width, 3) uint8 RGB, contiguous.
        timeout_s: For all of it.

    Raises:
        DeadlineExceeded: The time is over.
        WanCompatError: As `Delivery.finish`.
    """
    deadline_s = time.monotonic() + timeout_s
    delivery.start(label)
    given = 0
    for frame in frames:
        view = memoryview(frame).cast("B")
        given += len(view)
        if given > delivery.frames.frame_bytes * delivery.frames.num_frames:
            raise ValueError(f"more than {delivery.frames.num_frames} frames")
        while view:
            written = delivery.write_some(view)
            view = view[written:]
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(f"the encoder took no frame within {timeout_s:g} s")
            if view and not written and delivery.fileno() >= 0:
                poller = select.poll()
                poller.register(delivery.fileno(), select.POLLOUT)
                poller.poll(min(left_s, 1.0) * 1000 + 1)
    if given < delivery.frames.frame_bytes * delivery.frames.num_frames:
        raise EncodingFailed(
            f"the encoder was given {given // delivery.frames.frame_bytes} of {delivery.frames.num_frames} frames"
        )
    delivery.finish(max(0.0, deadline_s - time.monotonic()))
