"""Batch files in four formats: what they say, and everything that is wrong with them, within limits."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from wan_compat.protocol.errors import BatchInvalid, InvalidRequest
from wan_compat.supervisor.batch import reading
from wan_compat.supervisor.batch.reading import BatchFile, read_batch


def read(folder: Path, name: str, text: str | bytes) -> BatchFile:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return read_batch(path)


def said(file: BatchFile) -> list[tuple[int, dict[str, Any]]]:
    assert file.problems == ()
    return [(line.number, dict(line.fields)) for line in file.lines]


SAME = {
    "a.jsonl": '{"defaults": {"steps": 4}}\n\n{"prompt": "a red fox", "seed": 7}\n{"prompt": "a blue\\nfox"}\n',
    "b.yaml": "defaults:\n  steps: 4\n\nitems:\n- prompt: a red fox\n  seed: 7\n- prompt: |-\n    a blue\n    fox\n",
}


def test_a_file_that_is_not_there_is_not_asked_for_its_format(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="No such file"):
        read_batch(tmp_path / "foxes")


@pytest.mark.parametrize("name", SAME)
def test_formats_with_defaults_say_the_same(name: str, tmp_path: Path) -> None:
    file = read(tmp_path, name, SAME[name])
    assert file.defaults.fields == {"steps": 4}
    assert [fields for _, fields in said(file)] == [{"prompt": "a red fox", "seed": 7}, {"prompt": "a blue\nfox"}]
    assert file.folder == str(tmp_path)


def test_a_table_has_texts_and_an_empty_cell_says_nothing(tmp_path: Path) -> None:
    text = '\ufeffprompt,seed,steps\r\n"a fox, red",7,\r\n\r\n"two\r\nlines",,4\r\n'
    file = read(tmp_path, "a.csv", text)
    assert said(file) == [(2, {"prompt": "a fox, red", "seed": "7"}), (4, {"prompt": "two\r\nlines", "steps": "4"})]
    assert said(read(tmp_path, "b.csv", "prompt;seed\na, b;7\n")) == [(2, {"prompt": "a, b", "seed": "7"})]
    assert said(read(tmp_path, "a.tsv", "prompt\tseed\nx, y\t3\n")) == [(2, {"prompt": "x, y", "seed": "3"})]


def test_plain_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    file = read(tmp_path, "a.txt", "# foxes\na red fox\u2028 in snow\n\n  a blue one  \n")
    assert said(file) == [(2, {"prompt": "a red fox\u2028 in snow"}), (4, {"prompt": "a blue one"})]


def test_anchors_and_merges_mean_what_they_mean_in_yaml(tmp_path: Path) -> None:
    text = (
        "- &base {prompt: a, steps: 4}\n- <<: *base\n  prompt: b\n- just a prompt\n- {prompt: c, created: 2024-01-01}\n"
    )
    assert said(read(tmp_path, "a.yml", text)) == [
        (1, {"prompt": "a", "steps": 4}),
        (2, {"prompt": "b", "steps": 4}),
        (4, {"prompt": "just a prompt"}),
        (5, {"prompt": "c", "created": "2024-01-01"}),
    ]


BAD: list[tuple[str, str, list[tuple[int, str]]]] = [
    ("a.jsonl", '{"prompt": "x"}\n{broken\n[1]\n{"a": 1, "a": 2}\n', [(2, "JSON"), (3, "list"), (4, "twice")]),
    ("a.jsonl", '{"prompt": "x"}\n{"defaults": {}}\n', [(2, "before all others")]),
    ("a.jsonl", '{"defaults": 3}\n', [(1, "must be an object")]),
    ("a.jsonl", '{"prompt": ' + "[" * 100 + "]" * 100 + "}\n", [(1, "depth")]),
    ("a.jsonl", "{" + ",".join(f'"f{n}": 1' for n in range(65)) + "}\n", [(1, "65 fields")]),
    ("a.jsonl", '{"prompt": "' + "x" * reading.MAX_LINE_BYTES + '"}\n', [(1, "longer than")]),
    ("a.csv", "prompt,seed\nx,1,2\n", [(2, "3 cells")]),
    ("a.csv", "prompt,sead\nx,1\ny,2\n", [(1, "'seed' is meant"), (1, "must name the columns")]),
    ("a.csv", "prompt,prompt\nx,y\n", [(1, "different names")]),
    ("a.csv", 'prompt\nx\n"y\n', [(3, "not a row")]),
    ("a.csv", 'prompt\n"x"y\n', [(2, "not a row")]),
    ("a.yaml", "items:\n- [\n", [(3, "YAML")]),
    ("a.yaml", "- prompt: x\n- 7\n", [(2, "must be a prompt")]),
    ("a.yaml", "things: []\n", [(1, "unknown here"), (1, "is missing")]),
    ("a.yaml", "just text\n", [(1, "list of items")]),
    ("a.yaml", "- {a: 1, a: 2}\n", [(1, "twice")]),
    ("a.yaml", "- ? [a]\n  : 1\n", [(1, "no text")]),
    ("a.yaml", "- !!python/object/apply:os.system [id]\n- prompt: !evil x\n", [(1, "must be a prompt"), (2, "tag")]),
    ("a.yaml", "- &a [*a]\n", [(1, "anchors")]),
    ("a.yaml", "- {prompt: x}\n" + "- *" + "nothing\n", [(2, "YAML")]),
]


@pytest.mark.parametrize(("name", "text", "problems"), BAD, ids=[f"{case[0]} {case[1][:24]!r}" for case in BAD])
def test_what_is_wrong_is_told_with_its_line(
    name: str, text: str, problems: list[tuple[int, str]], tmp_path: Path
) -> None:
    found = read(tmp_path, name, text).problems
    assert [each.line for each in found] == [line for line, _ in problems]
    assert all(why in each.why for each, (_, why) in zip(found, problems, strict=True)), found


BOMBS = {
    "laughs": "- &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"- &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(7)
    ) + "- prompt: *h\n",
    "depth": "- " + "[" * 100_000 + "\n",
    "flow": "- " + "{a: " * 50_000 + "\n",
    "aliases": "- &a x\n- [" + ",".join(["*a"] * 5000) + "]\n",
    "digits": "- {prompt: x, seed: " + "9" * 10_000 + "}\n",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_yaml_is_a_problem_and_costs_little(name: str, tmp_path: Path) -> None:
    began = time.process_time()
    assert read(tmp_path, "a.yaml", BOMBS[name]).problems
    assert time.process_time() - began < 5


def test_a_file_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_batch(tmp_path / "nothing.txt")
    with pytest.raises(InvalidRequest, match="in which format"):
        read(tmp_path, "a.doc", "x")
    assert len(read_batch(tmp_path / "a.doc", "txt").lines) == 1
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InvalidRequest, match="regular file"):
        read_batch(tmp_path / "pipe.txt")
    with pytest.raises(BatchInvalid, match=r"a\.txt:2: is not UTF-8"):
        read(tmp_path, "a.txt", b"fine\n\xff\n")
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 10)
    with pytest.raises(InvalidRequest, match="larger than"):
        read(tmp_path, "a.txt", "x" * 11)


def test_reading_ends_where_nobody_would_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 100 < len(read(tmp_path, "a.jsonl", "{\n" * 5000).problems) < 200
    monkeypatch.setattr(reading, "MAX_ITEMS", 5)
    found = read(tmp_path, "a.txt", "x\n" * 50)
    assert [each.line for each in found.problems] == [6] and "more than 5" in found.problems[0].why
