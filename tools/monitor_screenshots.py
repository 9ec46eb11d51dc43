"""Pictures of `wan-compat monitor` for docs/monitor.md: `python -m tools.monitor_screenshots [FOLDER]`.

The states are made up, the drawing is the program's own: statuses go through the reducer and the view as in a terminal.
Written as SVG by rich, without its link to a font on the web. tests/tools/test_monitor_screenshots.py fails when a picture is
not what this draws.
"""

from __future__ import annotations

import io
import math
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.terminal_theme import TerminalTheme

from wan_compat.protocol.status import JobStatus, MachineStatus, Note, SupervisorStatus, WorkerStatus
from wan_compat.supervisor.monitor import model
from wan_compat.supervisor.monitor.characters import UNICODE
from wan_compat.supervisor.monitor.reducer import reduce
from wan_compat.supervisor.monitor.view import render

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
NOW = time.mktime((2026, 3, 14, 14, 3, 22, 0, 0, -1))
GB = 1_000_000_000
FONT = "'Fira Code', 'DejaVu Sans Mono', 'Liberation Mono', monospace"

# The sixteen colours of a terminal with a dark background.
THEME = TerminalTheme(
    (22, 24, 33),
    (212, 216, 226),
    [
        *((48, 52, 65), (235, 102, 109), (140, 200, 120), (229, 192, 110)),
        *((97, 160, 239), (190, 132, 220), (86, 190, 198), (212, 216, 226)),
    ],
    [
        *((92, 99, 112), (255, 122, 128), (160, 220, 140), (245, 210, 130)),
        *((120, 180, 255), (210, 150, 240), (110, 210, 218), (255, 255, 255)),
    ],
)

WAITING = (
    "a lighthouse in fog, its lamp turning slowly",
    "close-up of rain on a window at night, city lights behind it",
    "a paper boat drifts down a gutter, seen from above",
    "an old tram crosses a bridge in autumn",
    "a hummingbird at a red flower, slow motion",
    "snow falling on a quiet harbour, boats covered in white",
    "a glassblower turns a glowing bulb, sparks in the dark",
    "drone view over terraced rice fields at sunrise",
    "a cat jumps onto a windowsill and looks outside",
    "waves break on black rocks under a full moon",
)


def batch(tick: int) -> SupervisorStatus:
    """A batch on two workers, `tick` seconds after it was first seen."""
    return SupervisorStatus(
        id="3f9a1c20",
        pid=41207,
        program="wan-compat batch run shots.jsonl",
        version="0.1.0",
        mode="safe",
        started_unix_s=NOW - 5400,
        now_unix_s=NOW - 120 + tick,
        max_workers=2,
        queued_count=58,
        done_count=37,
        failed_count=1,
        workers=(
            WorkerStatus(
                id="w1",
                pid=41230,
                activity="busy",
                mode="safe",
                tier="A",
                model="/models/Wan2.2-T2V-A14B-Diffusers",
                job="j39",
                rss_bytes=int((11 + 4 * math.tanh(tick / 40)) * GB),
                memory_limit_bytes=20 * GB,
                vram_bytes=int(21.4 * GB),
                cpu_percent=99.0,
                started_unix_s=NOW - 5300,
                jobs_done=20,
            ),
            WorkerStatus(
                id="w2",
                pid=41388,
                activity="busy",
                mode="safe",
                tier="A",
                model="/models/Wan2.1-VACE-1.3B-diffusers",
                job="j40",
                rss_bytes=int((5.1 + 1.5 * math.sin(tick / 13) ** 2) * GB),
                memory_limit_bytes=20 * GB,
                vram_bytes=int(7.9 * GB),
                cpu_percent=64.0,
                started_unix_s=NOW - 2210,
                jobs_done=17,
            ),
        ),
        running=(
            JobStatus(
                id="j39",
                state="running",
                model="/models/Wan2.2-T2V-A14B-Diffusers",
                prompt="a red fox trots through fresh snow, golden hour, shallow depth of field",
                group="shots",
                worker="w1",
                phase="denoise",
                step=27,
                total=40,
                rate_s=4.2,
                eta_s=55.0,
                output="out/fox_0007.mp4",
                submitted_unix_s=NOW - 5400,
                started_unix_s=NOW - 148,
            ),
            JobStatus(
                id="j40",
                state="running",
                model="/models/Wan2.1-VACE-1.3B-diffusers",
                prompt="the same street by night, neon signs, light rain",
                group="shots",
                worker="w2",
                phase="decode",
                step=9,
                total=21,
                rate_s=0.31,
                eta_s=4.0,
                attempt=2,
                output="out/street_0003.mp4",
                submitted_unix_s=NOW - 5400,
                started_unix_s=NOW - 61,
            ),
        ),
        queued=tuple(
            JobStatus(
                id=f"j{41 + place}",
                state="queued",
                model="/models/Wan2.2-T2V-A14B-Diffusers",
                prompt=prompt,
                priority=5 if place == 0 else 0,
                submitted_unix_s=NOW - 5400,
            )
            for place, prompt in enumerate(WAITING)
        ),
        ended=(
            _ended("j38", "done", "a field of sunflowers turning with the sun, time lapse", 201),
            _ended("j37", "done", "a blue kettle boils over, steam in the morning light", 190),
            _ended("j36", "failed", "a marble run in zero gravity", 12, "model_index_missing"),
        ),
        notes=(
            Note(
                at_unix_s=NOW - 31,
                level="warning",
                text="not enough memory while decoding; trying again with tiles of 256 pixels",
                code="out_of_memory",
                job="j40",
                worker="w2",
            ),
            Note(
                at_unix_s=NOW - 95,
                level="error",
                text="/models/clips/odd has no model_index.json",
                code="model_index_missing",
                job="j36",
            ),
            Note(at_unix_s=NOW - 2210, level="info", text="worker w2 started, tier A", worker="w2"),
            Note(at_unix_s=NOW - 5300, level="info", text="worker w1 started, tier A", worker="w1"),
        ),
        machine=_machine(tick),
    )


def server(tick: int) -> SupervisorStatus:
    """A server with a trusted model at work and an idle worker."""
    return SupervisorStatus(
        id="b81d04e7",
        pid=38114,
        program="wan-compat serve --mode trust",
        version="0.1.0",
        mode="trust",
        started_unix_s=NOW - 86_000,
        now_unix_s=NOW - 120 + tick,
        serves=True,
        max_workers=4,
        queued_count=1,
        done_count=412,
        workers=(
            WorkerStatus(
                id="w7",
                pid=52016,
                activity="busy",
                mode="trust",
                tier="A",
                model="/hub/models--acme--Wan2.1-Custom-Motion/snapshots/0a1b2c",
                job="j413",
                rss_bytes=int((13.2 + 5.3 * tick / 120) * GB),
                memory_limit_bytes=20 * GB,
                vram_bytes=int(11.2 * GB),
                cpu_percent=100.0,
                started_unix_s=NOW - 700,
                jobs_done=3,
                unusual=("memory grows",),
            ),
            WorkerStatus(
                id="w8",
                pid=52190,
                activity="idle",
                mode="safe",
                tier="A",
                model="/models/Wan2.1-T2V-1.3B-Diffusers",
                rss_bytes=int(3.4 * GB),
                memory_limit_bytes=20 * GB,
                vram_bytes=int(2.6 * GB),
                cpu_percent=0.0,
                started_unix_s=NOW - 400,
                jobs_done=8,
            ),
        ),
        running=(
            JobStatus(
                id="j413",
                state="running",
                model="/hub/models--acme--Wan2.1-Custom-Motion/snapshots/0a1b2c",
                prompt="two dancers in an empty warehouse, camera circles them",
                mode="trust",
                worker="w7",
                phase="denoise",
                step=5,
                total=30,
                rate_s=2.6,
                eta_s=65.0,
                submitted_unix_s=NOW - 60,
                started_unix_s=NOW - 44,
            ),
        ),
        queued=(
            JobStatus(
                id="j414",
                state="queued",
                model="/models/Wan2.1-T2V-1.3B-Diffusers",
                prompt="a bowl of ramen, steam rising",
                group="web",
                submitted_unix_s=NOW - 3,
            ),
        ),
        notes=(
            Note(at_unix_s=NOW - 8, level="warning", text="memory grows", job="j413", worker="w7"),
            Note(
                at_unix_s=NOW - 300,
                level="error",
                text="refused: pipeline.py is not approved",
                code="remote_code_refused",
                job="j409",
            ),
        ),
        machine=_machine(tick),
    )


def watched(statuses: Sequence[str] = ("batch", "server"), keys: Iterable[str] = (), seconds: int = 120) -> model.State:
    """Return the state after two minutes of looking at these supervisors, and these keys."""
    made = {"batch": ("3f9a1c20", batch), "server": ("b81d04e7", server)}
    events: list[model.Event] = [model.Tick(0.0, NOW - seconds), model.Found(tuple(made[name][0] for name in statuses))]
    for tick in range(0, seconds + 1, 2):
        events.append(model.Tick(float(tick), NOW - seconds + tick))
        events += [model.Heard(made[name][0], made[name][1](tick)) for name in statuses]
    state = model.State()
    for event in (*events, *map(model.Pressed, keys)):
        state, _ = reduce(state, event)
    return state


def picture(state: model.State, width: int, height: int, title: str) -> str:
    """Return the screen as an SVG document."""
    console = Console(
        record=True,
        width=width,
        height=height,
        file=io.StringIO(),
        force_terminal=True,
        color_system="standard",
        legacy_windows=False,
    )
    for line in render(state, width, height, UNICODE):
        console.print(line, end="\n", markup=False, highlight=False, no_wrap=True, crop=True)
    plain = re.sub(r"@font-face \{\{.*?\n    \}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    plain = plain.replace("Fira Code, monospace", FONT)
    return console.export_svg(title=title, theme=THEME, code_format=plain, unique_id=f"monitor-{width}-{len(title)}")


def pictures() -> dict[str, str]:
    """Return all pictures: name of the file -> document."""
    moves = ("j", "j")
    return {
        "monitor.svg": picture(watched(keys=moves), 120, 34, "wan-compat monitor"),
        "monitor_80x24.svg": picture(watched(("batch",), keys=("j",)), 80, 24, "80x24 over ssh"),
        "monitor_cancel.svg": picture(watched(("batch",), keys=("j", "j", "c")), 80, 24, "cancel a job"),
        "monitor_details.svg": picture(watched(("batch",), keys=("j", "j", "enter")), 80, 24, "details of a job"),
        "monitor_help.svg": picture(watched(("batch",), keys=("?",)), 80, 24, "help"),
    }


def _machine(tick: int) -> MachineStatus:
    used = 31 + 5 * math.tanh(tick / 50) + 1.5 * math.sin(tick / 9)
    return MachineStatus(
        ram_total_bytes=64 * GB,
        ram_available_bytes=int((64 - used) * GB),
        vram_total_bytes=48 * GB,
        vram_used_bytes=int((36 + 6.5 * math.tanh(tick / 30)) * GB),
        cpu_count=16,
        load_1=3.2,
    )


def _ended(id: str, state: str, prompt: str, took_s: float, error_code: str | None = None) -> JobStatus:
    return JobStatus.model_validate(
        {
            "id": id,
            "state": state,
            "model": "/models/Wan2.2-T2V-A14B-Diffusers",
            "prompt": prompt,
            "started_unix_s": NOW - 160 - took_s,
            "ended_unix_s": NOW - 160,
            "error_code": error_code,
        }
    )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in pictures().items():
        (folder / name).write_text(document)
        print(folder / name)


if __name__ == "__main__":
    main()
