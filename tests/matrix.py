"""Task x layout x plan, on tiny models in real workers: the tables of docs/matrix.md.

    python -m tests.matrix                    runs every cell (minutes), prints the tables, ends with 1 if one is wrong
    python -m tests.matrix --write            puts them into docs/matrix.md
    python -m tests.matrix --only 'vace'      rows whose name has this; with --write, only theirs are changed
    python -m tests.matrix --plan 'bits'      of the first table, the column whose name has this, in the same manner

The rows are the cases of the tests that compare each of them with a plain diffusers script (test_tasks_end_to_end.py,
test_relatives.py, test_modular.py); what a cell says is a comparison with the row's first column. tests/test_matrix.py holds
the page in step with these tables, and runs some of the cells.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests import test_modular, test_relatives, test_tasks_end_to_end
from tests.assets import single_files as made
from tests.assets.plain_cases import SEED, Case, write_media
from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest, Supervisor
from wan_compat.policies.planning.choice import Choice
from wan_compat.protocol.errors import WanCompatError
from wan_compat.protocol.plan import GroupOffload, PlanSpec, Tiling
from wan_compat.supervisor import job_plan

DOCUMENT = Path(__file__).parents[1] / "docs" / "matrix.md"
BEGIN = "<!-- matrix: begin (python -m tests.matrix --write) -->"
END = "<!-- matrix: end -->"

EQUAL, ROUNDING, CLOSE, REFUSED = "equal", "within 2 of 255", "close", "refused: "
# The most of any value; the mean of all: clips of different seeds differ by 60 and more with these random weights.
_ROUNDING, _CLOSE = 2, 20.0
_LONG = 33  # frames; longer cases differ from short ones of their pipeline in nothing that a plan touches

Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A column: what a user asks for (`wish`), or a plan that is carried out whatever the planner would have chosen for a
    tiny model (`spec`). `worst` is the least equal that a cell may be."""

    wish: Fields
    spec: PlanSpec | None = None
    worst: str = EQUAL


PLANS: Mapping[str, Plan] = {
    "text encoder leaves": Plan({}, PlanSpec(text_encoder="leave")),
    "weights in files": Plan({"offload": "group"}),
    "groups of layers": Plan({}, PlanSpec(offload="group", group=GroupOffload())),
    "native attention": Plan({"attention_backend": "native"}),
    "tiles": Plan({}, PlanSpec(tiling=Tiling(size=64, stride=48)), CLOSE),
    "bfloat16": Plan({"precision": "bfloat16"}, worst=CLOSE),
    "first-block cache": Plan({"cache": "first_block"}, worst=CLOSE),
    "TaylorSeer": Plan({"cache": "taylorseer"}, worst=CLOSE),
    "layers in 8 bits": Plan({"layerwise_casting": "float8_e4m3fn"}, worst=CLOSE),
}
# Pipelines that diffusers' own caches and backends fail in: refused before anything is loaded.
_NO_FIRST_BLOCK = ("v2v", "animate", "replace", "skyreels", "chronoedit", "anyflow", "helios")


def refusal_of(row: str, column: str) -> str | None:
    """Return the error that a plan is meant to end with for a task, None where it is meant to run."""
    if ROWS[row].test == "test_modular.py" and (
        column == "first-block cache" or (column == "TaylorSeer" and not row.startswith("helios"))
    ):
        return "invalid_request"
    if column == "first-block cache":
        return "invalid_request" if row.startswith(_NO_FIRST_BLOCK) else None
    if column == "TaylorSeer":
        return "invalid_request" if row.startswith(("v2v", "anyflow")) else None
    return "invalid_request" if column == "native attention" and row.startswith("anyflow far") else None


@dataclasses.dataclass(frozen=True)
class Row:
    """One task as a user asks for it: the request for given media, and the kind of tiny model."""

    kind: str
    request: Callable[[Mapping[str, Any]], GenerationRequest]
    test: str  # file of the test that compares it with a plain script


def _task_row(case: str) -> Row:
    kind = test_tasks_end_to_end.CASES[case][0]
    return Row(kind, lambda media: test_tasks_end_to_end.request_for(case, dict(media)), "test_tasks_end_to_end.py")


def _case_row(case: Case, test: str) -> Row:
    def request(media: Mapping[str, Any]) -> GenerationRequest:
        files = {role: media[file] for role, file in case.media.items()}
        return GenerationRequest(model=str(tiny_model(case.kind)), seed=SEED, **case.request, **files)

    return Row(case.kind, request, test)


def _rows() -> Iterator[tuple[str, Row]]:
    for name in test_tasks_end_to_end.CASES:
        yield name, _task_row(name)
    for name, case in test_relatives.CASES.items():
        if case.request["num_frames"] <= _LONG:
            yield name, _case_row(case, "test_relatives.py")
    for name, case in test_modular.CASES.items():
        yield f"{name}, modular", _case_row(case, "test_modular.py")


ROWS: Mapping[str, Row] = dict(_rows())

# ---- layouts -------------------------------------------------------------------------------------------------------

# From a row's model and a folder to write into: fields of the request, and the fields of the one to compare with.
Layout = Callable[[Path, Path], tuple[Fields, Fields]]
_NOTHING: Fields = {}


def _shards(model: Path, place: Path) -> tuple[Fields, Fields]:
    folder = made.copy_of(model, place / "sharded")
    for name in ("transformer", "text_encoder", "vae"):
        made.shard(folder, name)
    return {"model": str(folder)}, _NOTHING


def _file(model: Path, place: Path) -> tuple[Fields, Fields]:
    file = made.original_file(model, "transformer", place / "wan.safetensors")
    return {"model": str(file), "components": str(model)}, _NOTHING


def _file_of_comfyui(model: Path, place: Path) -> tuple[Fields, Fields]:
    file = made.original_file(model, "transformer", place / "wan.safetensors", "model.diffusion_model.")
    return {"model": str(file), "components": str(model)}, _NOTHING


def _fp8(model: Path, place: Path) -> tuple[Fields, Fields]:
    tensors = made.load(model, "transformer")
    stored, meant = made.scaled_fp8(tensors, lambda name: "blocks." in name and tensors[name].ndim == 2)
    stored.pop("scaled_fp8", None)
    file = made.save_raw(stored, place / "fp8.safetensors")
    return {"transformer": str(file)}, {"transformer": str(made.save(meant, place / "meant.safetensors"))}


def _gguf(model: Path, place: Path) -> tuple[Fields, Fields]:
    tensors = made.load(model, "transformer")
    whole = {name for name, tensor in tensors.items() if tensor.ndim == 2 and tensor.shape[-1] % 32 == 0}
    meant = made.save_gguf(tensors, place / "wan.gguf", "Q8_0", lambda name: name in whole)
    return {"transformer": str(place / "wan.gguf")}, {"transformer": str(made.save(meant, place / "m.safetensors"))}


def _lora(model: Path, place: Path) -> tuple[Fields, Fields]:
    fields: list[dict[str, Any]] = []
    merged = {}
    for name, expert in (("transformer", "high"), ("transformer_2", "low")):
        if not (model / name).is_dir():
            continue
        tensors = made.load(model, name)
        lora = made.lora_for(tensors, ["blocks.0.attn1.to_q", "blocks.1.ffn.net.0.proj"])
        file = made.lora_file(lora, "diffusers", place / f"{name}.safetensors")
        fields.append({"path": str(file), "weight": 1.0, "expert": expert})
        merged[name] = made.merged(tensors, lora, 1.0)
    if len(fields) == 1:
        fields[0]["expert"] = None
    return {"loras": fields}, {"model": str(made.copy_of(model, place / "merged", **merged))}


LAYOUTS: Mapping[str, Layout] = {
    "shards": _shards,
    "single file": _file,
    "ComfyUI's names": _file_of_comfyui,
    "fp8 with scales": _fp8,
    "GGUF Q8_0": _gguf,
    "LoRA": _lora,
}
# Rows with Wan's own transformers; relatives are not loaded from single files (docs/layouts.md).
LAYOUT_ROWS = tuple(name for name, row in ROWS.items() if row.test == "test_tasks_end_to_end.py")
# Plans with layouts, for one task; `weights in files` wants a folder's own tensors.
LAYOUT_PLANS = ("text encoder leaves", "weights in files", "tiles", "bfloat16")
LAYOUT_REFUSALS = {(layout, "weights in files"): "invalid_request" for layout in LAYOUTS if layout != "shards"}

# ---- running -------------------------------------------------------------------------------------------------------


@contextmanager
def planned(spec: PlanSpec | None) -> Iterator[None]:
    """Have jobs carried out with this plan, instead of what the planner would choose for a tiny model."""
    if spec is None:
        yield
        return
    choose = job_plan.choose

    def forced(*arguments: Any) -> Choice:
        choice = choose(*arguments)
        setting = dataclasses.replace(choice.chosen.candidate.setting, plan=spec)
        candidate = dataclasses.replace(choice.chosen.candidate, setting=setting)
        return dataclasses.replace(choice, chosen=dataclasses.replace(choice.chosen, candidate=candidate))

    with mock.patch.object(job_plan, "choose", forced):
        yield


def frames(
    supervisor: Supervisor, request: GenerationRequest, fields: Fields, spec: PlanSpec | None = None
) -> np.ndarray:
    """Return the frames of one job, tried once."""
    changed = GenerationRequest(**{**request.model_dump(), "recover": False, **fields})
    with planned(spec):
        result = supervisor.generate(changed)
    assert result.frames is not None
    return result.frames.frames


def compare(found: np.ndarray, expected: np.ndarray) -> str:
    """Return how equal two clips are, in the words of the page."""
    difference = np.abs(found.astype(int) - expected)
    if not difference.any():
        return EQUAL
    if difference.max() <= _ROUNDING:
        return ROUNDING
    return CLOSE if difference.mean() < _CLOSE else f"**other**, by {difference.mean():.0f} on average"


def plan_cell(
    supervisor: Supervisor,
    row: Row,
    name: str,
    media: Mapping[str, Any],
    expected: np.ndarray,
    fields: Fields = _NOTHING,
) -> str:
    """Run a row with a plan."""
    plan = PLANS[name]
    try:
        return compare(frames(supervisor, row.request(media), {**fields, **plan.wish}, plan.spec), expected)
    except WanCompatError as error:
        return f"{REFUSED}`{error.code}`"


def layout_cell(supervisor: Supervisor, row: Row, name: str, media: Mapping[str, Any], place: Path) -> str:
    """Run a row with its model in another layout, and compare with the folder that means the same."""
    place.mkdir(parents=True)
    try:
        given, meant = LAYOUTS[name](tiny_model(row.kind), place)
        request = row.request(media)
        return compare(frames(supervisor, request, given), frames(supervisor, request, meant))
    except WanCompatError as error:
        return f"{REFUSED}`{error.code}`"
    finally:
        shutil.rmtree(place)


def media_of(row: Row, folder: Path, kept: dict[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the media that the rows of a test share."""
    if row.test not in kept:
        place = folder / row.test
        place.mkdir()
        made_by = test_tasks_end_to_end.make_media if row.test == "test_tasks_end_to_end.py" else write_media
        kept[row.test] = made_by(place)
    return kept[row.test]


def expected_of(table: str, row: str, column: str) -> str | None:
    """Return the refusal that a cell is meant to be, None where it is meant to run."""
    if table == "layouts with plans":
        return LAYOUT_REFUSALS.get((row, column))
    return refusal_of(row, column) if table == "plans" else None


def is_right(table: str, row: str, column: str, cell: str) -> bool:
    """Whether a cell is what is claimed: as equal as its column promises, or refused where that is meant."""
    refusal = expected_of(table, row, column)
    if cell.startswith(REFUSED) or refusal is not None:
        return cell == f"{REFUSED}`{refusal}`"
    if table == "layouts":
        return cell in (EQUAL, ROUNDING)
    return cell == EQUAL or (PLANS[column].worst == CLOSE and cell in (ROUNDING, CLOSE))


Table = dict[str, dict[str, str]]  # row -> column -> cell
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "plans": tuple(PLANS),
    "layouts": tuple(LAYOUTS),
    "layouts with plans": LAYOUT_PLANS,
}
TITLES = {
    "plans": "Tasks with plans",
    "layouts": "Tasks with layouts",
    "layouts with plans": "Layouts with plans",
}
ROWS_OF: Mapping[str, tuple[str, ...]] = {
    "plans": tuple(ROWS),
    "layouts": LAYOUT_ROWS,
    "layouts with plans": tuple(LAYOUTS),
}


def run_all(only: str | None = None, plan: str | None = None) -> dict[str, Table]:
    """Run every cell of every table, or those of rows whose name has `only`, or of tasks with plans those of `plan`."""
    columns = [name for name in PLANS if plan is None or plan in name]
    tables: dict[str, Table] = {name: {} for name in COLUMNS}
    kept: dict[str, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name, Supervisor() as supervisor:
        folder = Path(name)
        for title, row in ROWS.items():
            if only is not None and only not in title:
                continue
            media = media_of(row, folder, kept)
            base = frames(supervisor, row.request(media), _NOTHING)
            tables["plans"][title] = {name: plan_cell(supervisor, row, name, media, base) for name in columns}
            if title in LAYOUT_ROWS and plan is None:
                tables["layouts"][title] = {
                    layout: layout_cell(supervisor, row, layout, media, folder / "layout")
                    for layout in COLUMNS["layouts"]
                }
            print(title, tables["plans"][title], tables["layouts"].get(title, ""), file=sys.stderr, flush=True)
        for layout, make in LAYOUTS.items():
            if plan is not None or (only is not None and only not in layout):
                continue
            row, place = ROWS["t2v"], folder / layout
            place.mkdir()
            media = media_of(row, folder, kept)
            fields, _ = make(tiny_model(row.kind), place)
            base = frames(supervisor, row.request(media), fields)
            tables["layouts with plans"][layout] = {
                plan: plan_cell(supervisor, row, plan, media, base, fields) for plan in LAYOUT_PLANS
            }
            print(layout, tables["layouts with plans"][layout], file=sys.stderr, flush=True)
    return tables


def wrong_cells(tables: Mapping[str, Table]) -> list[str]:
    """Return what is not as claimed."""
    return [
        f"{table}: {row}, {column}: {cell}"
        for table, rows in tables.items()
        for row, cells in rows.items()
        for column, cell in cells.items()
        if not is_right(table, row, column, cell)
    ]


def show(tables: Mapping[str, Table]) -> str:
    """Return the tables for the page."""
    lines: list[str] = []
    for table, rows in tables.items():
        columns = COLUMNS[table]
        of_tests = table != "layouts with plans"
        head = ["task" if of_tests else "layout", *columns, *(["equal to a plain script in"] if of_tests else [])]
        lines += [f"## {TITLES[table]}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for row, cells in rows.items():
            test = [f"`tests/{ROWS[row].test}`"] if of_tests else []
            lines.append(f"| {' | '.join([row, *(cells.get(column, '-') for column in columns), *test])} |")
        lines.append("")
    return "\n".join(lines)


def read_page(text: str) -> dict[str, Table]:
    """Return the tables of a page."""
    titles = {title: table for table, title in TITLES.items()}
    found: dict[str, Table] = {}
    for block in text.partition(BEGIN)[2].partition(END)[0].split("\n## ")[1:]:
        title, *lines = block.strip().splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
        columns = rows[0][1:]
        found[titles[title]] = {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows[1:]}
    for table in found.values():
        for cells in table.values():
            cells.pop("equal to a plain script in", None)
    return found


def merge(page: Mapping[str, Table], found: Mapping[str, Table]) -> dict[str, Table]:
    """Return the page's tables with the cells that were run again, in the order of the tests."""
    return {
        table: {row: cells for row in rows if (cells := page[table].get(row, {}) | found[table].get(row, {}))}
        for table, rows in ROWS_OF.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description="Run every cell of docs/matrix.md.")
    parser.add_argument("--only", metavar="WORDS", help="rows whose names have these words")
    parser.add_argument("--plan", metavar="WORDS", help="of tasks with plans, columns whose names have these words")
    parser.add_argument("--write", action="store_true", help="write the page, if no cell is wrong")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    tables = run_all(options.only, options.plan)
    wrong = wrong_cells(tables)
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    if options.write and not wrong:
        page = DOCUMENT.read_text()
        before, _, rest = page.partition(BEGIN)
        merged = merge(read_page(page), tables) if options.only or options.plan else tables
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{show(merged)}\n{END}{rest.partition(END)[2]}")
    else:
        print(show(tables))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
