"""Values of a conversion: which weight files a worker opens, what it finds in them, and which bytes it shall send.

Names, types and shapes come from hostile files; every one is bounded here. Bytes go through the frame ring, in chunks
of a fixed size, as one stream per SendTensors: the pieces in order, without gaps. The last chunk's rest is anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from wan_compat.protocol.values import MAX_FRAMES, ConversionPhase, Count, FrameSpec, Mode, Value

MAX_FILES = 64
MAX_LISTED = 400  # tensors or pieces in one message: below the codec's bounds, whatever the names
MAX_TENSORS = 50_000  # of a whole model; the largest known has 2,000

CHUNK_SIDE = 1024
CHUNK_BYTES = CHUNK_SIDE * CHUNK_SIDE * 3
MAX_SENT_BYTES = MAX_FRAMES * CHUNK_BYTES  # by one SendTensors

TensorName = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,256}$")]
FileNumber = Annotated[int, Field(ge=0, lt=MAX_FILES)]
Side = Annotated[int, Field(ge=0, le=2**40)]
# As safetensors spells them.
Dtype = Literal[
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL"
]  # fmt: skip


class WeightSource(Value):
    """One file of the worker's view, relative to the model."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    is_pickle: bool


class ListedTensor(Value):
    name: TensorName
    dtype: Dtype
    shape: Annotated[tuple[Side, ...], Field(max_length=8)]


class TensorPiece(Value):
    """`size` bytes from `offset` of a tensor, as it lies in memory without gaps."""

    file: FileNumber
    name: TensorName
    offset: Count
    size: Count


@dataclasses.dataclass(frozen=True)
class Stream:
    """The stream that a list of pieces makes, as both sides compute it."""

    size: int

    @classmethod
    def of(cls, pieces: Iterable[TensorPiece]) -> Stream:
        return cls(sum(piece.size for piece in pieces))

    @property
    def chunks(self) -> FrameSpec:
        """The chunks, as the frames that the ring's layout follows from."""
        count = max(1, -(-self.size // CHUNK_BYTES))
        return FrameSpec(height=CHUNK_SIDE, width=CHUNK_SIDE, num_frames=count)


class ConversionRequest(Value):
    """One conversion, as a user asks for it.

    Args:
        model: Folder or file of a Wan model in the original layout, or with pickled weights.
        output: Folder to write, which does not exist or is empty.
        dry_run: Open and plan, but write nothing.
        timeout_s: The whole of it.
        phase_timeouts: Phase -> seconds, instead of what each would be given (docs/supervision.md).
        memory_limit_bytes: Cap for the worker; None takes the policy's.
        worker_log: File that receives what the worker printed, cleaned.
    """

    model: str = Field(min_length=1, max_length=4096)
    output: str = Field(min_length=1, max_length=4096)
    dry_run: bool = False
    timeout_s: float | None = Field(default=None, gt=0, le=7 * 86400)
    phase_timeouts: dict[ConversionPhase, Annotated[float, Field(gt=0, le=7 * 86400)]] = Field(
        default_factory=dict, max_length=4
    )
    memory_limit_bytes: int | None = Field(default=None, ge=256 << 20, le=1 << 50)
    worker_log: str | None = Field(default=None, max_length=4096)

    @property
    def mode(self) -> Mode:
        """Repository code is never run for a conversion."""
        return Mode.SAFE
