"""Every task on a tiny model of its kind: media go in as files, and the frames are those of a plain diffusers script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.supervisor.frame_files import png_bytes

pytestmark = pytest.mark.timeout(300)  # the first run on a machine builds eight tiny models

PLAIN_SCRIPT = Path(__file__).resolve().parent / "programs" / "worker_plain_script.py"
WIDTH, HEIGHT, FRAMES = 96, 64, 9
SIZE = {"height": HEIGHT, "width": WIDTH, "num_frames": FRAMES, "num_inference_steps": 2}
PROMPT = "a red ball bounces"


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_media(tmp_path_factory.mktemp("media"))


def make_media(folder: Path) -> dict[str, Any]:
    """Pictures of the job's size, and two videos that lose nothing: FFV1 in a Matroska file, made by PyAV."""
    random = np.random.default_rng(3)
    frames = random.integers(0, 256, (FRAMES + 2, HEIGHT, WIDTH, 3), np.uint8)
    masks = np.repeat(np.where(random.random((FRAMES, HEIGHT, WIDTH, 1)) < 0.5, 0, 255), 3, axis=3).astype(np.uint8)
    found: dict[str, Any] = {"video": str(folder / "v.mkv"), "mask": str(folder / "m.mkv")}
    found["frames"] = write_pictures(folder, "v", frames[:FRAMES])
    found["masks"] = write_pictures(folder, "m", masks)
    write_video(found["video"], frames)
    write_video(found["mask"], masks)
    return found


def write_pictures(folder: Path, stem: str, frames: np.ndarray) -> list[str]:
    paths = []
    for number, frame in enumerate(frames):
        path = folder / f"{stem}{number}.png"
        path.write_bytes(png_bytes(memoryview(np.ascontiguousarray(frame).reshape(-1)), frame.shape[1], frame.shape[0]))
        paths.append(str(path))
    return paths


def write_video(path: str, frames: np.ndarray) -> None:
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "bgr0"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture.reformat(format="bgr0")))
        container.mux(stream.encode())


# Kind, what the request is given, how the script calls its pipeline for it.
CASES: dict[str, tuple[str, dict[str, str], dict[str, str], dict[str, Any]]] = {
    "t2v": ("t2v", {}, {}, {"class": "WanPipeline"}),
    "two experts": ("a14b", {}, {}, {"class": "WanPipeline"}),
    "5B from text": ("ti2v", {}, {}, {"class": "WanPipeline"}),
    "5B from a picture": ("ti2v", {"image": "0"}, {}, {"class": "WanImageToVideoPipeline"}),
    "i2v with CLIP": ("i2v", {"image": "0"}, {}, {}),
    "i2v, two experts": ("i2v22", {"image": "0"}, {}, {}),
    "first and last frame": ("flf2v", {"image": "0", "last_image": "1"}, {}, {}),
    "first and last frame, no CLIP": ("i2v22", {"image": "0", "last_image": "1"}, {}, {}),
    "v2v": ("t2v", {"video": "video"}, {"strength": "0.5"}, {"class": "WanVideoToVideoPipeline"}),
    "vace, control": ("vace", {"video": "video", "mask": "mask"}, {"conditioning_scale": "0.7"}, {}),
    "vace, references": ("vace", {"references": "2,3"}, {}, {}),
    "vace, two experts": ("vace22", {"video": "video", "mask": "mask", "references": "2"}, {}, {}),
    "t2i": ("t2v", {"task": "t2i"}, {}, {"class": "WanPipeline"}),
}


def request_for(case: str, media: dict[str, Any]) -> GenerationRequest:
    kind, given, options, _ = CASES[case]
    fields: dict[str, Any] = {name: float(value) for name, value in options.items()}
    for name, value in given.items():
        if name == "references":
            fields[name] = tuple(media["frames"][int(number)] for number in value.split(","))
        elif name in ("video", "mask", "task"):
            fields[name] = media.get(value, value)
        else:
            fields[name] = media["frames"][int(value)]
    size = {name: value for name, value in SIZE.items() if case != "t2i" or name != "num_frames"}
    return GenerationRequest(model=str(tiny_model(kind)), prompt=PROMPT, seed=5, guidance_scale=4.0, **size, **fields)


def plain_arguments(case: str, media: dict[str, Any]) -> dict[str, Any]:
    _, given, options, call = CASES[case]
    arguments: dict[str, Any] = {"prompt": PROMPT, "seed": 5, "guidance_scale": 4.0, "output_type": "np"} | SIZE | call
    arguments |= {name: float(value) for name, value in options.items()}
    for name, value in given.items():
        if name == "references":
            arguments["reference_images"] = [media["frames"][int(number)] for number in value.split(",")]
        elif name in ("video", "mask"):
            arguments[name] = media["frames" if name == "video" else "masks"]
        elif name != "task":
            arguments[name] = media["frames"][int(value)]
    if call.get("class") == "WanVideoToVideoPipeline":
        del arguments["num_frames"]
    if given.get("task") == "t2i":
        arguments["num_frames"] = 1
    return arguments | {"threads": len(os.sched_getaffinity(0))}


@pytest.fixture(scope="module")
def plain(media: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Frames of a script without wan-compat, all cases in one process: it imports for as long as it computes."""
    folder = tmp_path_factory.mktemp("plain")
    outputs = {case: folder / f"{number}.npy" for number, case in enumerate(CASES)}
    command = [sys.executable, str(PLAIN_SCRIPT), "--onednn"]
    for case, output in outputs.items():
        command += [str(tiny_model(CASES[case][0])), json.dumps(plain_arguments(case, media)), str(output)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return {case: np.load(output) for case, output in outputs.items()}


@pytest.mark.parametrize("case", CASES)
def test_frames_equal_a_plain_script_that_is_given_the_same_pictures(case, supervisor, media, plain):
    result = supervisor.generate(request_for(case, media))
    assert result.frames is not None and result.warnings == []
    expected = plain[case]
    assert result.frames.frames.shape == expected.shape
    assert int((result.frames.frames != expected).sum()) == 0
    assert expected.std() > 3  # a constant picture would be equal too
    assert result.metadata.pipeline_class == CASES[case][3].get("class", result.metadata.pipeline_class)


def test_what_was_given_makes_a_difference(supervisor, media):
    first, second = (
        supervisor.generate(
            request_for("i2v, two experts", media).model_copy(update={"image": media["frames"][number]})
        )
        for number in (0, 1)
    )
    assert first.frames is not None and second.frames is not None
    assert (first.frames.frames != second.frames.frames).any()


def test_a_picture_of_another_shape_is_cut_in_the_middle_and_told(supervisor, media, tmp_path):
    wide = np.zeros((HEIGHT, 4 * WIDTH, 3), np.uint8)
    wide[:, : 3 * WIDTH // 2] = wide[:, 5 * WIDTH // 2 :] = 255  # what is cut off
    (path,) = write_pictures(tmp_path, "wide", wide[None])
    (middle,) = write_pictures(tmp_path, "middle", np.zeros((1, HEIGHT, WIDTH, 3), np.uint8))
    request = request_for("i2v, two experts", media)
    cut, exact = (supervisor.generate(request.model_copy(update={"image": image})) for image in (path, middle))
    assert cut.warnings == [f"image: {4 * WIDTH}x{HEIGHT} was resized to {WIDTH}x{HEIGHT}, 75% cut off at the edges"]
    assert exact.warnings == []
    assert cut.frames is not None and exact.frames is not None
    assert (cut.frames.frames == exact.frames.frames).all()


def test_too_short_a_video_is_refused_with_its_length_and_the_worker_goes_on(supervisor, media):
    request = request_for("v2v", media)
    with pytest.raises(InvalidRequest) as caught:
        supervisor.generate(request.model_copy(update={"num_frames": 17}))
    assert "the video has 11 frames, and 17 were asked for" in caught.value.message
    assert caught.value.fixes[0].startswith("use --num-frames 9") and caught.value.exit_code == 2
    assert supervisor.generate(request).success


def test_progress_of_video_to_video_counts_the_steps_that_are_taken(supervisor, media):
    from wan_compat.supervisor import events as ev

    job = supervisor.submit(request_for("v2v", media).model_copy(update={"num_inference_steps": 4}))
    seen = [(e.step, e.total) for e in job.events() if isinstance(e, ev.Progress) and e.phase == "denoise"]
    assert seen == [(1, 2), (2, 2)]
