"""T17: settings that came with a download, as a user meets them: refused whole, at once, and nothing of them in force."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.cli.conftest import RunCli, cli, cwd, environment  # noqa: F401 - fixtures
from tests.supervisor.conftest import misbehaving, request_for  # noqa: F401 - fixtures
from wan_compat.policies.policy import Policy

WIDENS_THE_VIEW = ["binds", "layers", "network"]

HOSTILE: dict[str, str | Callable[[Path], None]] = {
    **{f"key {key}": f"[policy]\n{key} = ['/home']\n" for key in WIDENS_THE_VIEW},
    "no limit by infinity": "[policy]\ntimeout = inf\n",
    "no limit by nan": "[policy]\ncpu_cores = nan\n",
    "negative": "[policy]\nmemory_limit = -1\n",
    "negative as text": "[policy]\nmemory_limit = '-1GB'\n",
    "beyond every range": "[policy]\nthreads = 9223372036854775808\n",
    "true for a number": "[policy]\nopen_files = true\n",
    "text for a number": "[policy]\nthreads = '128'\n",
    "table for a number": "[policy.threads]\nx = 1\n",
    "tier in another case": "[policy]\nmin_tier = 'c'\n",
    "tier with a space": "[policy]\nmin_tier = 'E '\n",
    "said twice": "[policy]\nmin_tier = 'A'\n[policy]\nmin_tier = 'C'\n",
    "one wrong among right ones": "[policy]\nmin_tier = 'A'\nthreads = 32\nthread = 1\n",
    "deep": "[policy]\nthreads = " + "[" * 5000 + "]" * 5000 + "\n",
    "endless number": "[policy]\nthreads = 1" + "0" * 100_000 + "\n",
    "large": "# " + "x" * (1 << 20),
    "no text": "\x00\x01\x02",
    "FIFO": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "loop of links": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_settings_stop_a_generation_at_once(case: str, cli: RunCli, cwd: Path, tmp_path: Path) -> None:  # noqa: F811
    path, content = cwd / "wan-compat.toml", HOSTILE[case]
    if callable(content):
        content(path)
    else:
        path.write_text(content)
    output = tmp_path / "x.mp4"
    started = time.monotonic()
    ended = cli("generate", tiny_model("t2v"), "--prompt", "x", "--output", output, timeout=30)
    took_s = time.monotonic() - started
    assert ended.code in (2, 5), ended
    assert "wan-compat.toml" in ended.err and "Traceback" not in ended.err, ended
    assert not output.exists() and took_s < 20


def test_the_same_file_without_a_mistake_is_in_force(cli: RunCli, cwd: Path) -> None:  # noqa: F811
    """So that the refusals above are of the mistakes, and not of the file."""
    (cwd / "wan-compat.toml").write_text("[policy]\nthreads = 32\n")
    assert cli("config", "show", "--json").document["settings"]["threads"]["value"] == 32


@pytest.mark.parametrize(
    ("policy", "asked", "expected"),
    [(1 << 30, 2 << 30, 1 << 30), (2 << 30, 1 << 30, 1 << 30), (1 << 30, None, 1 << 30)],
)
def test_a_job_can_narrow_a_limit_and_never_widen_it(policy, asked, expected, misbehaving, request_for):  # noqa: F811
    supervisor = misbehaving("well", policy=Policy(memory_limit_bytes=policy))
    result = supervisor.generate(request_for(output=None, memory_limit_bytes=asked))
    assert result.sandbox.memory_limit_bytes == expected
