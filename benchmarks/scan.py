"""How long `wan-compat scan` takes on a repository of 14B size, weights not hashed.

    ours        the whole command, from spawn to exit
    reference   none: the bar is absolute

The repository has the files, sizes and headers of Wan2.1-T2V-14B-Diffusers: 12 shards of the transformer, 5 of the text
encoder, a VAE, a tokenizer.json of 17 MB. The weights are sparse files, of which a scan reads heads and tails.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.arms import Shared
from benchmarks.child import run_python
from benchmarks.harness import Benchmark, Row, Samples, at_most

_COMMAND = """
import sys
from wan_compat.supervisor.cli.main import main
code = main(["scan", {path!r}, "--json"])
sys.exit(code)
"""


def run(shared: Shared) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="wan-compat-bench-") as folder:
        build_repository(Path(folder))
        seconds = []
        for _ in range(5):
            took, printed = run_python(_COMMAND.format(path=folder))
            if not json.loads(printed)["is_safe"]:
                raise AssertionError("the repository was not found safe")
            seconds.append(took)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        yield Row("scan", Samples(tuple(seconds)), "s", at_most(1), f"{size / 1e9:.0f} GB of files, start included")


def build_repository(folder: Path) -> None:
    """Write the files of a 14B repository, weights as holes."""
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]}')
    (folder / "README.md").write_text("# Wan\n")
    blocks = [
        (f"blocks.{block}.{part}.weight", shape)
        for block in range(40)
        for part, shape in [(f"attn{a}.to_{name}", (5120, 5120)) for a in (1, 2) for name in ("q", "k", "v", "out.0")]
        + [("ffn.net.0.proj", (13824, 5120)), ("ffn.net.2", (5120, 13824))]
        + [(f"norm{number}", (5120,)) for number in range(17)]
    ]
    _weights(folder / "transformer", "diffusion_pytorch_model", "F32", blocks, 12)
    encoder = [(f"encoder.block.{n}.{m}.weight", (4096, 4096)) for n in range(24) for m in range(14)]
    _weights(folder / "text_encoder", "model", "BF16", encoder, 5)
    _weights(
        folder / "vae", "diffusion_pytorch_model", "F32", [(f"decoder.{n}.weight", (384, 384)) for n in range(194)], 1
    )
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    pieces = [[f"▁piece{number}é", -float(number) / 7] for number in range(256_384)]
    document = {"version": "1.0", "model": {"type": "Unigram", "vocab": pieces}}
    (tokenizer / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False, indent=2))
    (tokenizer / "spiece.model").write_bytes(b"\x0a\x0e\x0a\x05<pad>\x15\0\0\0\0\x18\3" + os.urandom(4_500_000))


def _weights(folder: Path, stem: str, dtype: str, tensors: list[tuple[str, tuple[int, ...]]], shards: int) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"in_channels": 16}')
    width = 4 if dtype == "F32" else 2
    for shard in range(shards):
        header, offset = {}, 0
        for name, shape in tensors[shard::shards]:
            size = width
            for side in shape:
                size *= side
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
        raw = json.dumps(header).encode()
        suffix = f"-{shard + 1:05}-of-{shards:05}" if shards > 1 else ""
        path = folder / f"{stem}{suffix}.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw)) + raw)
        os.truncate(path, 8 + len(raw) + offset)


BENCHMARK = Benchmark("scan", "scanning a repository of 14B size; absolute", run)
