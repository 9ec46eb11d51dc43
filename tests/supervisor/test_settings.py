"""Files in a working folder can only tighten; a malformed source is refused whole."""

from pathlib import Path

import pytest

from wan_compat.protocol.errors import InvalidRequest, RefusedByPolicy
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor.settings import MAX_FILE_BYTES, load_settings


@pytest.fixture
def user_config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "config" / "wan-compat" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def folder(tmp_path, user_config) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    return path


def load(folder, **environment):
    return load_settings(folder, environment)


def test_without_any_source_the_built_in_policy_is_in_force(folder):
    settings = load(folder)
    assert settings.policy.min_tier is Tier.B
    assert set(settings.origins.values()) == {"built in"}


def test_user_may_widen_and_the_environment_has_the_last_word(folder, user_config):
    user_config.write_text('[policy]\nmin_tier = "C"\nthreads = 512\n')
    settings = load(folder, WAN_COMPAT_THREADS="256", WAN_COMPAT_MEMORY_LIMIT="4GB")
    assert (settings.policy.min_tier, settings.policy.threads) == (Tier.C, 256)
    assert settings.policy.memory_limit_bytes == 4_000_000_000
    assert settings.origins["min_tier"] == str(user_config)
    assert settings.origins["threads"] == "environment"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("wan-compat.toml", '[policy]\nmin_tier = "A"\n'),
        ("pyproject.toml", '[tool.wan-compat.policy]\nmin_tier = "A"\n'),
    ],
)
def test_working_folder_may_tighten(folder, name, content):
    (folder / name).write_text(content)
    settings = load(folder)
    assert settings.policy.min_tier is Tier.A
    assert name in settings.origins["min_tier"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("wan-compat.toml", '[policy]\nmin_tier = "C"\n'),
        ("wan-compat.toml", '[policy]\nmin_tier = "A"\nthreads = 4000\n'),
        ("pyproject.toml", "[tool.wan-compat.policy]\nallow_unsandboxed = true\n"),
    ],
)
def test_working_folder_cannot_loosen(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(RefusedByPolicy, match=name):
        load(folder)


def test_working_folder_cannot_loosen_what_the_environment_set(folder):
    (folder / "wan-compat.toml").write_text('[policy]\nmin_tier = "B"\n')
    with pytest.raises(RefusedByPolicy):
        load(folder, WAN_COMPAT_MIN_TIER="A")


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"[policy\n",
        b"policy = 5\n",
        b"[policy]\nmin_tier = 'A'\nmin_tier = 'B'\n",
        b"[policy]\nthreads = -1\n",
        b"[policy]\ncpu_cores = inf\n",
        b"[policy]\nunknown = 1\n",
        b"# " + b"x" * MAX_FILE_BYTES,
    ],
)
def test_malformed_file_is_refused_whole(folder, content):
    (folder / "wan-compat.toml").write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"wan-compat\.toml"):
        load(folder)


def test_fifo_in_place_of_a_file_is_refused_and_not_waited_for(folder):
    import os

    os.mkfifo(folder / "wan-compat.toml")
    with pytest.raises(InvalidRequest, match="not a regular file"):
        load(folder)


def test_folder_in_place_of_a_file_is_refused(folder):
    (folder / "wan-compat.toml").mkdir()
    with pytest.raises(InvalidRequest, match="not a regular file"):
        load(folder)


@pytest.mark.parametrize("text", ["-1", "inf", "''", "[1]", "99999999999999999999"])
def test_malformed_variable_names_the_environment(folder, text):
    with pytest.raises(InvalidRequest, match="environment"):
        load(folder, WAN_COMPAT_THREADS=text)


# -- where registry updates come from --------------------------------------------------------------------------------------

KEY = "MCowBQYDK2VwAyEAMCowBQYDK2VwAyEAMCowBQYDK2U="


def test_the_user_says_where_registry_updates_come_from(folder, user_config):
    assert load(folder).registry_url is None
    user_config.write_text(f'registry_url = "https://example.org/r.json"\nregistry_public_key = "{KEY}"\n')
    settings = load(folder)
    assert settings.registry_url == "https://example.org/r.json"
    assert settings.registry_public_key is not None and len(settings.registry_public_key) == 32


@pytest.mark.parametrize("name", ["registry_url", "registry_public_key"])
@pytest.mark.parametrize("file", ["wan-compat.toml", "pyproject.toml"])
def test_working_folder_cannot_say_where_registry_updates_come_from(folder, file, name):
    section = "[tool.wan-compat]\n" if file == "pyproject.toml" else ""
    (folder / file).write_text(f'{section}{name} = "https://evil.example/r.json"\n')
    with pytest.raises(RefusedByPolicy, match=name):
        load(folder)


@pytest.mark.parametrize(
    "line",
    [
        'registry_url = "http://example.org/r.json"',
        'registry_url = "file:///etc/passwd"',
        'registry_url = "https://user:secret@example.org/r.json"',
        'registry_url = "https:///r.json"',
        'registry_url = "https://[broken/r.json"',
        'registry_url = "https://example.org/\\u001b[31m"',
        "registry_url = 5",
        'registry_public_key = "AAAA"',
        'registry_public_key = "not base64!"',
        'registry_public_key = "ä"',
        "registry_public_key = true",
    ],
)
def test_malformed_registry_setting_is_refused(folder, user_config, line):
    user_config.write_text(line + "\n")
    with pytest.raises(InvalidRequest, match="registry_"):
        load(folder)


# -- where log and metrics go ------------------------------------------------------------------------------------------


def test_log_and_metrics_are_the_users_and_the_environment_goes_before_the_file(folder, user_config):
    user_config.write_text('log_file = "~/wan.jsonl"\nlog_prompts = true\nmetrics = "127.0.0.1:9464"\n')
    own = load(folder, HOME="/home/x", WAN_COMPAT_METRICS="/run/x.prom", WAN_COMPAT_LOG_PROMPTS="false").own
    assert own.log_file is not None and own.log_file.endswith("/wan.jsonl") and own.log_file.startswith("/")
    assert own.log_prompts is False
    assert own.metrics == "/run/x.prom"


@pytest.mark.parametrize(
    "line",
    [
        'log_file = "relative.jsonl"',
        "log_file = 5",
        'log_file = ""',
        'log_file = "/x/\\u0000"',
        'log_file = "/x/\\u001b[31m"',
        'log_prompts = "maybe"',
        "log_prompts = 1",
        'metrics = "0.0.0.0:9464"',
        'metrics = "wan.prom"',
        "metrics = true",
    ],
)
def test_malformed_log_and_metrics_settings_are_refused(folder, user_config, line):
    user_config.write_text(line + "\n")
    with pytest.raises(InvalidRequest, match=line.split()[0]):
        load(folder)


@pytest.mark.parametrize("name", ["log_file", "log_prompts", "metrics", "package_index"])
@pytest.mark.parametrize("file", ["wan-compat.toml", "pyproject.toml"])
def test_working_folder_cannot_say_where_log_and_metrics_go(folder, file, name):
    section = "[tool.wan-compat]\n" if file == "pyproject.toml" else ""
    (folder / file).write_text(f'{section}{name} = "/tmp/x"\n')
    with pytest.raises(RefusedByPolicy, match=name):
        load(folder)


# -- what is said about where it comes from ----------------------------------------------------------------------------


def test_every_source_of_a_setting_is_remembered_in_its_order(folder, user_config):
    user_config.write_text("[policy]\nthreads = 512\n")
    (folder / "wan-compat.toml").write_text("[policy]\nthreads = 64\n")
    settings = load(folder, WAN_COMPAT_THREADS="256", WAN_COMPAT_LOG_FILE="/x.jsonl")
    assert [value for _, value in settings.history["threads"]] == [128, 512, 256, 64]
    assert [source for source, _ in settings.history["threads"]] == [
        "built in", str(user_config), "environment", str(folder / "wan-compat.toml"),
    ]  # fmt: skip
    assert settings.history["min_tier"] == (("built in", "B"),)
    assert settings.history["log_file"] == (("built in", None), ("WAN_COMPAT_LOG_FILE", "/x.jsonl"))
    assert settings.origins["log_file"] == "WAN_COMPAT_LOG_FILE"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ('log_fil = "/x"', "log_file"),
        ("threads = 5", r"\[policy\]"),
        ("[polcy]\nthreads = 5", "policy"),
        ("[zzz]", "registry_url"),
    ],
)
@pytest.mark.parametrize("where", ["user", "folder"])
def test_a_name_that_means_nothing_is_refused_and_the_right_one_named(folder, user_config, line, hint, where):
    (user_config if where == "user" else folder / "wan-compat.toml").write_text(line + "\n")
    with pytest.raises(InvalidRequest, match="no setting") as caught:
        load(folder)
    import re

    assert re.search(hint, caught.value.fixes[0])
