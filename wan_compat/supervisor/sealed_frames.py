"""Frames that cross to another program of the same user without a file: anonymous memory, sealed, mapped by the reader.

    supervisor   seal_frames   memfd, written once, sealed against writing, growing and shrinking; sent by SCM_RIGHTS
    client       map_frames    checks seals and size before it maps: a file that shrinks under a mapping is a SIGBUS

Pages are shared, so that a second reader costs nothing, and go when the last descriptor and mapping are gone.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import mmap
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wan_compat.protocol.errors import ProtocolViolation, ResourceExceeded

if TYPE_CHECKING:
    import numpy as np

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def seal_frames(videos: Sequence[np.ndarray]) -> int:
    """Return the descriptor of sealed copies of `videos`, each (num_frames, height, width, 3) uint8, one behind the
    other; the caller closes it.

    Raises:
        ResourceExceeded: There is no memory for the copy.
    """
    descriptor = -1
    try:
        descriptor = os.memfd_create("wan-result", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        for frames in videos:
            left = memoryview(frames.reshape(-1).data)
            while left:
                left = left[os.write(descriptor, left) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise ResourceExceeded(
            f"no memory for {sum(frames.nbytes for frames in videos)} bytes of frames: {error.strerror}",
            hint="ask for a file with output",
        ) from error
    return descriptor


def map_frames(descriptor: int, shapes: Sequence[tuple[int, int, int, int]]) -> list[np.ndarray]:
    """Map sealed frames and return them as a read-only array of each of `shapes`. Takes `descriptor`, whatever happens.

    Raises:
        ProtocolViolation: It is no sealed memory, or not as long as `shapes` say.
    """
    import numpy as np

    try:
        sizes = [math.prod(shape) for shape in shapes]
        size = sum(sizes)
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size != size:
            raise ProtocolViolation(f"{info.st_size} bytes of frames came where the result has {size}")
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        except OSError as error:
            raise ProtocolViolation("the frames did not come as sealed memory") from error
        if seals & _SEALS != _SEALS:
            raise ProtocolViolation("the frames' memory is not sealed")
        memory = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(descriptor)
    whole = np.frombuffer(memory, dtype=np.uint8)
    ends = itertools.accumulate(sizes)
    return [whole[end - size : end].reshape(shape) for shape, size, end in zip(shapes, sizes, ends, strict=True)]
