"""Layers in 8 bits: which ones diffusers' hook takes is what planning counts, and what they take is what is counted."""

from __future__ import annotations

from tests.workers.inside import in_torch_process


@in_torch_process
def test_planning_counts_the_layers_of_every_transformer_that_diffusers_casts() -> None:
    import torch

    from wan_compat.policies.facts import TensorFact
    from wan_compat.policies.planning.denoiser import KEPT_FLOAT32
    from wan_compat.policies.planning.weights import ComponentWeights
    from wan_compat.workers.loader import _DIFFUSERS_MODELS, _class

    changes = {
        "WanTransformer3DModel": {"image_dim": 1280, "added_kv_proj_dim": 5120},
        "WanVACETransformer3DModel": {"vace_layers": [0]},
        "WanAnimate2Transformer3DModel": {"num_layers": 1},
    }
    for name in KEPT_FLOAT32:
        with torch.device("meta"):
            model = _class(name, _DIFFUSERS_MODELS)(**{"num_layers": 1, **changes.get(name, {})})
        tensors = {
            key: TensorFact("BF16", tuple(weight.shape), weight.numel() * 2) for key, weight in model.named_parameters()
        }
        kept = KEPT_FLOAT32[name]
        for key, weight in model.named_parameters():
            weight.data = weight.data.to(torch.float32 if kept & set(key.split(".")) else torch.bfloat16)
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        part = ComponentWeights("transformer", name, tensors, cast=True)
        sizes = {key: weight.numel() * weight.element_size() for key, weight in model.named_parameters()}
        assert {key: part._one(key, fact, "bfloat16") for key, fact in tensors.items()} == sizes, name
        assert part.bytes_in("bfloat16") == sum(sizes.values())
        cast = [weight.numel() for weight in model.parameters() if weight.dtype == torch.float8_e4m3fn]
        assert cast and part.unfolding("bfloat16") == 2 * max(cast)


@in_torch_process
def test_a_layer_in_8_bits_is_counted_wider_while_it_computes_and_never_twice() -> None:
    import torch
    from diffusers.hooks import apply_layerwise_casting

    from wan_compat.workers.memory_count import MemoryCount

    layers = torch.nn.Sequential(*(torch.nn.Linear(1000, 1000, bias=False) for _ in range(4)))
    apply_layerwise_casting(layers, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=())
    given = torch.zeros(1, 1000)
    with torch.no_grad(), MemoryCount([layers]) as count:
        for phase in ("first", "again"):
            count.phase(phase)
            assert count.live_bytes == 4_000_000
            layers(given)
        count.end_phase()
    # Three layers as they are stored, one in float32 with its 8 bits beside it for the time of the change.
    assert count.peaks["first"] == count.peaks["again"]
    assert 8_000_000 <= count.peaks["first"] < 8_020_000
