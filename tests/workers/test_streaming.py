"""The streaming seam: equal where it is used, given up with a reason where it is not, and gone afterwards."""

from __future__ import annotations

from typing import Any

from tests.assets.tiny_wan import tiny_model
from tests.workers.inside import in_torch_process


def vae(kind: str = "t2v") -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(tiny_model(kind), subfolder="vae").eval()


def latents(model: Any, frames: int = 4, side: int = 8) -> Any:
    import torch

    shape = (1, model.config.z_dim, frames, side, side + 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def streamed(model: Any, exit_: Any, z: Any) -> tuple[list[Any], Any]:
    import torch

    pieces: list[Any] = []
    with torch.no_grad(), exit_.publishing(lambda piece: pieces.append(piece.clone())):
        given = model.decode(z, return_dict=False)[0]
    return pieces, given


def check_equal(kind: str) -> None:
    import torch

    from wan_compat.workers.streaming import FrameExit

    model = vae(kind)
    z = latents(model)
    with torch.no_grad():
        whole = model.decode(z).sample[0]
    exit_ = FrameExit(model, "auto")
    assert exit_.streaming, exit_.reason
    pieces, given = streamed(model, exit_, z)
    assert [piece.shape[1] for piece in pieces] == [1, 4, 4, 4]
    assert torch.equal(torch.cat(pieces, 1).clamp(-1, 1), whole)
    assert given.shape == (1, 3, 1, 1, 1)


@in_torch_process
def test_streamed_pieces_equal_the_whole_decode() -> None:
    check_equal("t2v")


@in_torch_process
def test_streamed_pieces_equal_the_whole_decode_of_the_residual_patched_vae() -> None:
    check_equal("ti2v")


@in_torch_process
def test_latents_of_several_videos_are_refused_before_anything_is_decoded() -> None:
    import torch

    from wan_compat.protocol.errors import GenerationFailed
    from wan_compat.workers.streaming import FrameExit

    model = vae()
    two = torch.cat([latents(model), latents(model)])
    for mode in ("auto", "never"):
        try:
            streamed(model, FrameExit(model, mode), two)
        except GenerationFailed as error:
            assert error.message == "the pipeline decodes 2 videos, and one was asked for"
            continue
        raise AssertionError("it was taken")


@in_torch_process
def test_several_videos_are_decoded_one_after_the_other_each_as_by_itself() -> None:
    import torch

    from wan_compat.workers.streaming import FrameExit

    model = vae()
    clips = [latents(model), latents(model) * 0.5, latents(model) * 0.25]
    for mode, slicing in (("auto", False), ("auto", True), ("never", False), ("never", True)):
        exit_ = FrameExit(model, mode)
        alone = [streamed(model, exit_, clip)[0] for clip in clips]
        model.use_slicing = slicing  # diffusers then calls the seam of streaming once for each
        pieces: list[Any] = [[]]
        with (
            torch.no_grad(),
            exit_.publishing(
                lambda piece, pieces=pieces: pieces[-1].append(piece.clone()),
                videos=3,
                next_video=lambda pieces=pieces: pieces.append([]),
            ),
        ):
            model.decode(torch.cat(clips))
        model.use_slicing = False
        assert len(pieces) == 3
        assert all(
            torch.equal(torch.cat(got, dim=1), torch.cat(one, dim=1)) for got, one in zip(pieces, alone, strict=True)
        )


@in_torch_process
def test_afterwards_the_vae_is_as_it_was() -> None:
    import torch

    from wan_compat.workers.streaming import FrameExit

    model = vae()
    z = latents(model)
    with torch.no_grad():
        before = model.decode(z).sample
        streamed(model, FrameExit(model, "auto"), z)
        assert "_decode" not in vars(model) and "decode" not in vars(model)
        assert all(feature is None for feature in model._feat_map)
        assert torch.equal(model.decode(z).sample, before)


@in_torch_process
def test_a_publisher_that_raises_leaves_no_features_behind() -> None:
    from wan_compat.workers.streaming import FrameExit

    def refuse(_piece: Any) -> None:
        raise KeyError("stop")

    model = vae()
    exit_ = FrameExit(model, "auto")
    try:
        with exit_.publishing(refuse):
            model.decode(latents(model))
    except KeyError:
        pass
    else:
        raise AssertionError("the publisher's error was lost")
    assert "_decode" not in vars(model)
    assert all(feature is None for feature in model._feat_map)


@in_torch_process
def test_guard_falls_back_when_streaming_would_differ() -> None:
    import torch

    from wan_compat.workers.streaming import FrameExit

    model = vae()
    whole = type(model)._decode

    def decode_otherwise(z: Any, return_dict: bool = True) -> Any:
        return (whole(model, z, return_dict=False)[0].mul(0.5),)

    model._decode = decode_otherwise
    exit_ = FrameExit(model, "auto")
    assert not exit_.streaming
    assert "differ" in exit_.reason
    del model._decode
    pieces, _ = streamed(model, exit_, latents(model))
    with torch.no_grad():
        assert len(pieces) == 1 and torch.equal(pieces[0], model.decode(latents(model)).sample[0])


@in_torch_process
def test_guard_falls_back_when_diffusers_private_names_are_gone() -> None:
    from wan_compat.workers.streaming import FrameExit

    class Renamed:
        """A VAE of a later diffusers, say."""

        def decode(self, z: Any, return_dict: bool = True) -> Any:
            raise NotImplementedError

    exit_ = FrameExit(Renamed(), "auto")
    assert not exit_.streaming and "_decode" in exit_.reason


@in_torch_process
def test_guard_falls_back_when_the_decoder_knows_no_first_chunk() -> None:
    from wan_compat.workers.streaming import FrameExit

    model = vae()
    forward = model.decoder.forward
    model.decoder.forward = lambda x, feat_cache=None, feat_idx=None: forward(x, feat_cache, feat_idx)
    exit_ = FrameExit(model, "auto")
    assert not exit_.streaming and "first_chunk" in exit_.reason


@in_torch_process
def test_guard_falls_back_when_streaming_raises() -> None:
    from wan_compat.workers.streaming import FrameExit

    model = vae()
    clear = model.clear_cache

    def clear_without_features() -> None:
        clear()
        model.__dict__.pop("_feat_map")

    whole = type(model)._decode
    model._decode = lambda z, return_dict=True: (setattr(model, "clear_cache", clear), whole(model, z, return_dict))[1]
    exit_ = FrameExit(model, "auto")
    assert exit_.streaming  # the patch above restores clear_cache, so this is the control
    model.clear_cache = clear_without_features
    model._decode = lambda z, return_dict=True: (z,)
    exit_ = FrameExit(model, "auto")
    assert not exit_.streaming and "AttributeError" in exit_.reason


@in_torch_process
def test_tiles_that_were_switched_on_later_are_not_proved_and_published_whole() -> None:
    import torch

    from wan_compat.workers.streaming import FrameExit

    model = vae()
    exit_ = FrameExit(model, "auto")
    z = latents(model, frames=2, side=16)
    model.enable_tiling(64, 64, 48, 48)
    with torch.no_grad():
        tiled = model.decode(z).sample[0]
    pieces, _ = streamed(model, exit_, z)
    assert len(pieces) == 1 and torch.equal(pieces[0], tiled)


def check_tiled(kind: str, size: int, stride: int, side: int) -> None:
    import torch

    from wan_compat.workers.streaming import FrameExit

    model = vae(kind)
    model.enable_tiling(size, size, stride, stride)
    z = latents(model, side=side)
    with torch.no_grad():
        whole = model.decode(z).sample[0]
    exit_ = FrameExit(model, "auto")
    assert exit_.streaming, exit_.reason
    assert (model.tile_sample_min_height, model.tile_sample_stride_width) == (size, stride)
    pieces, _ = streamed(model, exit_, z)
    assert [piece.shape[1] for piece in pieces] == [1, 4, 4, 4]
    assert torch.equal(torch.cat(pieces, 1).clamp(-1, 1), whole)


@in_torch_process
def test_streamed_tiles_equal_diffusers_tiled_decode() -> None:
    check_tiled("t2v", 64, 48, side=13)


@in_torch_process
def test_streamed_tiles_without_overlap_equal_diffusers_tiled_decode() -> None:
    check_tiled("t2v", 64, 64, side=9)


@in_torch_process
def test_streamed_tiles_of_the_residual_patched_vae_equal_diffusers_tiled_decode() -> None:
    check_tiled("ti2v", 96, 64, side=7)


@in_torch_process
def test_tiles_that_differ_are_decoded_whole() -> None:
    from wan_compat.workers.streaming import FrameExit

    model = vae()
    model.enable_tiling(64, 64, 48, 48)
    blend = model.blend_v
    model.tiled_decode = lambda z, return_dict: (type(model).tiled_decode(model, z, False)[0] + 1e-3,)
    exit_ = FrameExit(model, "auto")
    assert model.blend_v == blend and not exit_.streaming and "in tiles" in exit_.reason


@in_torch_process
def test_never_means_never() -> None:
    from wan_compat.workers.streaming import FrameExit

    exit_ = FrameExit(vae(), "never")
    assert not exit_.streaming and "plan" in exit_.reason
