"""What attention takes beside its tensors."""

from __future__ import annotations

_KEYS_AT_A_TIME = 512


def attention_workspace(queries: int, keys: int, head_dim: int, threads: int) -> int:
    """Return the bytes that torch's flash attention on CPU takes for its threads.

    Blocks of queries against blocks of keys, accumulated in float32 (ATen/native/cpu/FlashAttentionKernel.cpp).
    On a GPU the memory-efficient kernels take about as little; nobody takes queries x keys.
    """
    rows = 256 if queries >= 768 else 64 if queries >= 192 else 32
    rows = min(rows, queries)
    columns = min(_KEYS_AT_A_TIME, keys)
    return threads * 4 * (rows * columns + 2 * rows + rows * head_dim)
