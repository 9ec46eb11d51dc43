"""VAE decode on a CPU: 9 frames of 128x224, both arms in one process, in turn, same weights, same threads.

    ours        the worker's `send_conv3d_to_onednn`
    reference   the VAE as diffusers loads it: torch takes its slow path for fp32 conv3d of this size

Results differ by some 3e-6, so this is the one benchmark where the arms do not compute the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.arms import WAITING
from benchmarks.child import Child, answer
from benchmarks.harness import Benchmark, Row, alternate, part
from tests.assets.tiny_wan import tiny_model


def run(_shared: object) -> Iterator[Row]:
    for name, kind, repeats in (("conv3d", "t2v", 5), ("conv3d.mid", "t2v_mid", 3)):
        with Child("benchmarks.conv3d", **WAITING) as child:
            child.ask(do="load", folder=str(Path(tiny_model(kind)) / "vae"))
            samples = alternate(
                lambda child=child: child.ask(do="decode", arm=0),
                lambda child=child: child.ask(do="decode", arm=1),
                repeats,
            )
            difference = child.ask(do="difference")
        bar = part(0.5) if kind == "t2v" else part()
        yield Row(name, samples, "s", bar, f"largest difference of a value in [-1, 1]: {difference:.1e}")


def _be_child() -> None:
    from typing import Any

    import diffusers
    import torch

    from benchmarks.harness import timed
    from wan_compat.workers.conv import send_conv3d_to_onednn

    arms: list[Any] = []
    latents: list[torch.Tensor] = []

    def load(folder: str) -> None:
        arms.extend(diffusers.AutoencoderKLWan.from_pretrained(folder).eval() for _ in range(2))
        send_conv3d_to_onednn(arms[0])
        shape = (1, arms[0].config.z_dim, 3, 128 // 8, 224 // 8)
        latents.append(torch.randn(shape, generator=torch.Generator().manual_seed(0)))

    def run_arm(arm: int) -> torch.Tensor:
        with torch.no_grad():
            decoded: torch.Tensor = arms[arm].decode(latents[0], return_dict=False)[0]
        return decoded

    answer(
        load=load,
        decode=lambda arm: timed(lambda: run_arm(arm)),
        difference=lambda: float((run_arm(0) - run_arm(1)).abs().max()),
    )


BENCHMARK = Benchmark("conv3d", "VAE decode with oneDNN's conv3d against torch's own choice", run)

if __name__ == "__main__":
    _be_child()
