"""What the screen shows: each size, each set of characters, and whatever others wrote."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from tests.supervisor.monitor.statuses import HOSTILE, a_job, a_status, a_worker, hostile_status
from wan_compat.protocol.status import MachineStatus, SupervisorStatus
from wan_compat.supervisor.monitor import model
from wan_compat.supervisor.monitor.characters import (
    ASCII,
    UNICODE,
    Characters,
    characters_for,
    model_name,
    show_clock,
    show_length,
    show_rate,
    show_share,
    show_size,
)
from wan_compat.supervisor.monitor.reducer import reduce
from wan_compat.supervisor.monitor.view import render, render_once

GB = 1_000_000_000


def watching(
    statuses: Sequence[SupervisorStatus] = (), keys: Iterable[str] = (), later_s: float = 0.0, read_only: bool = False
) -> model.State:
    events: list[model.Event] = [model.Tick(0.0, 1e9), model.Found(tuple(status.id for status in statuses))]
    events += [model.Heard(status.id, status) for status in statuses]
    state = model.State(read_only=read_only)
    for event in (*events, model.Tick(later_s, 1e9), *map(model.Pressed, keys)):
        state, _ = reduce(state, event)
    return state


def screen(state: model.State, width: int = 80, height: int = 24, chars: Characters = UNICODE) -> str:
    lines = render(state, width, height, chars)
    assert len(lines) == height
    assert {cell_len(line.plain) for line in lines} == {width}
    return "\n".join(line.plain for line in lines)


def test_80x24_shows_workers_jobs_queue_and_events() -> None:
    shown = screen(watching([a_status()]))
    for words in (
        "1 supervisor  2 workers  1 running  2 waiting",
        "RAM  ███████████░░░░░░░░░ 14.0/25.0 GB",
        "load 1.5 on 2 cores",
        "▸aaaa  python app.py  pid 4711                      2 waiting  0 done  1 failed",
        "w1    4720    busy     safe  A Wan2.1-T2V-1.3B-D…   98% ████░░░░ 9.1/20.0 GB",
        "└ j12   denoise  ███░░░░░░░ 12/40   1.2 s/it  0:34 left  a red fox in snow",
        "w2    4721    idle     safe  A",
        "· j13   waits #1    a blue ball",
        "· j14   waits #2    priority 5  a green kite",
        "✗ j11   failed     0:49     model_not_found  a red fox in snow",
        "!! j11  refused: pipeline.py is not approved",
        "j k select  enter details  c cancel  x kill  p pause  / filter  ? help  q quit",
    ):
        assert words in shown, words
    assert "VRAM" not in shown  # there is no GPU


def test_120x40_has_room_for_history_vram_and_whole_names() -> None:
    machine = MachineStatus(
        ram_total_bytes=64 * GB, ram_available_bytes=32 * GB, vram_total_bytes=48 * GB, vram_used_bytes=40 * GB
    )
    worker = a_worker(vram_bytes=21_400_000_000)
    state = watching([a_status(workers=(worker,), machine=machine)])
    shown = screen(state, 120, 40)
    for words in ("VRAM", "40.0/48.0 GB", "TIER", "Wan2.1-T2V-1.3B-Diffusers", "21.4 GB", "1/2 workers", "s sort"):
        assert words in shown, words


def test_trust_is_a_word_and_red() -> None:
    status = a_status(mode="trust", workers=(a_worker(mode="trust"),))
    lines = render(watching([status]), 80, 24, UNICODE)
    found = [line for line in lines if "TRUST" in line.plain]
    assert len(found) == 2  # the supervisor that allows it, and the worker that does it
    for line in found:
        place = line.plain.index("TRUST")
        assert any(span.start <= place < span.end and "red" in str(span.style) for span in line.spans)
    assert "safe" not in found[1].plain


def test_states_are_told_in_words() -> None:
    status = a_status(paused=True, draining=True, serves=True, read_only=True)
    shown = screen(watching([status]), 120)
    for word in ("PAUSED", "DRAINING", "serves", "read-only"):
        assert word in shown
    assert "READ-ONLY" in screen(watching([status], read_only=True))
    assert "c cancel" not in screen(watching([status], read_only=True))


def test_unusual_consumption_and_further_attempts_are_told() -> None:
    status = a_status(
        workers=(a_worker(unusual=("spins without progress",)),), running=(a_job(attempt=3, video=1, num_videos=4),)
    )
    shown = screen(watching([status]), 120)
    assert "! spins without progress" in shown
    assert "attempt 3" in shown and "video 2/4" in shown


def test_who_does_not_answer_is_shown_as_such() -> None:
    shown = screen(watching([a_status()], later_s=12.0))
    assert "no answer for 0:12" in shown
    assert "a red fox" in shown  # what was last heard
    state = watching([a_status()])
    gone, _ = reduce(state, model.Found(()))
    assert "gone" in screen(gone)
    assert "a red fox" not in screen(gone)
    failed, _ = reduce(state, model.Failed("aaaa", "it speaks version 9"))
    assert "it speaks version 9" in screen(failed)


def test_nothing_running_says_what_to_do() -> None:
    assert "Looking for supervisors" in screen(model.State())
    shown = screen(watching())
    assert "No supervisor of yours is running." in shown
    assert "wan-compat generate path/to/model" in shown
    assert "Nothing matches 'zzz'" in screen(watching([a_status()], ["/", *"zzz", "enter"]))


def test_a_filter_and_an_order_that_is_not_the_usual_one_are_always_in_sight() -> None:
    assert "filter: fox  esc shows all" in screen(watching([a_status()], ["/", *"fox", "enter"]))
    assert "by memory↑" in screen(watching([a_status()], ["s", "r"]))
    assert "CPU MEMORY" in screen(watching([a_status()], ["s", "r"]))


def test_questions_name_what_they_are_about() -> None:
    assert "Cancel j12 (a red fox in snow)?  y yes, n no" in screen(watching([a_status()], ["j", "j", "c"]))
    assert "Kill worker w1 in the middle of j12?  y yes, n no" in screen(watching([a_status()], ["j", "x"]))
    two = [a_status(), a_status("bbbb")]
    assert "Cancel j12 of bbbb (a red fox" in screen(watching(two, ["G", "k", "k", "k", "k", "c"]))


def test_the_selected_line_is_marked_and_stays_in_sight() -> None:
    status = a_status(workers=tuple(a_worker(f"w{number}", job=None) for number in range(64)))
    for moves in (0, 5, 30, 64, 69):
        state = watching([status], ["j"] * moves)
        marked = [line for line in render(state, 80, 24, UNICODE) if line.plain.startswith("▸")]
        assert len(marked) == 1
        assert state.selected is not None
        assert state.selected.id in marked[0].plain
        assert "reverse" in str(marked[0].style)


def test_details_tell_all_of_it() -> None:
    prompt = " ".join(f"word{number}" for number in range(60))
    job = a_job(prompt=prompt, error="it broke", error_code="worker_crashed", output="out/fox.mp4", group="night")
    shown = screen(watching([a_status(running=(job,))], ["j", "j", "enter"]), 80, 30)
    for words in ("12 of 40, 1.2 s/it, 0:34 left", "worker_crashed: it broke", "out/fox.mp4", "night", "9.1/20.0 GB"):
        assert words in shown, words
    assert all(word in shown for word in prompt.split())  # wrapped, not cut
    assert "tier A" in screen(watching([a_status()], ["j", "enter"]))
    assert "takes      orders" in screen(watching([a_status()], ["enter"]))


def test_help_and_events_fit_80x24() -> None:
    shown = screen(watching([a_status()], ["?"]))
    assert "kill the selected worker" in shown
    assert "…" not in shown
    assert "what is shown of it is old" in shown  # the last line of the page
    shown = screen(watching([a_status()], ["v"]))
    assert "worker w2 started" in shown
    assert "esc back  j k scroll  q quit" in shown


def test_events_of_all_supervisors_stand_newest_first_and_say_whose() -> None:
    shown = screen(watching([a_status(), a_status("bbbb")], ["v"]))
    rows = [line for line in shown.splitlines() if "refused" in line or "started" in line]
    assert [word for row in rows for word in ("aaaa", "bbbb") if word in row] == ["aaaa", "bbbb", "aaaa", "bbbb"]
    assert "refused" in rows[0]
    assert "refused" in rows[1]


# -- characters and hostile text ---------------------------------------------------------------------------------------

PAGES = (
    [],
    ["?"],
    ["v"],
    ["enter"],
    ["j", "enter"],
    ["j", "j", "enter"],
    ["j", "j", "c"],
    ["j", "x"],
    ["/", "é"],
    ["e"],
)


@pytest.mark.parametrize("keys", PAGES, ids=lambda keys: "".join(keys) or "list")
@pytest.mark.parametrize("chars", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_hostile_text_and_figures_stay_within_their_cells(keys: list[str], chars: Characters) -> None:
    state = watching([hostile_status(), a_status("bbbb", program=HOSTILE)], keys)
    for width, height in ((80, 24), (120, 40), (40, 12), (200, 60)):
        shown = screen(state, width, height, chars)
        for char in shown.replace("\n", ""):
            assert unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn"), repr(char)
        if chars is ASCII:
            assert shown.isascii()


def test_markup_is_text() -> None:
    job = a_job(prompt="[bold red]x[/] :warning: [link=https://evil.example]y[/link]")
    lines = render(watching([a_status(running=(job,))]), 160, 40, UNICODE)
    line = next(line for line in lines if "evil" in line.plain)
    assert "[bold red]x[/] :warning: [link=https://evil.example]y[/link]" in line.plain
    assert not any("link" in str(span.style) for span in line.spans)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.integers(1, 260), st.integers(1, 90))
def test_every_text_at_every_size_fills_the_screen_exactly(text: str, width: int, height: int) -> None:
    job = a_job(prompt=text, group=text)
    status = a_status(program=text, running=(job,), workers=(a_worker(model=text, unusual=(text,)),))
    for keys in ([], ["j", "j", "enter"]):
        screen(watching([status], keys), width, height)


def test_the_screen_of_once_has_every_line_and_no_keys() -> None:
    status = a_status(workers=tuple(a_worker(f"w{number}", job=None) for number in range(64)))
    shown = [line.plain for line in render_once(watching([status]), 100, ASCII)]
    assert sum(" busy " in line for line in shown) == 64
    assert not any("quit" in line for line in shown)
    assert all(len(line) == 100 for line in shown)


@pytest.mark.parametrize(
    ("encoding", "environ", "chars"),
    [
        ("utf-8", {"LANG": "de_DE.UTF-8"}, UNICODE),
        ("utf-8", {"LC_ALL": "C", "LANG": "de_DE.UTF-8"}, ASCII),
        ("utf-8", {"LC_CTYPE": "C.utf8"}, UNICODE),
        ("utf-8", {}, UNICODE),
        ("ascii", {"LANG": "de_DE.UTF-8"}, ASCII),
        ("iso8859-1", {}, ASCII),
        (None, {}, ASCII),
    ],
)
def test_ascii_is_drawn_where_utf_8_is_not_promised(
    encoding: str | None, environ: dict[str, str], chars: Characters
) -> None:
    assert characters_for(encoding, environ) is chars


def test_figures_are_short_whatever_they_are() -> None:
    sizes = (0, 840_000_000, 9_100_000_000, 121 * GB)
    assert [show_size(count) for count in sizes] == ["0 MB", "840 MB", "9.1 GB", "121 GB"]
    assert show_share(500_000_000, 900_000_000) == "500/900 MB"
    shares = ((9_100_000_000, 20 * GB), (840_000_000, 20 * GB), (31_000_000, 121 * GB))
    assert [show_share(*share) for share in shares] == ["9.1/20.0 GB", "840M/20.0 GB", "31M/121 GB"]
    assert [show_length(value) for value in (None, 42, 7380, 9e4 * 3)] == ["", "0:42", "2:03:00", "3 days"]
    assert [show_rate(value) for value in (None, 0, 0.04, 1.24)] == ["", "", "0.04 s/it", "1.2 s/it"]
    assert [show_rate(value) for value in (95.4, 300)] == ["95.4 s/it", "300 s/it"]
    for show in (show_length, show_rate, show_clock):
        assert len(show(1e300)) <= 9
    assert len(show_size(2**62)) <= 8
    assert len(show_share(2**62, 2**62)) <= 14


def test_a_bar_is_full_only_when_all_is_used_and_empty_only_when_nothing_is() -> None:
    assert [len(UNICODE.bar(share, 10)[0]) for share in (-1, 0, 0.001, 0.5, 0.999, 1, 7)] == [0, 0, 1, 5, 9, 10, 10]


def test_history_is_drawn_from_low_to_high_and_noise_is_flat() -> None:
    assert UNICODE.sparkline((0.2, 0.5, 0.9), 5) == "  ▁▄█"
    assert len(set(UNICODE.sparkline((0.50, 0.503, 0.501), 3))) == 1
    assert UNICODE.sparkline((), 3) == "   "


def test_models_go_by_the_name_a_person_knows() -> None:
    assert model_name("/models/Wan2.1-T2V/") == "Wan2.1-T2V"
    assert model_name("/hub/models--Wan-AI--Wan2.2/snapshots/0a1b") == "Wan-AI/Wan2.2"
    assert model_name("/") == "/"


def test_lines_are_compared_by_what_they_show() -> None:
    """The terminal writes only lines that changed; that rests on this."""
    state = watching([a_status()])
    assert render(state, 80, 24, UNICODE) == render(state, 80, 24, UNICODE)
    assert all(isinstance(line, Text) for line in render(state, 80, 24, UNICODE))
