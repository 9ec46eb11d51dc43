"""The bytes of a component's tensors in each precision, and which of them make a block that can be moved alone.

Counted from headers, tensor by tensor, as the libraries load them: floats in the precision that was asked for, but for
those that a class keeps in float32; everything else as stored. Layers that are stored in 8 bits (layerwise casting) are
those of diffusers' hook: linear, convolution and embedding, but for what a class or all classes leave out.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from wan_compat.policies.facts import TensorFact
from wan_compat.policies.planning.denoiser import KEPT_FLOAT32
from wan_compat.protocol.sources import Quantization

Dtype = Literal["float32", "bfloat16", "float16"]
ITEMSIZE: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

# What is loaded in the precision that was asked for, however it is stored: both libraries cast 8-bit floats, and a
# worker multiplies numbers of 8 bits with their scale (workers/sources/weights.py).
_CAST = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8"})
_GGUF_BLOCKS = re.compile(r"I?Q\d")
_FLOAT16 = 2
_NAMES_IN_HEADERS: Mapping[Dtype, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# T5's output projections overflow in float16; transformers keeps them (`_keep_in_fp32_modules` of umt5).
_KEPT_AT_FLOAT16 = {"UMT5EncoderModel": frozenset({"wo"}), "T5EncoderModel": frozenset({"wo"})}
_BLOCK = re.compile(r"(?:^|.*?\.)(?:blocks|vace_blocks|block|layers)\.\d+\.")
# transformers ties them: two names, one tensor.
_TIED = ("shared.weight", "encoder.embed_tokens.weight")
# Backends fold linear layers and nothing else; these matrices are tables of the encoders.
_TABLES = frozenset({"shared", "embed_tokens", "relative_attention_bias", "position_embedding"})
# Bits of each number of a folded matrix, and how many share a scale, 0 for a row of the matrix;
# then bytes of that scale and its zero point (torchao 0.18, optimum-quanto 0.2.7, bitsandbytes).
_FOLDED: Mapping[str, tuple[int, int]] = {"int8": (8, 0), "fp8": (8, 0), "int4": (4, 128), "nf4": (4, 64)}
_SCALE = {"int8": 5, "fp8": 4, "int4": 8, "nf4": 4}
# What a repository that is quantised already has in the place of a matrix: torchao's and quanto's names of the parts
# (torchao 0.18, optimum-quanto 0.2.7, as diffusers saves them). They stay in their bits, whatever is asked for.
_PACKED = ("._weight_qdata", "._weight_scale", "._weight_zero_point", ".weight._data", ".weight._data._data")
# quanto converts the layers of time too, which the others leave in float32, and leaves T5's output projections.
_QUANTO_LEAVES = frozenset({"wo"})
_QUANTO_FOLDS = frozenset({"time_embedder"})
# What layerwise casting leaves in its precision, by parts of the names of layers: of every class, and of each besides
# what it keeps in float32 (diffusers 0.42.1: DEFAULT_SKIP_MODULES_PATTERN, `_skip_layerwise_casting_patterns`).
# Animate's encoder of motion has layers of its own, which the hook does not know.
_NEVER_CAST = ("pos_embed", "patch_embed", "norm")
_NEVER_CAST_OUTERMOST = ("proj_in", "proj_out")
_CONDITION = ("condition_embedder",)
_NOT_CAST: Mapping[str, tuple[str, ...]] = {
    "WanAnimateTransformer3DModel": (*_CONDITION, "motion_encoder"),
    "WanAnimate2Transformer3DModel": ("img_emb",),
    "HeliosTransformer3DModel": (*_CONDITION, "patch_short", "patch_mid", "patch_long"),
}
_STORED = 1  # bytes of a number in either of the 8-bit floats


@dataclasses.dataclass(frozen=True)
class _Bytes:
    total: int
    made: int
    largest_block: int
    outside_blocks: int
    largest_tensor: int
    converted_outside: int
    converted_block: int


@dataclasses.dataclass(frozen=True)
class ComponentWeights:
    """One component that has tensors: by its class, with what the headers say of each.

    quantization: What folds its matrices while they are loaded.
    laid_over: Numbers of LoRAs; they take room of their own where weights are folded, and are added to them elsewhere.
    cast: Layers are stored in 8 bits, and each is in the precision that was asked for while it computes.
    """

    name: str
    class_name: str
    tensors: Mapping[str, TensorFact]
    quantization: Quantization | None = None
    laid_over: int = 0
    cast: bool = False

    @property
    def is_packed(self) -> bool:
        """Whether it comes quantised: its matrices are not what is in its files, but made of it by a backend."""
        return any(name.endswith(_PACKED) for name in self.tensors)

    @functools.cached_property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self._once.values())

    @functools.cached_property
    def _once(self) -> Mapping[str, TensorFact]:
        if all(name in self.tensors for name in _TIED):
            return {name: tensor for name, tensor in self.tensors.items() if name != _TIED[1]}
        return self.tensors

    def bytes_in(self, dtype: Dtype) -> int:
        """Return the bytes of all tensors, loaded in a precision."""
        return self._bytes[dtype].total

    def made_in(self, dtype: Dtype) -> int:
        """Return the bytes of what loading makes: all that is wanted in another form than the files'. The rest is
        mapped from them, and the kernel may drop it."""
        return self._bytes[dtype].made

    def largest_block(self, dtype: Dtype) -> int:
        """Return the bytes of the largest of the repeated blocks; 0 where there are none."""
        return self._bytes[dtype].largest_block

    def outside_blocks(self, dtype: Dtype) -> int:
        """Return the bytes of what belongs to no block: embeddings, projections, norms."""
        return self._bytes[dtype].outside_blocks

    def largest_tensor(self, dtype: Dtype) -> int:
        return self._bytes[dtype].largest_tensor

    def mapped_rest(self, dtype: Dtype) -> int:
        """Return what is resident while the weights stay in their files (workers/file_weights.py): what belongs to no
        block and is wanted in another type than the file's, but for tables of words, and the largest block's share."""
        return self._bytes[dtype].converted_outside + self._bytes[dtype].converted_block

    @functools.cached_property
    def _bytes(self) -> Mapping[Dtype, _Bytes]:
        return {dtype: self._count(dtype) for dtype in ITEMSIZE}

    def _count(self, dtype: Dtype) -> _Bytes:
        blocks: dict[str, int] = {}
        converted: dict[str, int] = {}
        total = largest = outside = made_at_all = 0
        if self.is_folded_at_all:
            # In float32 as they were read, and in the precision in which they are computed with.
            total = outside = made_at_all = self.laid_over * (ITEMSIZE["float32"] + ITEMSIZE[dtype])
        for name, tensor in self._once.items():
            size = self._one(name, tensor, dtype)
            total, largest = total + size, max(largest, size)
            wanted = "F32" if self._is_kept(name, dtype) else _NAMES_IN_HEADERS[dtype]
            made = 0 if tensor.dtype == wanted else size
            made_at_all += made
            made = 0 if name in _TIED else made  # rows of a table are made one by one, where it stays in its file
            found = _BLOCK.match(name)
            if found is not None:
                blocks[found[0]] = blocks.get(found[0], 0) + size
                converted[found[0]] = converted.get(found[0], 0) + made
            else:
                outside += made
        return _Bytes(
            total=total,
            made=made_at_all,
            largest_block=max(blocks.values(), default=0),
            outside_blocks=total - sum(blocks.values()),
            largest_tensor=largest,
            converted_outside=outside,
            converted_block=max(converted.values(), default=0),
        )

    def unfolding(self, dtype: Dtype) -> int:
        """Return the bytes in which the largest folded matrix is computed with: unfolded in half precision, and then
        in the one that was asked for; of layers that are stored in 8 bits, those of the largest in the latter. 0 where
        nothing is folded or cast."""
        if self.cast:
            layers = (math.prod(tensor.shape) for name, tensor in self._once.items() if self._is_cast(name))
            return max(layers, default=0) * ITEMSIZE[dtype]
        folded = (
            math.prod(tensor.shape) for name, tensor in self._once.items() if self._is_folded(name, tensor, dtype)
        )
        return max(folded, default=0) * (_FLOAT16 + ITEMSIZE[dtype])

    def _one(self, name: str, tensor: TensorFact, dtype: Dtype) -> int:
        numbers = math.prod(tensor.shape)
        if self._is_folded(name, tensor, dtype):
            if self.quantization is None:
                return tensor.bytes
            bits, group = _FOLDED[self.quantization.kind]
            scales = tensor.shape[0] * (math.ceil(tensor.shape[1] / group) if group else 1)
            return math.ceil(numbers * bits / 8) + scales * _SCALE[self.quantization.kind]
        if tensor.dtype not in _CAST and not _GGUF_BLOCKS.match(tensor.dtype):
            return tensor.bytes
        if self.cast and self._is_cast(name):
            return numbers * _STORED
        return numbers * (4 if self._is_kept(name, dtype) else ITEMSIZE[dtype])

    @functools.cached_property
    def is_folded_at_all(self) -> bool:
        """Whether any of its matrices stays in fewer bits: by a backend, in GGUF's blocks, or as it comes."""
        return any(self._is_folded(name, tensor, "bfloat16") for name, tensor in self._once.items())

    def _is_folded(self, name: str, tensor: TensorFact, dtype: Dtype) -> bool:
        """Whether a tensor is a matrix that stays in fewer bits: in GGUF's blocks, or by a backend."""
        if len(tensor.shape) != 2:
            return False
        if self.quantization is None and name.endswith(_PACKED):
            # Diffusers takes 8-bit floats for floats, and widens those of layers that a class keeps in float32.
            return not (tensor.dtype.startswith("F8_") and self._is_kept(name, dtype))
        if self.quantization is None:
            return _GGUF_BLOCKS.match(tensor.dtype) is not None and not self._is_kept(name, dtype)
        parts = frozenset(name.split("."))
        if tensor.dtype not in _CAST or parts & _TABLES or not name.endswith(".weight"):
            return False
        if self.quantization.backend == "quanto":
            return not parts & _QUANTO_LEAVES and (not self._is_kept(name, dtype) or bool(parts & _QUANTO_FOLDS))
        return not self._is_kept(name, dtype)

    def _is_kept(self, name: str, dtype: Dtype) -> bool:
        kept: Iterable[str] = KEPT_FLOAT32.get(self.class_name, ())
        if dtype == "float16":
            kept = (*kept, *_KEPT_AT_FLOAT16.get(self.class_name, ()))
        parts = name.split(".")
        return any(part in parts for part in kept)

    def _is_cast(self, name: str) -> bool:
        """Whether a tensor is of a layer that diffusers' hook stores in 8 bits."""
        layer, _, part = name.rpartition(".")
        matrix = self.tensors.get(f"{layer}.weight")
        if part not in ("weight", "bias") or matrix is None or len(matrix.shape) < 2:
            return False
        left = (*_NEVER_CAST, *KEPT_FLOAT32.get(self.class_name, ()), *_NOT_CAST.get(self.class_name, _CONDITION))
        return layer.partition(".")[0] not in _NEVER_CAST_OUTERMOST and not any(word in layer for word in left)
