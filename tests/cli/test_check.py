"""`wan-compat check`: its words, its document, its exit codes, and what it costs."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.assets.corpus.repositories import BUILDERS, build_sharded_14b
from tests.assets.tiny_wan import tiny_model
from tests.cli.conftest import RunCli, command
from tests.supervisor.test_check import HOSTILE, edit, snapshot
from wan_compat.policies.judgement.identity import TASKS
from wan_compat.supervisor.cli.check_view import _columns_that_fit
from wan_compat.supervisor.cli.main import main
from wan_compat.supervisor.cli.task_options import Task


def built(folder: Path, name: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers") -> Path:
    folder.mkdir()
    return BUILDERS[name](folder)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process: milliseconds instead of half a second."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_model_that_runs_here_is_told_with_the_next_step(cli: RunCli) -> None:
    ended = cli("check", tiny_model("t2v"))
    assert ended.code == 0 and ended.err == "", ended
    assert "WanPipeline" in ended.out and "It can run here. Next: wan-compat generate" in ended.out
    for name in ("scheduler", "text_encoder", "tokenizer", "transformer", "vae", "needs", "here"):
        assert re.search(rf"^  {name} ", ended.out, re.MULTILINE), name


def test_with_json_stdout_has_exactly_one_document(cli: RunCli) -> None:
    ended = cli("check", tiny_model("t2v"), "--json")
    assert ended.code == 0 and ended.err == "", ended
    assert ended.document["compatible_here"] is True and ended.document["is_wan"] is True


def test_a_path_that_is_not_there_is_an_error_with_its_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "check", tmp_path / "absent")
    assert code == 4 and out == "" and "Model:" in err and "Issue:" in err
    code, out, err = run(capsys, "check", tmp_path / "absent", "--json")
    assert code == 4 and json.loads(out)["error"]["code"] == "model_not_found" and err == ""


def test_an_unknown_task_is_a_usage_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, "check", tmp_path, "--task", "dance")[0] == 2
    assert {task.value for task in Task} == set(TASKS)


def exit_code_rows() -> list[tuple[str, Any, int]]:
    return [
        ("code", lambda m: edit(m / "model_index.json", _class_name=["p", "Mine"]), 5),
        ("a pickle", lambda m: next((m / "vae").glob("*.safetensors")).rename(m / "vae/diffusion_pytorch_model.bin"), 5),
        ("code and a broken file", lambda m: [edit(m / "model_index.json", _class_name=["p", "Mine"]), (m / "vae/config.json").write_text("{")], 4),
        ("no vae", lambda m: shutil.rmtree(m / "vae"), 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"), [row[1:] for row in exit_code_rows()], ids=[row[0] for row in exit_code_rows()]
)
def test_the_exit_code_is_that_of_the_most_fundamental_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, change: Any, expected: int
) -> None:
    path = built(tmp_path / "m")
    change(path)
    code, out, err = run(capsys, "check", path)
    assert code == expected and err == "" and "->" in out and "Next:" in out
    assert "trust-remote-code" not in out and "trust_remote_code=" not in out


@pytest.mark.parametrize(
    ("name", "headline", "advice"),
    [
        ("Wan-AI/Wan2.1-T2V-14B", "wan2.1-t2v-14b, Wan 2.1: text to video", "use Wan-AI/Wan2.1-T2V-14B-Diffusers"),
        ("Comfy single file: wan_2.1_vae", "No whole model: no denoiser (of Wan 2.1)", "give the model's own folder"),
        ("any Wan LoRA file", "A LoRA for wan2.1-t2v-1.3b", "give the model that it is for"),
    ],
)
def test_the_first_and_the_last_line_tell_what_it_is_and_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, headline: str, advice: str
) -> None:
    _, out, _ = run(capsys, "check", built(tmp_path / "m", name))
    lines = out.splitlines()
    assert lines[0] == headline
    assert lines[-1].startswith(f"It cannot run here. Next: {advice}")


def test_a_small_model_needs_no_zero_gigabytes(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "check", tiny_model("t2v"))
    assert out.startswith("A Wan model of a size of its own, Wan 2.1: text to video\n")
    assert " 0.0 GB" not in out


def test_a_relative_without_pipeline_and_another_family_end_with_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tests.assets.corpus.lookalikes import LOOKALIKES

    code, out, _ = run(capsys, "check", built(tmp_path / "s2v", "FastVideo/Wan2.2-S2V-14B-Diffusers"))
    assert code == 1 and "no pipeline" in out
    name = next(name for name in LOOKALIKES if "stable diffusion 1.5" in name.lower() or "SD 1.5" in name)
    folder = tmp_path / "sd"
    folder.mkdir()
    code, out, _ = run(capsys, "check", LOOKALIKES[name](folder))
    assert code == 1 and out.startswith("Not a Wan model: stable diffusion")


def test_a_task_is_answered_in_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = built(tmp_path / "m")
    assert "v2v: yes, with WanVideoToVideoPipeline" in run(capsys, "check", path, "--task", "v2v")[1]
    code, out, _ = run(capsys, "check", path, "--task", "i2v")
    assert code in (1, 6) and "i2v: no" in out and "Wan-AI/" in out


@pytest.mark.parametrize("make", HOSTILE)
@pytest.mark.timeout(20)
def test_hostile_folders_end_in_words_and_a_code(capsys: pytest.CaptureFixture[str], tmp_path: Path, make: Any) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    make(folder)
    before = snapshot(folder)
    for options in ((), ("--json",), ("-v",)):
        started = time.perf_counter()
        code, out, err = run(capsys, "check", folder, *options)
        assert time.perf_counter() - started < 10 and code in (4, 5), (code, out, err)
        assert "Traceback" not in out + err and not set("\x1b\x07\u202e") & set(out + err)
    assert snapshot(folder) == before


@pytest.mark.parametrize(("width", "shown"), [(100, 5), (60, 4), (48, 3), (40, 2), (10, 2)])
def test_a_narrow_terminal_gets_fewer_columns(width: int, shown: int) -> None:
    rows = [("text_encoder", "UMT5EncoderModel", "float16", "102,592", "205 kB"), ("vae", "W" * 22, "-", "-", "4 MB")]
    columns = _columns_that_fit(rows, width)
    assert len(columns) == shown and columns[0] == 0 and columns[-1] == 4


def test_a_terminal_gets_colours_and_no_color_is_heard(tmp_path: Path, environment: dict[str, str]) -> None:
    path = built(tmp_path / "m")

    def in_terminal(**variables: str) -> str:
        leader, follower = pty.openpty()
        try:
            process = subprocess.Popen(
                command("check", path),
                stdout=follower,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                env={**environment, "TERM": "xterm-256color", **variables},
            )
            os.close(follower)
            follower = -1
            parts = []
            while True:
                try:
                    part = os.read(leader, 65536)
                except OSError:  # EIO: the other end is closed
                    break
                if not part:
                    break
                parts.append(part)
            assert process.wait(30) in (0, 6)
            return b"".join(parts).decode()
        finally:
            os.close(leader)
            if follower >= 0:
                os.close(follower)

    colored, plain = in_terminal(), in_terminal(NO_COLOR="1")
    assert "\x1b[1m" in colored and "\x1b" not in plain
    for word in ("wan2.1-t2v-1.3b", "UMT5EncoderModel", "needs"):
        assert word in colored and word in plain


def test_one_run_is_fast_small_and_imports_no_library_of_models(tmp_path: Path, environment: dict[str, str]) -> None:
    path = build_sharded_14b(tmp_path / "m")
    program = (
        "import sys, json, re\n"
        "from wan_compat.supervisor.cli.main import main\n"
        f"code = main(['check', {str(path)!r}, '--json'])\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'zmq', 'rich'}\n"
        "peak = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "found = sorted(heavy & {n.partition('.')[0] for n in sys.modules})\n"
        "print(json.dumps([found, peak]), file=sys.stderr)\n"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    seconds = time.perf_counter() - started
    found, peak_kb = json.loads(done.stderr)
    assert found == [] and peak_kb < 60_000
    assert seconds < 5  # half a second on an idle machine: benchmarks/check.py
    assert json.loads(done.stdout)["components"]["transformer"]["parameters"] > 14_000_000_000
