"""A listing is bounded, stays in its folder, and opens nothing but folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from wan_compat.supervisor.inspection import read_facts
from wan_compat.supervisor.inspection.problems import MAX_PER_CODE
from wan_compat.supervisor.inspection.walk import MAX_DEPTH, MAX_ENTRIES


def codes(facts):
    return [(problem.code, problem.path) for problem in facts.problems]


def test_files_come_with_size_place_and_identity(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "code.py").write_text("x = 1")
    (tmp_path / "model.pth").write_bytes(b"\x80\x02.")
    facts = read_facts(str(tmp_path))
    assert list(facts.files) == ["a/b/code.py", "model.pth"] and facts.problems == ()
    info, fact = (tmp_path / "model.pth").stat(), facts.files["model.pth"]
    assert (fact.size, fact.device, fact.inode, fact.mtime_ns) == (3, info.st_dev, info.st_ino, info.st_mtime_ns)
    assert fact.real_path == str(tmp_path / "model.pth")


def test_link_inside_the_folder_is_followed(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "config.json").symlink_to("x.json")
    facts = read_facts(str(tmp_path))
    assert facts.files["config.json"].real_path == str(tmp_path / "x.json")
    assert facts.documents["config.json"] == {}


def links_into_itself(folder):
    (folder / "a").symlink_to("a")


def links_in_a_ring(folder):
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")


def links_to_its_own_folder(folder):
    (folder / "a").symlink_to(".")


def links_to_nothing(folder):
    (folder / "a").symlink_to("nothing")


def links_to_the_root(folder):
    (folder / "a").symlink_to("/")


def links_to_a_file_above(folder):
    (folder.parent / "secret").write_text("s")
    (folder / "a").symlink_to("../secret")


def links_out_through_a_folder(folder):
    # The link's own text stays inside; where it comes out does not.
    (folder / "way").symlink_to("/etc")
    (folder / "a").symlink_to("way/passwd")


def links_to_a_neighbour_with_our_name_as_its_start(folder):
    (folder.parent / f"{folder.name}-2").mkdir()
    (folder.parent / f"{folder.name}-2" / "x").write_text("s")
    (folder / "a").symlink_to(f"../{folder.name}-2/x")


def links_to_a_process(folder):
    (folder / "a").symlink_to("/proc/self/environ")


def links_to_a_device(folder):
    (folder / "a").symlink_to("/dev/zero")


def links_to_a_fifo(folder):
    os.mkfifo(folder / "p")
    (folder / "a").symlink_to("p")


LINKS = {
    links_into_itself: [("link_broken", "a")],
    links_in_a_ring: [("link_broken", "a"), ("link_broken", "b")],
    links_to_its_own_folder: [("path_escape", "a")],
    links_to_nothing: [("link_broken", "a")],
    links_to_the_root: [("path_escape", "a")],
    links_to_a_file_above: [("path_escape", "a")],
    links_out_through_a_folder: [("path_escape", "a"), ("path_escape", "way")],
    links_to_a_neighbour_with_our_name_as_its_start: [("path_escape", "a")],
    links_to_a_process: [("path_escape", "a")],
    links_to_a_device: [("path_escape", "a")],
    links_to_a_fifo: [("special_file", "a"), ("special_file", "p")],
}


@pytest.mark.parametrize("make", LINKS, ids=lambda make: make.__name__)
def test_link_is_named_and_not_followed(tmp_path, make):
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    facts = read_facts(str(folder))
    assert codes(facts) == LINKS[make] and facts.files == {}


def test_link_to_a_folder_is_not_walked_twice(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    (tmp_path / "again").symlink_to("vae")
    facts = read_facts(str(tmp_path))
    assert codes(facts) == [("folder_link", "again")] and list(facts.files) == ["vae/config.json"]


@pytest.mark.parametrize(
    "name", [b"a\nb.py", b"\x1b[31m.json", b"a\xff.bin", "a\u202ebin.py".encode(), b"x\x7f", "a\u200b.py".encode()]
)
def test_name_that_shows_as_something_else_is_named_cleanly_and_left_out(tmp_path, name):
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(b"x")
    facts = read_facts(str(tmp_path))
    assert facts.files == {} and [problem.code for problem in facts.problems] == ["file_name_unsafe"]
    text = json.dumps(facts.problems[0].to_json(), ensure_ascii=False)
    text.encode()
    assert text.isprintable()


def test_names_in_other_scripts_are_fine(tmp_path):
    for name in ("模型.safetensors.txt", "modèle.json", "a b (1).txt", "model[x].txt"):
        (tmp_path / name).write_text("{}")
    facts = read_facts(str(tmp_path))
    assert len(facts.files) == 4 and facts.problems == ()


def test_folder_with_an_unsafe_name_is_not_entered(tmp_path):
    (tmp_path / "a\nb").mkdir()
    (tmp_path / "a\nb" / "config.json").write_text("{}")
    assert read_facts(str(tmp_path)).files == {}


def test_hidden_files_and_folders_are_no_part_of_a_model(tmp_path):
    (tmp_path / ".git" / "objects").mkdir(parents=True)
    (tmp_path / ".git" / "config.json").write_text("{}")
    (tmp_path / ".hidden.json").write_text("{}")
    (tmp_path / ".out").symlink_to("/etc/passwd")
    facts = read_facts(str(tmp_path))
    assert facts.files == {} and facts.problems == ()


def test_what_lies_too_deep_is_said_and_left_out(tmp_path):
    folder = tmp_path.joinpath(*["d"] * (MAX_DEPTH + 30))
    folder.mkdir(parents=True)
    tmp_path.joinpath(*["d"] * (MAX_DEPTH - 1), "in.txt").touch()
    tmp_path.joinpath(*["d"] * MAX_DEPTH, "out.txt").touch()
    facts = read_facts(str(tmp_path))
    assert [path.rsplit("/")[-1] for path in facts.files] == ["in.txt"]
    assert [code for code, _ in codes(facts)] == ["too_deep"]


@pytest.mark.parametrize("kind", ["files", "folders", "hidden"])
def test_too_many_entries_are_said_and_what_was_seen_is_kept(tmp_path, kind):
    (tmp_path / "many").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    for number in range(MAX_ENTRIES + 10):
        path = tmp_path / "many" / f"{'.' if kind == 'hidden' else ''}{number}"
        path.mkdir() if kind == "folders" else path.touch()
    facts = read_facts(str(tmp_path))
    assert [code for code, _ in codes(facts)] == ["too_many_files"]
    assert facts.index == {} and "model_index.json" in facts.files
    assert len(facts.files) <= MAX_ENTRIES


def test_a_thousand_problems_of_one_kind_are_counted_not_listed(tmp_path):
    for number in range(1000):
        (tmp_path / f"{number:04}").symlink_to("nothing")
    problems = read_facts(str(tmp_path)).problems
    assert len(problems) == MAX_PER_CODE + 1
    assert problems[-1].path is None and f"{1000 - MAX_PER_CODE} more" in problems[-1].message


def test_unreadable_folder_hides_nothing_else(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything; the ordinary user's run of this suite tests it")
    for name in ("closed", "open", "listed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to("closed/config.json")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "listed").chmod(0o400)  # names can be seen, nothing else
    try:
        facts = read_facts(str(tmp_path))
    finally:
        (tmp_path / "closed").chmod(0o700)
        (tmp_path / "listed").chmod(0o700)
    assert list(facts.documents) == ["open/config.json"]
    assert codes(facts) == [("file_unreadable", path) for path in ("link", "closed", "listed/config.json")]


_WATCHED = """
import json, os, sys
seen = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        seen.append((arguments[0], arguments[2]))
from wan_compat.supervisor.inspection import read_facts
sys.addaudithook(hook)
read_facts(sys.argv[1])
print(json.dumps([path for path, flags in seen if not flags & os.O_PATH]))
print(json.dumps([path for path, flags in seen if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)]))
"""


def test_nothing_but_regular_files_is_opened_and_nothing_is_written(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "linked.safetensors").symlink_to("/dev/zero")
    (tmp_path / "broken.gguf").symlink_to("pipe")
    (tmp_path / "escape.json").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "model_index.json")
    os.mkfifo(tmp_path / "pipe")
    os.mknod(tmp_path / "x.gguf", 0o600 | 0o140000)
    if os.geteuid() == 0:
        os.mknod(tmp_path / "x.safetensors", 0o600 | 0o020000, os.makedev(1, 5))
    before = sorted(os.listdir(tmp_path))
    command = [sys.executable, "-c", _WATCHED, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    opened, written = map(json.loads, ended.stdout.splitlines())
    assert opened == [str(tmp_path / "config.json")] and written == []
    assert sorted(os.listdir(tmp_path)) == before
