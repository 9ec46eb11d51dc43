"""What the text encoder takes for one prompt, beside its weights."""

from __future__ import annotations

import dataclasses

# Of the buckets of relative positions, as transformers 5 computes them (umt5, `_relative_position_bucket`): at the last
# comparison five tables of int64, one of float32 and two of a byte are live, with two more int64 as its operands.
_BUCKET_BYTES = 6 * 8 + 4 + 2
_FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class TextEncoderShape:
    """Sizes of UMT5EncoderModel, by the names of its config."""

    d_model: int = 4096
    d_ff: int = 10240
    d_kv: int = 64
    num_heads: int = 64
    num_layers: int = 24
    relative_bias: bool = True


def text_work(shape: TextEncoderShape, tokens: int, itemsize: int) -> int:
    """Return the bytes that one prompt takes at most. The two prompts are encoded one after the other."""
    hidden = tokens * shape.d_model * itemsize
    inner = tokens * shape.num_heads * shape.d_kv * itemsize
    scores = shape.num_heads * tokens * tokens * itemsize
    held = 2 * hidden + 3 * inner
    positions = held + (tokens * tokens * _BUCKET_BYTES if shape.relative_bias else 0)
    attention = held + 3 * scores + tokens * tokens * itemsize
    feed_forward = 2 * hidden + 3 * tokens * shape.d_ff * itemsize
    norm = 2 * hidden + 2 * tokens * shape.d_model * _FLOAT32
    return max(positions, attention, feed_forward, norm)
