"""What planning says before anything is loaded, beside what workers count: the table of docs/planning.md.

    python -m tests.estimates                 every row (minutes), prints the table, ends with 1 if one is off by more than 15%
    python -m tests.estimates --write         puts it into docs/planning.md
    python -m tests.estimates --only helios   rows whose name has this; with --write, only theirs are changed

Rows are jobs for models of every pipeline, with random weights and the proportions of real transformers
(tests/assets/wide_wan.py), in frames large enough that activations matter.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from tests import test_modular, test_relatives
from tests.assets.plain_cases import TEXT, Case, write_media
from tests.assets.wide_wan import wide_models
from wan_compat import GenerationRequest, Supervisor
from wan_compat.policies.planning.choice import Choice
from wan_compat.supervisor import job_plan

TOLERANCE = 0.15
DOCUMENT = Path(__file__).parents[1] / "docs" / "planning.md"
BEGIN = "<!-- estimates: begin (python -m tests.estimates --write) -->"
END = "<!-- estimates: end -->"
PHASES = ("text_encode", "denoise_high", "denoise_low", "decode")

Fields = Mapping[str, Any]
SIZE: Fields = {"height": 192, "width": 256, "num_frames": 17, "num_inference_steps": 2, "guidance_scale": 4.0}
_IMAGE, _PAIR = {"image": "image"}, {"image": "image", "last_image": "image"}
VIDEO_FRAMES = 101  # frames of the given one: more than any pipeline looks at
_TEXT = {**TEXT, "max_sequence_length": 512}

# Wan's own; the relatives' and the modular ones are those of their tests.
_OWN: Mapping[str, Case] = {
    "t2v": Case("t2v", ""),
    "two experts": Case("a14b", "", fields={"num_inference_steps": 4}),
    "5B from text": Case("ti2v", ""),
    "5B from a picture": Case("ti2v", "", _IMAGE),
    "i2v with CLIP": Case("i2v", "", _IMAGE),
    "i2v, two experts": Case("i2v22", "", _IMAGE),
    "first and last frame": Case("flf2v", "", _PAIR),
    "first and last frame, no CLIP": Case("i2v22", "", _PAIR),
    "v2v": Case("t2v", "", {"video": "video"}),
    "vace, control": Case("vace", "", {"video": "video"}),
    "vace, control and mask": Case("vace", "", {"video": "video", "mask": "mask"}),
    "vace, two experts": Case("vace22", "", {"video": "video"}, {"num_inference_steps": 4}),
    "t2i": Case("t2v", "", fields={"num_frames": 1, "task": "t2i"}),
    "t2v, bfloat16": Case("t2v", "", fields={"precision": "bfloat16"}),
    "t2v, tiles": Case("t2v", "", fields={"vae_tiling": True, "width": 512, "num_frames": 9}),
    "t2v, text encoder leaves": Case("t2v", "", fields={"way": "cpu-text-leaves"}),
    "t2v, weights in files": Case("t2v", "", fields={"offload": "group"}),
    "t2v, layers in 8 bits": Case("t2v", "", fields={"layerwise_casting": "float8_e4m3fn"}),
    "two experts, layers in 8 bits, bfloat16": Case(
        "a14b", "", fields={"num_inference_steps": 4, "layerwise_casting": "float8_e5m2", "precision": "bfloat16"}
    ),
}
_MORE: Mapping[str, Case] = {
    "helios, three chunks": Case("helios", "", fields={"num_frames": 81}),
    "helios, three chunks, modular": Case("modular_helios", "", fields={"num_frames": 81}),
    "first and last frame, modular": Case("modular_flf2v", "", _PAIR),
    "t2v, modular, bfloat16": Case("modular_t2v", "", fields={"precision": "bfloat16"}),
    "t2v, modular, text encoder leaves": Case("modular_t2v", "", fields={"way": "cpu-text-leaves"}),
    "t2v, modular, weights in files": Case("modular_t2v", "", fields={"offload": "group"}),
    "t2v, modular, tiles": Case("modular_t2v", "", fields={"vae_tiling": True, "width": 512, "num_frames": 9}),
}
# Fields of the tests' cases that would make a job smaller, or say how its prompt is read.
_THEIRS = ("num_frames", "width", "height", "num_inference_steps", "max_sequence_length")


def _enlarged(case: Case) -> Case:
    fields = {name: value for name, value in case.fields.items() if name not in _THEIRS}
    if case.fields.get("num_frames", 0) > 9 or case.kind.startswith(("chronoedit", "anyflow_far")):
        fields["num_frames"] = case.fields["num_frames"]  # a length that means something there
    if "helios_" in case.kind:
        fields["num_inference_steps"] = 3
    if case.kind == "modular_a14b":
        fields["num_inference_steps"] = 4
    return dataclasses.replace(case, fields=fields)


ROWS: Mapping[str, Case] = {
    **_OWN,
    **{name: _enlarged(case) for name, case in test_relatives.CASES.items()},
    **{f"{name}, modular": _enlarged(case) for name, case in test_modular.CASES.items()},
    **_MORE,
}


@dataclasses.dataclass(frozen=True)
class Found:
    """Bytes of tensors in the phase that takes most, and in each: as counted, as planned before."""

    counted: Mapping[str, int]
    planned: Mapping[str, int]

    def off(self, phase: str) -> float:
        """By how much planning was off, as a share of what was counted."""
        return self.planned[phase] / self.counted[phase] - 1

    @property
    def peak(self) -> tuple[int, int]:
        return max(self.counted.values()), max(self.planned.values())

    @property
    def peak_off(self) -> float:
        counted, planned = self.peak
        return planned / counted - 1

    @property
    def worst(self) -> str:
        return max(self.counted, key=lambda phase: abs(self.off(phase)))


def measure(supervisor: Supervisor, model: Path, case: Case, media: Mapping[str, str]) -> Found:
    """Run a job, counted, and return what its plan said beside what its worker counted."""
    fields: dict[str, Any] = {**SIZE, **_TEXT, "precision": "float32", **case.fields}
    way = fields.pop("way", "cpu")
    files = {role: media[file] for role, file in case.media.items()}
    request = GenerationRequest(
        model=str(model), seed=7, isolation="job", count_memory=True, recover=False, **{**fields, **files}
    )
    chosen: list[Choice] = []
    choose = job_plan.choose

    def watched(*arguments: Any) -> Choice:
        choice = choose(*arguments)
        if way != "cpu":
            named = next(item for item in choice.weighed if item.candidate.name == way)
            choice = dataclasses.replace(choice, chosen=named)
        chosen.append(choice)
        return choice

    with mock.patch.object(job_plan, "choose", watched):
        result = supervisor.generate(request)
    counted = {phase: size for phase in PHASES if (size := result.peak.get(f"{phase}_bytes"))}
    phases = chosen[-1].chosen.phases
    return Found(counted, {phase: phases[phase].counted for phase in counted})  # type: ignore[index]


def run_all(only: str | None) -> dict[str, Found]:
    rows = {name: case for name, case in ROWS.items() if only is None or only in name}
    models = wide_models({case.kind for case in rows.values()})
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as folder, Supervisor() as supervisor:
        media = write_media(Path(folder), VIDEO_FRAMES)
        for name, case in rows.items():
            found[name] = measure(supervisor, models[case.kind], case, media)
            print(line(name, found[name]), file=sys.stderr, flush=True)
    return found


def line(name: str, found: Found) -> str:
    """Return a row of the table."""
    counted, planned = found.peak
    cells = [name, f"{counted / 1e6:.1f}", f"{planned / 1e6:.1f}", f"{found.peak_off:+.0%}"]
    return f"| {' | '.join([*cells, f'{found.off(found.worst):+.0%} ({found.worst})'])} |"


def read_page(text: str) -> dict[str, str]:
    """Return the rows of the page, by their names."""
    lines = [row for row in text.partition(BEGIN)[2].partition(END)[0].splitlines() if row.startswith("| ")][1:]
    return {row.strip("|").split(" | ")[0].strip(): row for row in lines}


def main() -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    only = sys.argv[sys.argv.index("--only") + 1] if "--only" in sys.argv else None
    found = run_all(only)
    wrong = [name for name, item in found.items() if abs(item.off(item.worst)) > TOLERANCE]
    for name in wrong:
        print(f"WRONG: {name}", file=sys.stderr)
    page = DOCUMENT.read_text()
    lines = read_page(page) | {name: line(name, item) for name, item in found.items()}
    table = "\n".join(
        [
            "| job | counted, MB | planned, MB | off | farthest off of its phases |",
            "|---|---|---|---|---|",
            *(lines[name] for name in ROWS if name in lines),
        ]
    )
    if "--write" in sys.argv and not wrong:
        before, _, rest = page.partition(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}")
    else:
        print(table)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
