"""Memory figures of the shipped registry, computed by the planner from headers: `python tools/registry_memory.py [--write]`.

Without --write it names what differs and ends with 1 if anything does. Figures are for the default size of each model,
bfloat16, the VAE in float32; entries whose files' shapes are not known, or that no pipeline runs, keep theirs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.assets.corpus.repositories import BUILDERS  # noqa: E402
from wan_compat.policies.models import decide_model  # noqa: E402
from wan_compat.policies.planning.candidates import Wishes  # noqa: E402
from wan_compat.policies.planning.choice import Evaluated, choose  # noqa: E402
from wan_compat.policies.planning.job import job_of, shape_of  # noqa: E402
from wan_compat.policies.planning.machine import GpuFacts, MachineFacts  # noqa: E402
from wan_compat.protocol.errors import WanCompatError  # noqa: E402
from wan_compat.protocol.values import FrameSpec, GenerationParams  # noqa: E402
from wan_compat.supervisor.inspection import read_model  # noqa: E402

REGISTRY = ROOT / "wan_compat" / "data" / "compatibility_registry.json"
_ENDLESS = MachineFacts(1 << 50, 1 << 50, 1 << 50, 16, (GpuFacts("any", 1 << 50, 1 << 50),))
# Registry's plan -> the way that it stands for, and its words.
_PLANS = {
    "none": ("none", "all weights on the GPU, frames leave the VAE one latent frame at a time"),
    "model": ("model", "one model at a time on the GPU"),
    "group": ("group-tiled-whole", "two blocks at a time on the GPU, tiled decoding"),
    "full": ("full-bf16", "everything on the CPU, in bfloat16"),
}


def main(arguments: list[str]) -> int:
    write = "--write" in arguments
    document = json.loads(REGISTRY.read_text())
    changed = []
    for name, entry in document["models"].items():
        figures = figures_of(name, entry)
        if figures is None:
            continue
        before = json.dumps([entry["memory_per_plan"], entry["vram_requirements"]])
        entry["memory_per_plan"] = figures | {
            plan: kept for plan, kept in entry["memory_per_plan"].items() if plan not in _PLANS
        }
        entry["vram_requirements"] = {
            "min_mb": figures["group"]["vram_mb"],
            "plan": "group",
            "recommended_mb": figures["model"]["vram_mb"],
            "recommended_plan": "model",
        }
        if json.dumps([entry["memory_per_plan"], entry["vram_requirements"]]) != before:
            changed.append(name)
    for name in changed:
        print(f"{'written' if write else 'differs'}: {name}")
    if write and changed:
        REGISTRY.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if changed and not write else 0


def figures_of(name: str, entry: dict[str, Any]) -> dict[str, Any] | None:
    """Return the memory of each plan, None where nothing is known of the files or no pipeline runs them."""
    defaults = entry.get("defaults", {})
    size = tuple(defaults.get(key) for key in ("height", "width", "num_frames"))
    if name not in BUILDERS or not entry.get("memory_per_plan") or not all(size):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = BUILDERS[name](Path(folder) / "model") or Path(folder) / "model"
        try:
            model = decide_model(read_model(str(path)), threads=16, memory_limit_bytes=1 << 50)
        except WanCompatError:
            return None
        shape = shape_of(model)
    if shape is None:
        return None
    height, width, frames = (int(side) for side in size if side is not None)
    params = GenerationParams(
        prompt="",
        seed=0,
        num_inference_steps=1,
        guidance_scale=5.0,
        frames=FrameSpec(height=height, width=width, num_frames=frames),
    )
    weighed: dict[str, Evaluated] = {}
    for precision in ("auto", "bfloat16"):
        choice = choose(shape, job_of(model, params), _ENDLESS, Wishes(precision=precision))  # type: ignore[arg-type]
        weighed |= {item.candidate.name: item for item in choice.weighed}
    return {
        plan: {
            "vram_mb": _rounded(weighed[way].vram_bytes),
            "ram_mb": _rounded(weighed[way].ram_bytes),
            "basis": f"estimated: planned from headers for {frames} frames of {width}x{height}; {words}",
        }
        for plan, (way, words) in _PLANS.items()
    }


def _rounded(count: int) -> int:
    return -(-count // 100_000_000) * 100


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
