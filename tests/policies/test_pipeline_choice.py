"""The transformer decides on the pipeline; the index only chooses among what the transformer allows."""

from __future__ import annotations

from typing import Any

import pytest

from wan_compat.policies.architecture import ArchitectureSignature
from wan_compat.policies.pipeline_choice import choose_pipeline

WAN = "WanTransformer3DModel"


def signature(
    transformer: str | None, named: str | None, channels: tuple[Any, Any] | None, **more: str
) -> ArchitectureSignature:
    config = {} if channels is None else {"in_channels": channels[0], "out_channels": channels[1]}
    classes = {**more} if transformer is None else {"transformer": transformer, **more}
    return ArchitectureSignature(False, False, 3, classes, named, transformer_config=config)


@pytest.mark.parametrize(
    ("transformer", "named", "channels", "expected"),
    [
        (WAN, "WanPipeline", (16, 16), "WanPipeline"),
        (WAN, None, (16, 16), "WanPipeline"),
        (WAN, None, (12, 12), "WanPipeline"),  # of a size of its own: the demo
        (WAN, "WanVideoToVideoPipeline", (16, 16), "WanVideoToVideoPipeline"),
        (WAN, "Wan22ModularPipeline", (16, 16), "Wan22ModularPipeline"),
        (WAN, "WanPipeline", (36, 16), "WanImageToVideoPipeline"),
        (WAN, "WanImageToVideoPipeline", (16, 16), "WanPipeline"),
        (WAN, "WanImageToVideoPipeline", (48, 48), "WanImageToVideoPipeline"),
        (WAN, "WanDMDPipeline", (16, 16), None),
        (WAN, "pipeline_kiwi_edit.KiwiEditPipeline", (48, 48), None),
        (WAN, "KreaWanCausalPipeline", None, None),
        (WAN, "ChronoEditPipeline", (36, 16), "ChronoEditPipeline"),
        (WAN, "WanPipeline", (96, 48), "LucyEditPipeline"),
        (WAN, "WanPipeline", (48, 16), None),
        (WAN, "WanPipeline", (100, 48), None),
        (WAN, "WanPipeline", ("16", None), None),
        (WAN, "WanVideoToVideoPipeline", None, "WanVideoToVideoPipeline"),
        (WAN, "EvilPipeline", None, "WanPipeline"),
        (WAN, None, None, "WanPipeline"),
        ("WanVACETransformer3DModel", "WanPipeline", None, "WanVACEPipeline"),
        ("WanAnimateTransformer3DModel", None, None, "WanAnimatePipeline"),
        ("WanAnimate2Transformer3DModel", None, None, "WanAnimate2ModularPipeline"),
        (
            "WanAnimate2Transformer3DModel",
            "WanAnimate2DistilledModularPipeline",
            None,
            "WanAnimate2DistilledModularPipeline",
        ),
        (
            "SkyReelsV2Transformer3DModel",
            "SkyReelsV2DiffusionForcingPipeline",
            None,
            "SkyReelsV2DiffusionForcingPipeline",
        ),
        ("SkyReelsV2Transformer3DModel", "SkyReelsV2EvilPipeline", None, None),
        ("SkyReelsV2Transformer3DModel", None, None, None),
        ("HeliosTransformer3DModel", "HeliosPyramidPipeline", None, "HeliosPyramidPipeline"),
        ("AnyFlowFARTransformer3DModel", "AnyFlowPipeline", None, "AnyFlowFARPipeline"),
        ("WanS2VTransformer3DModel", "WanSpeechToVideoPipeline", None, None),
        ("FluxTransformer2DModel", "WanPipeline", None, None),
        (None, "WanPipeline", None, None),
    ],
)
def test_the_transformer_decides(
    transformer: str | None, named: str | None, channels: tuple[Any, Any] | None, expected: str | None
) -> None:
    choice = choose_pipeline(signature(transformer, named, channels))
    assert choice.pipeline_class == expected
    assert choice.reason


def test_an_image_encoder_makes_up_for_a_missing_configuration() -> None:
    assert (
        choose_pipeline(signature(WAN, None, None, image_encoder="CLIPVisionModel")).pipeline_class
        == "WanImageToVideoPipeline"
    )
    choice = choose_pipeline(signature("SkyReelsV2Transformer3DModel", None, None, image_encoder="CLIPVisionModel"))
    assert choice.pipeline_class == "SkyReelsV2ImageToVideoPipeline"
