"""Against a hub on this machine, with the real program that fetches in its own process."""

from __future__ import annotations

import fcntl
import functools
import http.server
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs.fake_hub import (
    COMMIT,
    FakeHub,
    entry,
    files_of,
    send,
    send_range,
    send_slowly,
    send_without_end,
)
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import (
    DiskExceeded,
    FetchFailed,
    InvalidRequest,
    ModelCorrupt,
    ModelNotFound,
    RefusedByPolicy,
    RemoteCodeRefused,
)
from wan_compat.protocol.values import Mode
from wan_compat.supervisor import downloader, hub_process
from wan_compat.supervisor.downloader import download_code, download_model, ensure_model
from wan_compat.supervisor.hub_process import Hub, user_hub
from wan_compat.supervisor.inspection.locate import locate

DEMO = Path(__file__).parents[2] / "wan_compat" / "data" / "demo_model"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
ID = "org/tiny"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloader, "LIST_WAITS_S", ())
    return tmp_path / "hub" / "models--org--tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub({**files_of(DEMO), "pipeline.py": b"raise SystemExit\n", "evil.bin": b"x"}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def index_only(**changes: object) -> dict[str, bytes]:
    """A repository of one small part, for what does not need a whole model."""
    index = {"_class_name": "WanPipeline", "scheduler": ["diffusers", "UniPCMultistepScheduler"], **changes}
    return {"model_index.json": json.dumps(index).encode(), "scheduler/scheduler_config.json": b"{}"}


def start(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> FakeHub:
    running = FakeHub(files)
    monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
    return running


def test_a_model_is_fetched_at_its_commit_into_the_cache_that_other_tools_use(hub: FakeHub, cache: Path) -> None:
    told: list[tuple[str, int, int]] = []
    with pytest.raises(ModelNotFound):
        locate(ID)
    place, got = ensure_model(ID, Policy(), progress=lambda *values: told.append(values))
    assert got is not None
    assert (place.repository, place.revision) == (ID, COMMIT) == (got.repository, got.commit)
    snapshot = cache / "snapshots" / COMMIT
    admitted = {path: content for path, content in files_of(DEMO).items() if path != "README.md"}
    assert files_of(snapshot) == admitted
    assert (cache / "refs" / "main").read_text() == COMMIT
    assert all((snapshot / path).is_symlink() for path in admitted)
    assert told[-1][1] == told[-1][2]
    assert not list(cache.rglob("*.incomplete"))
    assert {item.path for item in got.skipped} == {"README.md", "pipeline.py", "evil.bin"}
    from huggingface_hub import try_to_load_from_cache

    assert try_to_load_from_cache(ID, WEIGHTS, cache_dir=str(cache.parent)) == str(snapshot / WEIGHTS)
    # What is there is used as it is, and nobody is asked.
    asked = len(hub.requests)
    assert ensure_model(ID, Policy())[1] is None
    assert len(hub.requests) == asked


def test_code_is_never_fetched_in_safe_mode_and_comes_along_in_trust_mode(hub: FakeHub, cache: Path) -> None:
    download_model(ID, Policy())
    assert "pipeline.py" not in hub.fetched
    assert not list(cache.rglob("*.py"))
    got = download_code(ID, Policy(), revision=COMMIT)
    assert hub.fetched[-1] == "pipeline.py"
    assert (Path(got.path) / "pipeline.py").read_bytes() == b"raise SystemExit\n"
    with pytest.raises(RefusedByPolicy, match="safe mode alone"):
        download_code(ID, Policy(mode=Mode.SAFE), revision=COMMIT)
    with pytest.raises(RefusedByPolicy, match="safe mode alone"):
        download_model(ID, Policy(mode=Mode.SAFE), code=True)


def test_a_repository_that_wants_code_is_refused_before_its_weights_are_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = index_only(_class_name=["pipeline", "Evil"]) | {"transformer/diffusion_pytorch_model.safetensors": b"x"}
    with start(monkeypatch, files) as hub, pytest.raises(RemoteCodeRefused):
        download_model(ID, Policy())
    assert hub.fetched == ["model_index.json"]
    assert not (cache / "snapshots").exists()


def test_a_download_that_was_killed_goes_on_where_it_stopped(hub: FakeHub, cache: Path) -> None:
    hub.faults[WEIGHTS] = functools.partial(send_slowly, first=300_000)
    partial = cache / "blobs" / (entry("", hub.files[WEIGHTS])["lfs"]["sha256"] + ".wan-compat.incomplete")
    program = "from wan_compat.supervisor.downloader import *; download_model('org/tiny', Policy())"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 30
        while not (partial.exists() and partial.stat().st_size >= 65536):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(ModelNotFound):
        locate(ID)  # half a model is no model
    with open(partial, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the program that fetches holds it, and dies with its parent
        before = os.fstat(file.fileno()).st_size
    assert before >= 65536
    hub.faults[WEIGHTS] = send_range
    download_model(ID, Policy())
    asked = [headers.get("range") for path, headers in hub.requests if path.endswith(WEIGHTS)]
    assert asked[0] is None
    assert asked[-1] == f"bytes={before}-"
    assert files_of(cache / "snapshots" / COMMIT)[WEIGHTS] == (DEMO / WEIGHTS).read_bytes()


def test_wrong_bytes_of_an_earlier_try_are_fetched_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = index_only()
    blob = entry("", files["model_index.json"])["blobId"]
    partial = cache / "blobs" / f"{blob}.wan-compat.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"garbage")
    (cache / "blobs" / entry("", b"{}")["blobId"]).write_bytes(b"[]")  # a finished file of another tool, rotten
    with start(monkeypatch, files):
        got = download_model(ID, Policy())
    assert files_of(Path(got.path)) == files


def _other(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, body.swapcase())


def _longer(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, body + b" ")


def _shorter(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, body[:-1])


@pytest.mark.parametrize(
    ("fault", "error"),
    [(_other, ModelCorrupt), (_longer, FetchFailed), (_shorter, FetchFailed), (send_without_end, FetchFailed)],
    ids=["changed", "longer", "shorter", "endless"],
)
def test_what_is_not_as_listed_never_gets_a_name(
    fault: object, error: type[Exception], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(monkeypatch, index_only()) as hub:
        hub.faults["model_index.json"] = fault  # type: ignore[assignment]
        with pytest.raises(error):
            download_model(ID, Policy())
    sizes = [path.stat().st_size for path in cache.rglob("*") if path.is_file()]
    assert sum(sizes) <= 1000
    assert all(path.name.endswith(".incomplete") for path in cache.rglob("*") if path.is_file())


def test_names_that_lead_out_of_the_repository_are_not_asked_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = index_only() | {"../../../evil/config.json": b"{}", "scheduler/../../config.json": b"{}"}
    with start(monkeypatch, files) as hub:
        got = download_model(ID, Policy())
    assert sorted(hub.fetched) == ["model_index.json", "scheduler/scheduler_config.json"]
    assert len(got.skipped) == 2
    assert {path.name for path in cache.parent.parent.iterdir()} <= {"hub", "home"}


def test_a_redirect_elsewhere_gets_no_token_and_its_bytes_are_held_to_the_hash(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    files = index_only()
    with FakeHub({"model_index.json": b"{}" + b" " * (len(files["model_index.json"]) - 2)}) as elsewhere:
        with start(monkeypatch, files) as hub:
            # Another host as far as a client can tell, since "localhost" is another name.
            place = elsewhere.endpoint.replace("127.0.0.1", "localhost") + f"/{ID}/resolve/{COMMIT}/model_index.json"
            hub.faults["model_index.json"] = lambda handler, body: send(handler, b"", 302, {"Location": place})
            with pytest.raises(ModelCorrupt):
                download_model(ID, Policy())
    assert [headers.get("authorization") for _, headers in hub.requests] == ["Bearer hf_secret"] * 2
    assert [headers.get("authorization") for _, headers in elsewhere.requests] == [None]


def test_a_server_that_trickles_is_left(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_process, "STALL_S", 2.0)
    with start(monkeypatch, index_only()) as hub:
        hub.faults["model_index.json"] = functools.partial(send_slowly, first=1)
        with pytest.raises(FetchFailed, match="next to nothing"):
            download_model(ID, Policy())


def test_a_hub_that_does_not_answer_is_left(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloader, "LIST_TIMEOUT_S", 1.5)
    with start(monkeypatch, index_only()) as hub:
        hub.listing_fault = lambda handler, body: time.sleep(3)
        with pytest.raises(FetchFailed, match="no answer"):
            download_model(ID, Policy())


def test_a_hub_that_is_not_there_is_a_typed_error(cache: Path) -> None:
    with pytest.raises(FetchFailed, match="could not be asked"):
        download_model(ID, Policy(), hub=Hub("http://127.0.0.1:9"))


def test_a_repository_that_is_not_there_is_not_found(hub: FakeHub, cache: Path) -> None:
    with pytest.raises(ModelNotFound, match="hides it"):
        download_model("org/other", Policy())


@pytest.mark.parametrize("body", [b"[1]", b"{", b'{"id": "org/tiny", "sha": "main", "siblings": []}', b"[" * 100_000])
def test_a_listing_that_is_none_is_refused(body: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(monkeypatch, index_only()) as hub:
        hub.listing_fault = lambda handler, _: send(handler, body)
        with pytest.raises(FetchFailed):
            download_model(ID, Policy())


def test_too_little_disk_ends_it_before_the_weights(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloader, "_free_bytes", lambda folder: (512 << 20) + 10_000)
    with pytest.raises(DiskExceeded):
        download_model(ID, Policy())
    assert hub.fetched == ["model_index.json"]


def test_two_at_once_do_not_write_the_same_file(hub: FakeHub, cache: Path) -> None:
    fetcher = downloader._Fetcher(user_hub(), ID, None)
    listing = fetcher.list_files("main")
    held = fetcher._cache.open_partial(listing.files["model_index.json"])
    try:
        with pytest.raises(FetchFailed, match="another process"):
            download_model(ID, Policy())
    finally:
        os.close(held)


def test_downloads_can_be_switched_off(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusedByPolicy, match="allow_downloads"):
        download_model(ID, Policy(allow_downloads=False))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchFailed, match="HF_HUB_OFFLINE"):
        download_model(ID, Policy())
    assert not hub.requests


def test_the_hub_is_the_users_choice_and_encrypted(tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path)}
    assert user_hub(home).endpoint == "https://huggingface.co"
    assert user_hub({**home, "HF_ENDPOINT": "https://mirror.example/"}).endpoint == "https://mirror.example"
    for wrong in ("http://mirror.example", "file:///etc", "https://", "https://user@mirror.example", "https://[x"):
        with pytest.raises(InvalidRequest):
            user_hub({**home, "HF_ENDPOINT": wrong})


def test_a_token_comes_from_the_users_settings_and_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_file\n")
    home = {"HF_HOME": str(tmp_path)}
    assert user_hub(home).token == "hf_file"
    assert user_hub({**home, "HF_TOKEN": "hf_variable"}).token == "hf_variable"
    assert user_hub({**home, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}).token is None
    assert "hf_file" not in repr(user_hub(home))
