"""Where decoded frames leave the VAE: one latent frame at a time where that is proved equal, else the whole clip.

Wan's VAE decodes latent frame by latent frame already, carrying causal features along, and then joins everything into
one tensor. Taking each piece as it is made shows the first frame after one hundredth of the decode and holds a quarter
of the memory at 161 frames; the total time hardly changes.

The seam is one method on the instance, for the time of one generation:

    streaming   vae._decode   below the offload hook of vae.decode, in place of diffusers' loop
    whole       vae.decode    public; runs diffusers' own decode and takes its result

Tiling and streaming go together: every tile has a feature cache of its own, and a latent frame goes out when all tiles
have decoded theirs (tiled_streaming.py).

The pipeline runs on around it with output_type="pt": denormalising latents, dropping VACE's reference frames and moving
modules stay its own. It gets a sample of one pixel back. output_type="latent" with a decode of our own would be the
wrong seam: WanVACEPipeline drops the reference latents only when it decodes (pipeline_wan_vace.py).

`_decode` and what it calls are private to diffusers. So nothing is assumed: at load a small random clip is decoded both
ways, and unless every bit is equal the whole decode is used, with the reason in ModelLoaded.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

from wan_compat.protocol.errors import GenerationFailed, clean_text
from wan_compat.workers.frames import check_finite
from wan_compat.workers.tiled_streaming import decode_tiled_pieces, small_tiles, would_tile

Publish = Callable[[torch.Tensor], None]

_PROOF_LATENT_FRAMES = 3  # the cache has three states: empty, after the first, after any other
_PROOF_LATENT_SIDE = 4  # what is proved does not depend on the size, and every fresh worker waits for it
_PRIVATE_NAMES = ("_decode", "clear_cache", "post_quant_conv")


class FrameExit:
    """How the frames of one loaded VAE leave it.

    Args:
        vae: The pipeline's VAE, on its device, in its type.
        mode: "auto" proves and uses streaming; "never" takes the whole decode.

    `streaming` is whether frames go out one by one; with tiling switched on, whether tiles do so too. Tiles of a VAE
    that had none when this was made are not proved, and are decoded whole.
    """

    def __init__(self, vae: Any, mode: Literal["auto", "never"]) -> None:
        self._vae = vae
        self.streaming, self.reason = (False, "the plan asked for whole decode") if mode == "never" else prove(vae)
        self._tiles_proved = False
        if self.streaming and getattr(vae, "use_tiling", False):
            self.streaming, self.reason = prove_tiled(vae)
            self._tiles_proved = self.streaming

    @contextlib.contextmanager
    def publishing(
        self,
        publish: Publish,
        keep: Callable[[torch.Tensor], None] = lambda _latents: None,
        *,
        videos: int = 1,
        next_video: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Send every decoded piece, (3, frames, height, width) in [-1, 1], to `publish` instead of to the pipeline.

        Latents of several videos are decoded one after the other: that takes no more memory than one, frames come in
        the order in which they are wanted, and what was proved of one is true of each.

        Args:
            keep: Is shown what the VAE is given, before anything is decoded (second_decode.py).
            videos: How many were asked for; latents of more are a GenerationFailed in the pipeline's decode.
            next_video: Called between one video and the next.
        """
        vae, seen = self._vae, 0
        name = "_decode" if self.streaming else "decode"
        original = getattr(vae, name)

        def decode(z: torch.Tensor, return_dict: bool = True) -> Any:
            nonlocal seen
            given = z.shape[0]
            if given > videos or (videos > 1 and seen + given > videos):  # before anything is decoded
                asked = "one was" if videos == 1 else f"{videos} were"
                raise GenerationFailed(f"the pipeline decodes {max(given, seen + given)} videos, and {asked} asked for")
            keep(z)
            tiled = would_tile(vae, z)
            for one in z.split(1):
                if seen and videos > 1:
                    next_video()
                seen += 1
                if self.streaming and (self._tiles_proved or not tiled):
                    # Not clamped: the clamp would turn an infinite value into white, and nobody would know.
                    for piece in decode_tiled_pieces(vae, one) if tiled else decode_pieces(vae, one):
                        publish(piece[0])
                else:
                    publish(_decode_whole(vae, original, one))
            return _nothing(z, return_dict)

        setattr(vae, name, decode)
        try:
            yield
        finally:
            delattr(vae, name)
            clear_feature_cache(vae)


def prove(vae: Any) -> tuple[bool, str]:
    """Decode a small random clip both ways; return whether they are equal, and why streaming is used or not."""
    missing = [name for name in _PRIVATE_NAMES if not hasattr(vae, name)]
    if missing:
        return False, f"{type(vae).__name__} has no {missing[0]}"
    if "first_chunk" not in inspect.signature(vae.decoder.forward).parameters:
        return False, "this diffusers decodes without first_chunk"
    with _untiled(vae):
        return _compare(vae, _PROOF_LATENT_SIDE, decode_pieces)


def prove_tiled(vae: Any) -> tuple[bool, str]:
    """The same for a VAE that decodes in tiles, with tiles that are small enough to be several."""
    with small_tiles(vae) as side:
        streaming, reason = _compare(vae, side, decode_tiled_pieces)
    return streaming, reason if streaming else f"in tiles, {reason}"


def _compare(vae: Any, side: int, pieces: Callable[[Any, torch.Tensor], Iterator[torch.Tensor]]) -> tuple[bool, str]:
    shape = (1, vae.config.z_dim, _PROOF_LATENT_FRAMES, side, side)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(vae.device, vae.dtype)
    try:
        with torch.no_grad():
            whole = vae._decode(z, return_dict=False)[0]
            streamed = torch.cat([piece.clamp(-1.0, 1.0) for piece in pieces(vae, z)], dim=2)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return False, clean_text(f"{type(error).__name__} while streaming: {error}", 200)
    finally:
        clear_feature_cache(vae)
    if not torch.equal(whole, streamed):
        return False, "streamed and whole decode differ on a random clip"
    return True, f"streamed and whole decode are equal on a random clip of {whole.shape[2]} frames"


@contextlib.contextmanager
def _untiled(vae: Any) -> Iterator[None]:
    tiling = getattr(vae, "use_tiling", False)
    vae.use_tiling = False
    try:
        yield
    finally:
        vae.use_tiling = tiling


def decode_pieces(vae: Any, z: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield (1, 3, frames, height, width), not clamped: 1 frame for the first latent frame, 4 for each other.

    This is the loop of diffusers' AutoencoderKLWan._decode without its growing concatenation.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    vae.clear_cache()
    try:
        x = vae.post_quant_conv(z)
        for index in range(z.shape[2]):
            vae._conv_idx = [0]
            piece = vae.decoder(
                x[:, :, index : index + 1],
                feat_cache=vae._feat_map,
                feat_idx=vae._conv_idx,
                first_chunk=index == 0,
            )
            if vae.config.patch_size is not None:
                piece = unpatchify(piece, patch_size=vae.config.patch_size)
            yield piece
    finally:
        vae.clear_cache()


def _decode_whole(vae: Any, decode: Callable[..., Any], z: torch.Tensor) -> torch.Tensor:
    # Looked at below diffusers' clamp, for the same reason as above.
    def look(_module: Any, _inputs: Any, piece: torch.Tensor) -> None:
        check_finite(piece)

    decoder = getattr(vae, "decoder", None)  # a VAE of the repository's own may have none
    hook = decoder.register_forward_hook(look) if isinstance(decoder, torch.nn.Module) else None
    try:
        sample: torch.Tensor = decode(z, return_dict=False)[0]
    finally:
        if hook is not None:
            hook.remove()
    return sample[0]


def clear_feature_cache(vae: Any) -> None:
    """Drop the causal features of an interrupted decode: at 720p they are hundreds of megabytes."""
    if hasattr(vae, "clear_cache"):
        vae.clear_cache()


def _nothing(z: torch.Tensor, return_dict: bool) -> Any:
    from diffusers.models.autoencoders.vae import DecoderOutput

    sample = z.new_zeros(z.shape[0], 3, 1, 1, 1)
    return DecoderOutput(sample=sample) if return_dict else (sample,)
