"""Pictures and videos that were made to do harm, through the whole path: the worker refuses them, lives, and works on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.assets import media_files
from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest, Supervisor
from wan_compat.protocol.errors import InvalidRequest, WanCompatError

SIZE = {"height": 64, "width": 96, "num_frames": 5, "num_inference_steps": 1, "seed": 1, "guidance_scale": 1.0}


def request(role: str, path: Path) -> GenerationRequest:
    model = tiny_model("i2v22" if role == "image" else "t2v")
    extra = {"strength": 1.0} if role == "video" else {}
    return GenerationRequest(model=str(model), prompt="p", **{role: str(path)}, **SIZE, **extra)


def test_hostile_files_end_in_a_refusal_and_the_worker_stays(supervisor: Supervisor, tmp_path: Path) -> None:
    path = tmp_path / "file"
    starts = []
    for case, (role, make) in media_files.HOSTILE.items():
        path.write_bytes(make())
        with pytest.raises(InvalidRequest) as caught:
            supervisor.generate(request(role, path))
        assert caught.value.exit_code == 2, case
    sound = {
        "image": media_files.png(96, 64, b"".join(b"\0" + bytes([row] * 288) for row in range(64))),
        "video": media_files.video(np.zeros((5, 64, 96, 3), np.uint8)),
    }
    for role, data in sound.items():
        path.write_bytes(data)
        result = supervisor.generate(request(role, path))
        starts.append(result.timings.worker_start_s)
    assert max(starts) < 1.0 and all(start >= 0 for start in starts)


def test_an_error_text_of_a_decoder_is_cleaned(supervisor: Supervisor, tmp_path: Path) -> None:
    path = tmp_path / "x\x1b[31m.png"
    path.write_bytes(b"\x1b[2Jnot a picture")
    with pytest.raises(WanCompatError) as caught:
        supervisor.generate(request("image", path))
    assert "\x1b" not in caught.value.message
