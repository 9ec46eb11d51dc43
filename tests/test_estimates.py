"""What planning says of every pipeline before anything is loaded, against what workers count: within 15%."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import estimates
from tests.assets.plain_cases import Case, write_media
from tests.assets.tiny_wan import tiny_model
from tests.assets.wide_wan import wide_models
from wan_compat import Supervisor


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_media(tmp_path_factory.mktemp("media"), estimates.VIDEO_FRAMES)


@pytest.fixture(scope="module")
def models() -> dict[str, Path]:
    return wide_models({case.kind for case in estimates.ROWS.values()})


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", estimates.ROWS)
def test_each_phase_takes_what_planning_said_within_15_percent(
    name: str,
    supervisor: Supervisor,
    models: dict[str, Path],
    media: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = estimates.ROWS[name]
    found = estimates.measure(supervisor, models[case.kind], case, media)
    with capsys.disabled():
        print(estimates.line(name, found))
    assert abs(found.off(found.worst)) <= estimates.TOLERANCE, found
    assert abs(found.peak_off) <= estimates.TOLERANCE


def test_a_job_of_blocks_takes_what_planning_said_within_15_percent(supervisor: Supervisor, tmp_path: Path) -> None:
    """One row of the table with a tiny model: its scores outweigh what is not counted in activations."""
    size = {"height": 128, "width": 160, "num_frames": 9, "num_inference_steps": 1}
    case = Case("animate2", "", {"image": "image", "video": "video"}, size)
    found = estimates.measure(supervisor, tiny_model("animate2"), case, write_media(tmp_path, 9))
    assert set(found.counted) == {"text_encode", "denoise_high", "decode"}
    assert abs(found.off(found.worst)) <= estimates.TOLERANCE, found


def test_the_page_has_every_row_and_none_is_off_by_more() -> None:
    """If not: python -m tests.estimates --write"""
    page = estimates.read_page(estimates.DOCUMENT.read_text())
    assert list(page) == list(estimates.ROWS)
    for name, row in page.items():
        peak, worst = row.strip("| ").split(" | ")[3:]
        assert max(abs(int(text.split("%")[0])) for text in (peak, worst)) <= 100 * estimates.TOLERANCE, name
