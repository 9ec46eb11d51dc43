"""Reading costs little: milliseconds for real models, and a bounded time and memory whatever a folder holds.

In processes of their own, because the high-water mark of memory never goes down (VmHWM: getrusage's survives exec, and
would be that of the test process). Time is the processor's, so that a
busy machine is not taken for a slow reader.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys

import pytest

from tests.assets.weight_files import gguf_file, gguf_text, packed_safetensors
from wan_compat.supervisor.inspection.budget import Budget
from wan_compat.supervisor.inspection.gguf_header import MAX_ARRAY_TEXTS
from wan_compat.supervisor.inspection.json_document import MAX_JSON_BYTES, MAX_JSON_VALUES
from wan_compat.supervisor.inspection.safetensors_header import MAX_HEADER_BYTES, MAX_HEADER_VALUES

MAX_CPU_S = 2.0
MAX_MEMORY_MB = 60

_READ = """
import json, re, sys, time
from wan_compat.supervisor.inspection import read_facts
began = time.process_time()
facts = read_facts(sys.argv[1])
took = time.process_time() - began
print(json.dumps({
    "cpu_s": took,
    "memory_mb": int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10,
    "tensors": sum(len(weights.tensors) for weights in facts.weights.values()),
    "documents": len(facts.documents),
    "codes": sorted({problem.code for problem in facts.problems}),
    "problems": len(facts.problems),
    "heavy": sorted({"numpy", "pydantic", "torch", "subprocess", "asyncio"} & set(sys.modules)),
}))
"""


def cost(folder):
    command = [sys.executable, "-c", _READ, str(folder)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)


def sparse(path, head, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)


def sharded(folder, stem, tensors, shards):
    places = {}
    for number in range(shards):
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[number::shards]}
        sparse(folder / file, *packed_safetensors(part, format="pt"))
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text("{}")


def wan_14b():
    """Names and shapes of a 14B transformer in diffusers layout: 40 blocks of 27 tensors."""
    width, inner = 5120, 13824
    sizes = {"attn1.norm_q.weight": [width], "attn1.norm_k.weight": [width], "scale_shift_table": [1, 6, width]}
    for part in ("attn1", "attn2"):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            sizes |= {f"{part}.{name}.weight": [width, width], f"{part}.{name}.bias": [width]}
    sizes |= {
        "attn2.norm_q.weight": [width],
        "attn2.norm_k.weight": [width],
        "norm2.weight": [width],
        "norm2.bias": [width],
    }
    sizes |= {"ffn.net.0.proj.weight": [inner, width], "ffn.net.0.proj.bias": [inner]}
    sizes |= {"ffn.net.2.weight": [width, inner], "ffn.net.2.bias": [width]}
    blocks = {f"blocks.{block}.{name}": ("BF16", shape) for block in range(40) for name, shape in sizes.items()}
    return {
        "patch_embedding.weight": ("BF16", [width, 16, 1, 2, 2]),
        **blocks,
        "proj_out.weight": ("BF16", [64, width]),
    }


def test_two_sharded_experts_of_14b_take_milliseconds(tmp_path):
    for name in ("transformer", "transformer_2"):
        sharded(tmp_path / name, "diffusion_pytorch_model", wan_14b(), 12)
    encoder = {f"encoder.block.{n}.weight": ("BF16", [4096, 4096]) for n in range(242)}
    sharded(tmp_path / "text_encoder", "model", encoder, 5)
    (tmp_path / "model_index.json").write_text("{}")
    read = cost(tmp_path)
    assert read["codes"] == [] and read["tensors"] == 2 * (40 * 27 + 2) + 242 and read["documents"] == 7
    assert read["cpu_s"] < 1, read  # 0.05 on the machine it was written on
    assert read["memory_mb"] < 30, read
    assert read["heavy"] == []


def test_folder_of_many_loras_is_read_whole(tmp_path):
    # 80 files of the same 1,200 names: what they share is kept once.
    names = {f"diffusion_model.blocks.{n // 30}.part.{n % 30}.lora_A.weight": ("BF16", [32, 5120]) for n in range(1200)}
    for number in range(80):
        sparse(tmp_path / f"style-{number}.safetensors", *packed_safetensors(names, ss_tag=f"style {number}"))
    read = cost(tmp_path)
    assert read["codes"] == [] and read["tensors"] == 80 * 1200
    assert read["cpu_s"] < MAX_CPU_S and read["memory_mb"] < 40, read


# ---- hostile folders: what they hold, and what is found --------------------------------------------------------------


def filled(piece, length, start, end):
    return start + piece * ((length - len(start) - len(end)) // len(piece)) + end


def headed(raw):
    return struct.pack("<Q", len(raw)) + raw


def copies(folder, count, name, raw):
    """One content under many names; hard links, because the bytes would take longer to write than to read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "original").write_bytes(raw)
    for number in range(count):
        path = folder / name.format(number)
        path.parent.mkdir(exist_ok=True)
        os.link(folder / "original", path)
    (folder / "original").unlink()


def empties(count, sides="0", name="t"):
    return json.dumps(
        {
            f"{name}{n}": {"dtype": "U8", "shape": [0, n] if sides == "n" else [0], "data_offsets": [0, 0]}
            for n in range(count)
        }
    ).encode()


def sparse_files_of_10_gb(folder):
    for name in ("config.json", "a.safetensors", "b.gguf", "c.bin", "d.pth"):
        sparse(folder / name, b"", 10 << 30)


def header_of_a_million_entries(folder):
    piece = b'"tensor":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    (folder / "a.safetensors").write_bytes(headed(b"{" + piece * 1_000_000 + b'"__metadata__":{}}'))


def headers_of_100_mb(folder):
    copies(folder, 100, "{}.safetensors", headed(empties(14_000, name="blocks.0.weight")))


def headers_of_different_shapes(folder):
    for number in range(5):
        (folder / f"{number}.safetensors").write_bytes(headed(empties(13_000, "n", f"{number}")))


def headers_that_are_refused_at_their_end(folder):
    copies(folder, 300, "{}.safetensors", headed(filled(b'{"a":1},', 4 * MAX_HEADER_VALUES, b'{"a":[', b"0]}")))


def metadata_of_wide_characters(folder):
    raw = filled(b"x", MAX_HEADER_BYTES, b'{"__metadata__":{"a":"\\ud83e\\udd8a', b'"}}')
    copies(folder, 30, "{}.safetensors", headed(raw))


def tokens_without_end(folder):
    tokens = struct.pack("<IIQ", 9, 8, MAX_ARRAY_TEXTS) + bytes(8 * MAX_ARRAY_TEXTS)
    copies(folder, 50, "{}.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_text("t") + tokens)


def texts_of_wide_characters_in_gguf(folder):
    text = "\U0001f98a".encode() + b"x" * 7000
    copies(folder, 5, "{}.gguf", gguf_file([(f"k{n}", 8, text) for n in range(3000)], []))


def a_thousand_gguf_files(folder):
    copies(folder, 1000, "{}.gguf", gguf_file([], [(f"t{n}", (0,), 0, 0) for n in range(2000)]))


def documents(raw):
    return lambda folder: copies(folder, 60, "c{}/config.json", raw)


def files_without_end(folder):
    copies(folder, 10_000, "{}.txt", b"")


def links_in_a_chain(folder):
    for number in range(1900):
        (folder / f"{number:05d}").symlink_to(f"{number + 1:05d}")


def folders_in_folders(folder):
    for number in range(300):
        folder.joinpath(str(number), *"abcdefghijkl").mkdir(parents=True)


def all_of_it_together(folder):
    for make in (
        headers_of_100_mb, headers_that_are_refused_at_their_end, metadata_of_wide_characters, tokens_without_end,
        documents(DOCUMENTS["maps of one"]),
    ):  # fmt: skip
        place = folder / str(len(os.listdir(folder)))
        place.mkdir()
        make(place)


DOCUMENTS = {
    "lists": filled(b"[],", MAX_JSON_BYTES, b'{"a":[', b"0]}"),
    "maps of one": filled(b'{"a":1},', 4 * MAX_JSON_VALUES - 100, b'{"a":[', b"0]}"),
    "escapes": filled(b'\\"', MAX_JSON_BYTES, b'{"a":"', b'"}'),
    "ends": filled(b"]", MAX_JSON_BYTES, b'{"a":"', b'"}'),
    "digits": filled(b"9", MAX_JSON_BYTES, b'{"a":', b"}"),
    "wide": filled("é".encode(), MAX_JSON_BYTES, b'{"a":"\\ud83e\\udd8a', b'"}'),
    "names": json.dumps({f"k{n}": n for n in range(55_000)}).encode(),
}
HOSTILE = {
    make.__name__: (make, codes)
    for make, codes in (
        (sparse_files_of_10_gb, {"json_too_large", "weights_corrupt"}),
        (header_of_a_million_entries, {"weights_corrupt"}),
        (headers_of_100_mb, {"reading_limit"}),
        (headers_of_different_shapes, {"reading_limit"}),
        (headers_that_are_refused_at_their_end, {"reading_limit", "weights_corrupt"}),
        (metadata_of_wide_characters, {"reading_limit"}),
        (tokens_without_end, {"reading_limit"}),
        (texts_of_wide_characters_in_gguf, {"reading_limit"}),
        (a_thousand_gguf_files, {"reading_limit"}),
        (files_without_end, {"too_many_files"}),
        (links_in_a_chain, {"link_broken"}),
        (folders_in_folders, {"too_many_files"}),
        (all_of_it_together, {"reading_limit"}),
    )
} | {
    f"documents of {name}": (documents(raw), {"reading_limit"} | codes)
    for (name, raw), codes in zip(
        DOCUMENTS.items(),
        ({"json_too_large"}, set(), set(), {"json_too_large"}, {"out_of_range"}, set(), set()),
        strict=True,
    )
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folder_ends_soon_with_little_memory(tmp_path, case):
    make, codes = HOSTILE[case]
    make(tmp_path)
    read = cost(tmp_path)
    print(case, read)
    assert read["cpu_s"] < MAX_CPU_S and read["memory_mb"] < MAX_MEMORY_MB, read
    assert set(read["codes"]) == codes and read["problems"] < 100, read
    assert read["tensors"] <= Budget().tensors
