"""What misleads: look-alikes, converters' mistakes, fields that lie, parts in the wrong place."""

from __future__ import annotations

import pytest

from tests.assets.corpus.tables import recorded_config, recorded_tensors
from tests.policies.detection.drafts import diffusers, facts, header, one_file, original
from wan_compat.policies.detection import detect, traits_of

I2V = "WanImageToVideoPipeline"
# transformer class -> family named in the evidence; all of these with AutoencoderKLWan beside them
LOOK_ALIKES = {
    "CosmosTransformer3DModel": "Cosmos",
    "SanaVideoTransformer3DModel": "SANA-Video",
    "MotifVideoTransformer3DModel": "MotifVideo",
    "BriaFiboTransformer2DModel": "Bria FIBO",
    "JoyImageEditTransformer3DModel": "JoyAI-Image",
    "QwenImageTransformer2DModel": "Qwen-Image",
    "LTXVideoTransformer3DModel": "LTX",
    "HunyuanVideoTransformer3DModel": "Hunyuan",
    "CogVideoXTransformer3DModel": "CogVideoX",
    "MochiTransformer3DModel": "Mochi",
    "FluxTransformer2DModel": "Flux",
}


@pytest.mark.parametrize("class_name", LOOK_ALIKES)
def test_wans_vae_and_two_transformers_make_no_wan_model(class_name):
    config = {"_class_name": class_name, "num_layers": 28}
    documents = {"transformer/config.json": config, "transformer_2/config.json": config}
    index = {
        "transformer": ["diffusers", class_name],
        "transformer_2": ["diffusers", class_name],
        "boundary_ratio": 0.9,
    }
    found = detect(diffusers(pipeline="WanPipeline", index=index, more=documents))
    assert (found.is_wan, found.variant, found.pipeline_class, found.vae_dimensions) == (False, None, None, 3)
    assert found.architecture_type == "unknown"
    assert any(LOOK_ALIKES[class_name] in item.fact for item in found.evidence)


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ("transformer-flux", "unknown"), ("transformer-ltx", "unknown"), ("transformer-cogvideox", "unknown"),
        ("transformer-mochi", "unknown"), ("transformer-cosmos", "unknown"), ("transformer-qwen-image", "unknown"),
        ("transformer-sana-video", "unknown"), ("transformer-hunyuan-video", "unknown"), ("unet-svd", "unknown"),
        ("transformer-kandinsky5", "unknown"), ("transformer-joyimage", "unknown"), ("transformer-chroma", "unknown"),
        ("unet-sd1.5", "stable_diffusion"), ("unet-sdxl", "stable_diffusion"), ("transformer-sd3", "stable_diffusion"),
    ],
)  # fmt: skip
def test_file_of_another_family_is_named_and_not_wan(table, kind):
    found = detect(one_file("wan2.1_t2v_14B.safetensors", recorded_tensors(table)))
    assert (found.is_wan, found.architecture_type, found.variant, found.layout) == (False, kind, None, "single_file")


def test_class_name_of_a_foreign_library_proves_nothing():
    library = "gen3r.models.videoxfun_wan.wan_transformer3d"
    found = detect(diffusers("wan-t2v-1.3b", transformer_class=(library, "WanTransformer3DModel")))
    assert (found.is_wan, found.pipeline_class) == (False, None)
    assert found.components["transformer"].is_custom


def test_pipeline_of_the_repositorys_own_has_no_class_even_around_a_real_wan_transformer():
    found = detect(diffusers("wan-t2v-1.3b", pipeline=["pipeline_mine", "MyWanPipeline"]))
    assert (found.is_wan, found.variant, found.pipeline_class) == (True, "wan2.1-t2v-1.3b", None)
    kiwi = detect(diffusers("wan-ti2v-5b", pipeline=["pipeline_kiwi_edit", "KiwiEditPipeline"]))
    assert kiwi.is_wan is False


@pytest.mark.parametrize("pipeline", ["WanDMDPipeline", "KreaWanCausalPipeline"])
def test_sampler_of_another_program_has_no_pipeline_class(pipeline):
    assert detect(diffusers("wan-t2v-1.3b", pipeline=pipeline)).pipeline_class is None


def test_dmd_pipeline_speaks_of_fastwan():
    found = detect(diffusers("wan-t2v-1.3b", pipeline="WanDMDPipeline"))
    assert (found.variant, set(found.candidates)) == (
        "fastwan2.1-t2v-1.3b", {"wan2.1-t2v-1.3b", "fastwan2.1-t2v-1.3b"},
    )  # fmt: skip


def test_boundary_ratio_does_not_make_two_experts():
    # diffusers' own converter writes it for Wan 2.1.
    found = detect(diffusers("wan-i2v-14b", pipeline=I2V, index={"boundary_ratio": 0.9, "transformer_2": [None, None]}))
    assert found.version == "2.1"


def test_two_experts_without_boundary_are_still_two():
    assert detect(diffusers("wan-t2v-14b", experts=2, index={"boundary_ratio": None})).variant == "wan2.2-t2v-a14b"


def test_image_dim_in_the_config_does_not_mean_an_image_encoder():
    # A commit of the official Wan2.2-I2V-A14B-Diffusers had it.
    config = {"image_dim": 1280, "added_kv_proj_dim": 5120}
    for experts in (1, 2):
        found = detect(diffusers("wan-i2v-a14b", pipeline=I2V, experts=experts, config=config))
        assert found.variant == "wan2.2-i2v-a14b"
    assert detect(diffusers("wan-ti2v-5b", config=config)).variant == "wan2.2-ti2v-5b"


def test_forty_eight_channels_in_do_not_mean_ti2v():
    assert detect(diffusers("wan-fun-1.3b-control")).variant == "wan2.1-fun-1.3b-control"


def test_fields_of_videox_fun_under_diffusers_class_are_read_as_what_they_mean():
    config = {
        "_class_name": "WanTransformer3DModel", "dim": 1536, "hidden_size": 1536, "in_channels": 36, "in_dim": 36,
        "model_type": "i2v", "num_heads": 12, "num_layers": 30, "out_dim": 16, "ffn_dim": 8960,
    }  # fmt: skip
    source = facts(documents={"config.json": config})
    found = detect(source)
    assert (found.layout, found.is_wan) == ("component", True)
    assert found.variant == "rose"
    assert set(found.candidates) == {"rose", "wan2.1-fun-1.3b-inp", "skyreels-v2-i2v-1.3b-540p"}
    (traits,) = traits_of(source).values()
    assert traits.config is not None
    assert traits.config.dim == 1536
    assert traits.config.foreign_fields == ("dim", "in_dim", "num_heads", "out_dim", "model_type")


def test_header_is_believed_over_the_config_and_the_difference_shown():
    source = diffusers("wan-i2v-14b", pipeline="WanPipeline", config={"in_channels": 16, "image_dim": None})
    found = detect(source)
    assert (found.architecture_type, found.pipeline_class) == ("wan_i2v", I2V)
    assert found.confidence < 0.9
    assert ("in_channels", 16, 36) in list(traits_of(source)["transformer"].disagreements())


def test_wrong_pipeline_class_costs_nothing():
    for pipeline in ("StableDiffusionPipeline", "FluxPipeline", "WanPipelin", None, 7, {}, ""):
        found = detect(diffusers("wan-vace-14b", pipeline=pipeline))
        assert (found.is_wan, found.variant, found.pipeline_class) == (True, "wan2.1-vace-14b", "WanVACEPipeline")


def test_parts_in_each_others_folders_are_known_by_their_headers():
    config = recorded_config("wan-t2v-1.3b")
    source = facts(
        header("vae/diffusion_pytorch_model.safetensors", recorded_tensors("wan-t2v-1.3b")),
        header("transformer/diffusion_pytorch_model.safetensors", recorded_tensors("vae-wan2.1")),
        documents={
            "model_index.json": {
                "_class_name": "WanPipeline",
                "transformer": ["diffusers", "AutoencoderKLWan"],
                "vae": ["diffusers", "WanTransformer3DModel"],
            },
            "vae/config.json": config,
            "transformer/config.json": recorded_config("vae-wan2.1"),
        },
    )
    found = detect(source)
    assert (found.variant, found.vae_dimensions) == ("wan2.1-t2v-1.3b", 3)
    assert {name: part.role for name, part in traits_of(source).items()} == {"transformer": "vae", "vae": "denoiser"}


def test_class_defaults_stand_for_absent_fields_with_less_confidence():
    config = {"_class_name": "WanTransformer3DModel", "num_layers": 40, "num_attention_heads": 40}
    more = {"transformer/config.json": config}
    found = detect(diffusers(more=more))
    assert found.variant == "wan2.1-t2v-14b"
    assert found.confidence < 0.9
    assert any("class defaults stand for" in item.fact and "in_channels" in item.fact for item in found.evidence)
    # The pipeline of the index outweighs a default: 16 channels are nobody's word.
    image = detect(diffusers(pipeline=I2V, more={"transformer/config.json": config | {"image_dim": 1280}}))
    assert image.architecture_type == "wan_i2v"


def test_without_any_configuration_the_class_alone_gives_every_candidate():
    found = detect(facts(documents={"model_index.json": {"transformer": ["diffusers", "WanTransformer3DModel"]}}))
    assert (found.is_wan, found.confidence) == (True, 0.6)
    assert {"wan2.1-t2v-1.3b", "wan2.2-ti2v-5b", "wan2.2-i2v-a14b"} <= set(found.candidates)
    vace = detect(facts(documents={"model_index.json": {"transformer": ["diffusers", "WanVACETransformer3DModel"]}}))
    assert vace.architecture_type == "wan_vace"


def test_size_that_no_model_has_keeps_type_and_pipeline_but_no_variant():
    config = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2}
    for table, experts, kind, pipeline in (
        ("wan-t2v-14b", 1, "wan_t2v", "WanPipeline"),
        ("wan-t2v-14b", 2, "wan_t2v", "WanPipeline"),
        ("wan-i2v-14b", 1, "wan_i2v", I2V),
        ("wan-flf2v-14b", 1, "wan_flf2v", I2V),
        ("wan-i2v-a14b", 2, "wan_i2v", I2V),
        ("wan-ti2v-5b", 1, "wan_ti2v", "WanPipeline"),
        ("wan-vace-14b", 1, "wan_vace", "WanVACEPipeline"),
    ):
        found = detect(diffusers(table, experts=experts, config=config, weights=False))
        assert (found.is_wan, found.variant, found.candidates) == (True, None, ())
        assert (found.architecture_type, found.pipeline_class) == (kind, pipeline)
        assert found.version == ("2.2" if experts == 2 or kind == "wan_ti2v" else "2.1")


def test_video_to_video_is_the_pipelines_word():
    found = detect(diffusers("wan-t2v-1.3b", pipeline="WanVideoToVideoPipeline"))
    assert (found.architecture_type, found.pipeline_class) == ("wan_v2v", "WanVideoToVideoPipeline")
    assert "video_to_video" in found.capabilities


def test_pre_release_names_are_wans():
    config = {"_class_name": "WanxTransformer3DModel", "add_img_emb": True, "in_channels": 36, "num_layers": 40}
    config |= {"num_attention_heads": 40, "attention_head_dim": 128, "out_channels": 16, "ffn_dim": 13824}
    found = detect(diffusers(pipeline="WanI2VPipeline", more={"transformer/config.json": config}))
    assert (found.is_wan, found.architecture_type) == (True, "wan_i2v")


@pytest.mark.parametrize(
    ("files", "variant"),
    [
        (("diffusion_pytorch_model.safetensors",), "wan2.1-t2v-14b"),
        (("high_noise_model/a.safetensors", "low_noise_model/a.safetensors"), "wan2.2-t2v-a14b"),
    ],
)
def test_original_repository_has_no_pipeline(files, variant):
    config = {"_class_name": "WanModel", "model_type": "t2v", "dim": 5120, "in_dim": 16, "out_dim": 16}
    config |= {"num_heads": 40, "num_layers": 40, "ffn_dim": 13824}
    folders = [path.rpartition("/")[0] for path in files]
    documents = {f"{folder}/config.json".lstrip("/"): config for folder in folders}
    headers = [header(path, original("wan-t2v-14b")) for path in files]
    found = detect(facts(*headers, documents=documents, others=("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth")))
    assert (found.layout, found.variant, found.pipeline_class) == ("original", variant, None)


def test_clip_beside_an_original_checkpoint_means_wan_2_1():
    config = {"_class_name": "WanModel", "model_type": "i2v", "dim": 5120, "in_dim": 36, "out_dim": 16, "num_heads": 40}
    clip = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    found = detect(facts(documents={"config.json": config}, others=("Wan2.1_VAE.pth", clip)))
    assert (found.layout, found.version) == ("original", "2.1")
    alone = detect(facts(documents={"config.json": config}, others=("Wan2.1_VAE.pth",)))
    assert {"wan2.2-i2v-a14b", "wan2.1-i2v-14b-480p"} <= set(alone.candidates)


def test_two_quantisations_are_one_model_and_high_with_low_are_two_experts():
    tensors = original("wan-t2v-14b")
    quantised = detect(facts(*(header(f"wan2.1-t2v-14b-{bits}.gguf", tensors, "Q4_K") for bits in ("Q4_0", "Q8_0"))))
    assert (quantised.layout, quantised.variant) == ("gguf", "wan2.1-t2v-14b")
    pair = detect(facts(*(header(f"{half}Noise/Wan-{half}Noise-Q4.gguf", tensors, "Q4_K") for half in ("High", "Low"))))
    assert (pair.layout, pair.variant, pair.candidates) == ("gguf", "wan2.2-t2v-a14b", ())


def test_folder_with_one_comfy_file_is_a_single_file():
    found = detect(
        facts(header("split_files/diffusion_models/w.safetensors", original("wan-ti2v-5b")), others=("README.md",))
    )
    assert (found.layout, found.variant) == ("single_file", "wan2.2-ti2v-5b")


def test_checkpoint_that_bundles_everything_is_taken_apart():
    bundle = {f"model.diffusion_model.{name}": shape for name, shape in original("wan-t2v-1.3b").items()}
    bundle |= {f"vae.{name}": shape for name, shape in recorded_tensors("original-vae-wan2.1").items()}
    bundle |= {
        f"text_encoders.umt5xxl.transformer.{name}": shape for name, shape in recorded_tensors("umt5-xxl").items()
    }
    found = detect(one_file("all-in-one.safetensors", bundle))
    assert (found.variant, found.vae_dimensions) == ("wan2.1-t2v-1.3b", 3)
    assert set(found.components) == {"transformer", "vae", "text_encoder"}


@pytest.mark.parametrize(
    ("pipeline", "kind"),
    [
        ("StableDiffusionPipeline", "stable_diffusion"),
        ("StableDiffusionXLPipeline", "stable_diffusion"),
        ("KandinskyV22Pipeline", "unknown"),
        ("KolorsPipeline", "unknown"),
    ],
)
def test_unet_is_stable_diffusions_unless_the_pipeline_is_anothers(pipeline, kind):
    weights = header("unet/diffusion_pytorch_model.safetensors", recorded_tensors("unet-sd1.5"))
    index = {
        "_class_name": pipeline,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    documents = {"model_index.json": index, "unet/config.json": recorded_config("unet-sd1.5")}
    for found in (detect(facts(weights, documents=documents)), detect(facts(documents=documents))):
        assert (found.is_wan, found.architecture_type, found.vae_dimensions) == (False, kind, 2)


def test_index_may_name_another_pipeline_that_runs_the_same_weights():
    found = detect(diffusers("wan-ti2v-5b", pipeline=I2V, vae="vae-wan2.2"))
    assert (found.pipeline_class, found.also_loads_as) == (I2V, ("WanPipeline",))
    plain = detect(diffusers("wan-ti2v-5b", vae="vae-wan2.2"))
    assert (plain.pipeline_class, plain.also_loads_as) == ("WanPipeline", (I2V,))


def test_unknown_class_with_wans_fields_is_wan_and_an_unknown_one_without_is_not():
    fields = {
        "dim": 5120,
        "in_dim": 16,
        "out_dim": 16,
        "num_heads": 40,
        "num_layers": 40,
        "ffn_dim": 13824,
        "freq_dim": 256,
    }
    assert detect(facts(documents={"config.json": {"_class_name": "MyVideoModel", **fields}})).is_wan is True
    index = {"_class_name": "MyPipeline", "transformer": ["diffusers", "MyTransformer3DModel"]}
    found = detect(facts(documents={"model_index.json": index, "transformer/config.json": {"hidden_size": 12}}))
    assert (found.is_wan, found.architecture_type, found.confidence) == (False, "unknown", 0.5)


@pytest.mark.parametrize(
    ("vae", "words"), [("vae-wan2.1", "16 latent channels, as"), ("vae-wan2.2", "48 latent channels, not as")]
)
def test_vae_is_evidence_and_never_the_verdict(vae, words):
    found = detect(diffusers("wan-t2v-1.3b", vae=vae))
    assert found.variant == "wan2.1-t2v-1.3b"
    assert any(words in item.fact for item in found.evidence)


@pytest.mark.parametrize("far", [False, True])
def test_a_config_without_any_size_gives_every_width_as_candidate(far):
    name = "AnyFlowFAR" if far else "AnyFlow"
    documents = {
        "model_index.json": {
            "_class_name": f"{name}Pipeline",
            "transformer": ["diffusers", f"{name}Transformer3DModel"],
        },
        "transformer/config.json": {"_class_name": f"{name}Transformer3DModel"},
    }
    found = detect(facts(documents=documents))
    prefix = "anyflow-far-wan2.1-" if far else "anyflow-wan2.1-t2v-"
    assert found.variant == prefix + "14b", "what diffusers would build comes first"
    assert set(found.candidates) == {prefix + "14b", prefix + "1.3b"}
    assert found.pipeline_class == f"{name}Pipeline"
