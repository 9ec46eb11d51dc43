"""The gallery of a batch, in a real browser: hostile text stays text, nothing is fetched, filters and players work."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.browser import BROWSER, Browser
from wan_compat.protocol.errors import OutputNotWritable
from wan_compat.protocol.values import FrameSpec
from wan_compat.supervisor import gallery_page, posters
from wan_compat.supervisor.encode_file import encode_file
from wan_compat.supervisor.gallery import GalleryEntry, relative_output, write_gallery

HOSTILE = (
    '<img src=x onerror="document.title=1">',
    "</script><script>document.title=2</script>",
    "--><svg/onload=document.title=3>",
    '" onmouseover="document.title=4" x="',
    "'><iframe src=https://example.com></iframe>",
    "@@script@@ @@cards@@ ${document.title=5}",
    "\u202egpj.exe\u2066 \x1b]0;owned\x07 \ud800",
    "</style><style>@import 'https://example.com/x.css';</style>",
    "&lt;img src=x onerror=document.title=6&gt;",
    '<meta http-equiv=refresh content="0;url=https://example.com">',
)
NASTY_NAMES = ("javascript:document.title=7.mp4", "a#b?c%41 \"q'.mp4", "x & <b>.mp4", "ünï.mp4")


def _clip(path: Path, *, width: int = 64, height: int = 48, frames: int = 8) -> None:
    rows, columns = np.mgrid[0:height, 0:width]
    pictures = []
    for index in range(frames):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[..., 0], picture[..., 1], picture[..., 2] = columns * 4 % 256, rows * 5 % 256, index * 30
        pictures.append(memoryview(picture))
    encode_file(pictures, FrameSpec(width=width, height=height, num_frames=frames), 8, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos, some of bad names, and the page about them and about what failed."""
    place = tmp_path_factory.mktemp("gallery")
    _clip(place / "0001-fox.mp4")
    for name in NASTY_NAMES:
        os.link(place / "0001-fox.mp4", place / name)
    entries = [
        GalleryEntry(
            1, "done", "A red fox", seed=42, model="org/one", output="0001-fox.mp4",
            width=64, height=48, num_frames=8, fps=8, seconds=4.0, tier="A", timings={"load_s": 1.0, "denoise_s": 3.0},
        ),
        *(
            GalleryEntry(
                2 + place_in_list, "done", f"nasty name {place_in_list}", seed=7, model="org/two", output=name,
                width=64, height=48, num_frames=8, fps=8, seconds=2.0, mode="trust",
            )
            for place_in_list, name in enumerate(NASTY_NAMES)
        ),
        *(
            GalleryEntry(
                10 + number, "failed", text, negative_prompt=text, model=text, label=text, error=text, tier=text,
                error_code=text, mode=text, format=text, output=text, poster=text, timings={text: 1.0},
                recovery=[{"error": text, "action": text, "outcome": text}],
            )
            for number, text in enumerate(HOSTILE)
        ),
        *(
            GalleryEntry(30 + number, "done", text, model=text, label=text, output=text, mode=text, format=text)
            for number, text in enumerate((*HOSTILE, "https://example.com/x.mp4", "//example.com/x.mp4", "../../x.mp4"))
        ),
        GalleryEntry(60, "waiting", "A quiet library", seed=43, model="org/one"),
    ]  # fmt: skip
    write_gallery(place, entries, title='Foxes <script>document.title="owned"</script>', poster_time_s=60)
    return place


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if BROWSER is None:
        pytest.skip("there is no chromium-headless-shell here")
    with Browser() as started:
        yield started


def test_hostile_text_executes_nothing_and_asks_for_nothing_outside(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html")
    browser.evaluate("document.querySelectorAll('details').forEach((part) => part.open = true)")
    browser.evaluate(
        "(async () => { for (const card of document.querySelectorAll('.card')) {"
        " card.scrollIntoView(); await new Promise(requestAnimationFrame); } })()"
    )
    assert browser.evaluate("document.title") == 'Foxes <script>document.title="owned"</script>'
    assert browser.evaluate("document.scripts.length") == 1
    assert browser.evaluate("document.styleSheets.length") == 1
    assert (
        browser.evaluate(
            "document.querySelectorAll('iframe, object, embed, base, form, meta[http-equiv=refresh]').length"
        )
        == 0
    )
    handlers = "[...document.querySelectorAll('*')].flatMap((part) => part.getAttributeNames()).filter((name) => name.startsWith('on'))"
    assert browser.evaluate(handlers) == []
    # The very text, but for what cleaning made visible.
    prompts = browser.evaluate("[...document.querySelectorAll('.failed .prompt')].map((part) => part.textContent)")
    assert prompts[0] == HOSTILE[0] and prompts[5] == HOSTILE[5]
    assert prompts[6] == "\\u{202e}gpj.exe\\u{2066} \\x1b]0;owned\\x07 \\u{d800}"
    here = folder.as_uri() + "/"
    outside = [url for url in browser.requests if not url.startswith((here, "data:image/"))]
    assert outside == []
    assert browser.messages == []


def test_the_policy_stops_a_script_and_a_request_that_got_in_nevertheless(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html")
    refused = browser.evaluate(
        "new Promise((resolve) => { const refused = [];"
        " addEventListener('securitypolicyviolation', (event) => {"
        "   refused.push(event.effectiveDirective); if (refused.length === 4) resolve(refused.sort()); });"
        " const part = document.createElement('div');"
        ' part.innerHTML = \'<img src=https://example.com/x.png onerror="document.title=8"><p style="color:red">\';'
        " document.body.append(part);"
        " const script = document.createElement('script'); script.textContent = 'document.title=9';"
        " document.body.append(script); })"
    )
    assert refused == ["img-src", "script-src-attr", "script-src-elem", "style-src-attr"]
    assert "Foxes" in browser.evaluate("document.title")


SHOWN = "[...document.querySelectorAll('.card:not([hidden])')].map((card) => Number(card.dataset.index))"


@pytest.mark.parametrize(
    ("fragment", "shown"),
    [
        ("#state=waiting", [60]),
        ("#seed=42", [1]),
        ("#text=RED+fox", [1]),
        ("#text=nasty&sort=newest", [5, 4, 3, 2]),
        ("#model=org%2Fone", [1, 60]),
        ("#model=org%2Fone&state=done", [1]),
        ("#state=done&text=nothing+like+it", []),
    ],
)
def test_filters_show_what_they_say(browser: Browser, folder: Path, fragment: str, shown: list[int]) -> None:
    browser.open(folder / "report.html", fragment)
    assert browser.evaluate(SHOWN) == shown
    assert browser.evaluate("document.getElementById('nothing').hidden") is bool(shown)
    assert browser.evaluate("document.getElementById('shown').textContent").startswith(f"{len(shown)} of ")


def test_filters_work_by_mouse_and_keyboard_and_can_be_cleared(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html")
    everything = browser.evaluate(SHOWN)
    browser.press("/")
    browser.type("fox")
    browser.wait_for(f"{SHOWN}.length === 1")
    assert browser.evaluate("location.hash") == "#text=fox"
    browser.click("#clear")
    assert browser.evaluate(SHOWN) == everything
    browser.click('.states [data-state="waiting"]')
    assert browser.evaluate(SHOWN) == [60]
    browser.click("#clear")
    browser.evaluate("document.getElementById('sort').value = 'slowest';"
                     "document.getElementById('sort').dispatchEvent(new Event('input'))")  # fmt: skip
    assert browser.evaluate(SHOWN)[0] == 1
    browser.click(".card .seed")
    assert browser.evaluate(SHOWN) == [1]


def test_every_video_is_there_and_plays_under_the_pointer_and_in_the_viewer(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html", "#state=done")
    links = browser.evaluate("[...document.querySelectorAll('a.media')].map((link) => link.href)")
    names = [urllib.parse.unquote(link.removeprefix(folder.as_uri() + "/")) for link in links]
    assert set(NASTY_NAMES) <= set(names)
    assert all(link.startswith(folder.as_uri() + "/") for link in links)
    first = "a.media[href='./0001-fox.mp4']"
    browser.move_to(first)
    browser.wait_for(f'document.querySelector("{first} video")?.currentTime > 0')
    browser.move_to("h1")
    browser.wait_for(f'!document.querySelector("{first} video")')
    # A name that looks like a script is a file like any other.
    odd = "a.media[title^='javascript']"
    browser.evaluate(f'document.querySelector("{odd}").focus()')
    browser.press("Enter")
    browser.wait_for("document.querySelector('#viewer[open] .stage video')?.videoWidth === 64")
    assert "Foxes" in browser.evaluate("document.title")
    browser.press("ArrowLeft")
    browser.wait_for("document.querySelector('#viewer .prompt').textContent === 'A red fox'")
    browser.press("Escape")
    browser.wait_for("!document.getElementById('viewer').open")
    assert browser.messages == []


def test_a_thousand_entries_open_at_once_and_load_no_video_unasked(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    os.link(folder / "0001-fox.mp4", tmp_path / "v.mp4")
    entries = [
        GalleryEntry(number, "done", f"prompt {number} " + "long " * 40, seed=number, model="org/one", output="v.mp4",
                     num_frames=8, fps=8, seconds=float(number))
        for number in range(1, 1001)
    ]  # fmt: skip
    page = write_gallery(tmp_path, entries, title="Many")
    assert page.stat().st_size < 8 << 20
    browser.open(page, "#sort=slowest")
    assert browser.evaluate("document.querySelectorAll('.card').length") == 1000
    assert browser.evaluate(SHOWN)[:2] == [1000, 999]
    assert browser.evaluate("document.querySelectorAll('video').length") == 0
    assert [url for url in browser.requests if url.endswith(".mp4")] == []


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, folder: Path) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    browser.open(folder / "report.html")
    assert browser.evaluate("document.documentElement.scrollWidth") == 360
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_light_and_dark_follow_the_system_and_the_button(browser: Browser, folder: Path) -> None:
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.open(folder / "report.html")
        before = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (before == "rgb(17, 17, 20)") is (scheme == "dark")
        browser.click("#theme")
        assert (browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 17, 20)") is (
            scheme == "light"
        )


def test_the_page_is_whole_without_its_script(folder: Path) -> None:
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<article ") == 29
    assert page.count("<script>") == page.count("</script>") == 1
    assert not re.search(r"https?://", re.sub(r">[^<]*<", "><", re.sub(r'="[^"]*"', "", page.split("<script>")[0])))


def test_posters_are_small_pictures_in_the_page_and_beyond_its_room_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.link(folder / "0001-fox.mp4", tmp_path / "a.mp4")
    os.link(folder / "0001-fox.mp4", tmp_path / "b.mp4")
    entries = [GalleryEntry(1, "done", output="a.mp4"), GalleryEntry(2, "done", output="b.mp4")]
    page = write_gallery(tmp_path, entries, title="t").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 2
    assert not (tmp_path / posters.POSTER_FOLDER).exists()

    monkeypatch.setattr(posters, "MAX_EMBEDDED_BYTES", 10)
    beside = write_gallery(tmp_path, entries, title="t").read_text()
    names = re.findall(r'<img src="\./(report_posters/[0-9a-f]{24}\.jpg)"', beside)
    assert len(names) == 2 and all((tmp_path / name).read_bytes().startswith(b"\xff\xd8\xff") for name in names)
    write_gallery(tmp_path, entries[:1], title="t")
    assert len(os.listdir(tmp_path / posters.POSTER_FOLDER)) == 1


def test_posters_that_cannot_be_had_cost_only_themselves(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    os.mkfifo(tmp_path / "pipe.mp4")
    outside = tmp_path / "folder"
    outside.mkdir()
    entries = [
        GalleryEntry(1, "done", output="broken.mp4"),
        GalleryEntry(2, "done", output="pipe.mp4"),
        GalleryEntry(3, "done", output="folder"),
        GalleryEntry(4, "done", output="gone.mp4"),
        GalleryEntry(5, "done", output="broken.mp4", poster=b"GIF89a" + bytes(100)),
        GalleryEntry(6, "done", output="array.npy", poster=b"\x89PNG\r\n\x1a\n" + bytes(100)),
    ]
    page = write_gallery(tmp_path, entries, title="t").read_text()
    assert page.count("<article ") == 6
    assert page.count("<img ") == 1


def test_impossible_figures_of_a_damaged_journal_do_not_break_the_page(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    page = write_gallery(
        tmp_path,
        [
            GalleryEntry(1, "done", seconds=nan, num_frames=0, fps=0.0, timings={"load_s": inf, "decode_s": -1.0}),
            GalleryEntry(2, "weird", seconds=-5.0, width=0, height=10),  # type: ignore[arg-type]
        ],
        title="",
    ).read_text()
    assert "nan" not in page.split("<main")[1] and "inf" not in page.split("<main")[1].split("</main")[0].replace(
        "info", ""
    )


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("a.mp4", True),
        ("sub/a.mp4", True),
        ("javascript:x.mp4", True),
        ("", False),
        ("/etc/passwd", False),
        ("../a.mp4", False),
        ("sub/../../a.mp4", False),
        ("./a.mp4", False),
        ("//host/a.mp4", False),
        ("a\0.mp4", False),
        ("\\\\host\\a.mp4", False),
    ],
)
def test_only_names_within_the_folder_become_links(name: str, inside: bool) -> None:
    assert (relative_output(name) == name) is inside


def test_the_page_names_no_home_folder_and_no_token(tmp_path: Path) -> None:
    home = os.path.expanduser("~")
    page = write_gallery(
        tmp_path,
        [GalleryEntry(1, "failed", model=f"{home}/models/wan", error=f"cannot read {home}/x with hf_{'a' * 30}")],
        title="t",
    ).read_text()
    assert f"{home}/models" not in page and "~/models/wan" in page
    assert "hf_aaaa" not in page


def test_a_folder_that_is_not_there_is_an_error_and_an_older_page_stays(tmp_path: Path) -> None:
    with pytest.raises(OutputNotWritable):
        write_gallery(tmp_path / "gone", [], title="t")
    first = write_gallery(tmp_path, [], title="first").read_text()
    assert "first" in first and sorted(os.listdir(tmp_path)) == ["report.html"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.256, "0.26 s"), (9.04, "9.0 s"), (42.4, "42 s"), (185, "3 min 05 s"), (7385, "2 h 03 min")],
)
def test_lengths_read_as_people_say_them(seconds: float, words: str) -> None:
    assert gallery_page.duration(seconds) == words


@pytest.mark.parametrize(
    ("model", "short"),
    [
        ("Wan-AI/Wan2.2", "Wan-AI/Wan2.2"),
        ("~/.cache/huggingface/hub/models--Wan-AI--Wan2.2/snapshots/abc", "Wan-AI/Wan2.2"),
        ("/srv/models/tiny/", "tiny"),
        ("tiny", "tiny"),
        ("/", "/"),
    ],
)
def test_models_are_named_without_their_folders(model: str, short: str) -> None:
    assert gallery_page.short_model(model) == short
