"""Layers in 8 bits in a real job: only where a request says so, over a LoRA too, and told wherever the video goes."""

from __future__ import annotations

import json

import pytest

from tests.assets import single_files as made
from tests.assets.tiny_wan import tiny_model
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.supervisor.video_info import request_again

CAST = "float8_e4m3fn"


def test_a_job_stores_layers_in_8_bits_and_its_sidecar_asks_for_it_again(supervisor, request_for, tmp_path):
    tensors = made.load(tiny_model("t2v"), "transformer")
    lora = made.lora_for(tensors, ["blocks.0.attn1.to_q"])
    file = made.lora_file(lora, "diffusers", tmp_path / "lora.safetensors")
    output = tmp_path / "fox.npy"
    request = request_for(layerwise_casting=CAST, loras=[{"path": str(file)}], output=str(output))
    result = supervisor.generate(request)
    assert f"layerwise_casting:{CAST}" in result.metadata.optimizations_applied
    assert result.metadata.plan["changes_pixels"] == ["layerwise_casting"]
    fields, document = request_again(str(output))
    assert fields["layerwise_casting"] == CAST
    assert f"layerwise_casting:{CAST}" in json.dumps(document["result"])


def test_what_is_in_fewer_bits_already_is_refused_before_a_worker(supervisor, request_for, tmp_path):
    tensors = made.load(tiny_model("t2v"), "transformer")
    whole = {name for name, tensor in tensors.items() if tensor.ndim == 2 and tensor.shape[-1] % 32 == 0}
    made.save_gguf(tensors, tmp_path / "wan.gguf", "Q8_0", lambda name: name in whole)
    with pytest.raises(InvalidRequest, match="transformer is quantised"):
        supervisor.generate(request_for(layerwise_casting=CAST, transformer=str(tmp_path / "wan.gguf")))
