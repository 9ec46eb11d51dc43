"""The opcode walker names what a pickle would import and call, whatever it does to hide it, and never loads anything."""

from __future__ import annotations

import collections
import pickle
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_compat.policies.scan import pickle_opcodes
from wan_compat.policies.scan.pickle_opcodes import is_pickle, observations, walk, walk_stream


class Attack:
    """Calls `function(*arguments)` when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def names(data):
    return [str(name) for name in walk(data).names]


def rules(data):
    reports, _ = walk_stream(data)
    return {item.rule for item in observations(reports)}


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_named_with_its_arguments_in_every_protocol(protocol):
    import os

    report = walk(pickle.dumps(Attack(os.system, "id"), protocol))
    assert report.stopped and report.calls == 1
    assert [str(name) for name in report.names] == ["posix.system"]
    assert report.call_text == ("posix.system('id')",)
    assert rules(pickle.dumps(Attack(os.system, "id"), protocol)) == {"pickle-dangerous-global"}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_have_no_names_and_nothing_odd(protocol):
    value = {
        "a": [1, 2.5, None, True, "text", b"bytes", (1, 2, 3, 4)],
        "big": 1 << 100,
        "set": {1},
        "frozen": frozenset({2}),
    }
    report = walk(pickle.dumps(value, protocol))
    assert report.stopped and report.problems == ()
    # Before protocol 4 there is no opcode for sets, before 3 none for bytes.
    assert {str(name) for name in report.names} <= {
        "__builtin__.set", "__builtin__.frozenset", "builtins.set", "builtins.frozenset", "_codecs.encode",
    }  # fmt: skip


def test_what_torch_save_names_is_expected():
    assert rules(pickle.dumps(collections.OrderedDict(a=1))) == set()
    state = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nctorch\nBFloat16Storage\n\x86."
    assert rules(state) == set()


MEMO_TRICK = (
    # "os" and "system" are written to the memo, covered by other strings, and fetched again.
    b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x8c\x04json\x94000" + b"h\x00h\x01\x93\x8c\x02id\x85R."
)
EVASIONS = {
    "INST": (b"(S'id'\nios\nsystem\n.", "os.system"),
    "OBJ": (b"(cos\nsystem\nS'id'\no.", "os.system"),
    "NEWOBJ": (b"\x80\x02csubprocess\nPopen\nX\x02\x00\x00\x00id\x85\x81.", "subprocess.Popen"),
    "NEWOBJ_EX": (b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93\x8c\x02id\x85}\x92.", "subprocess.Popen"),
    "memo": (MEMO_TRICK, "os.system"),
    "memo by text": (b"Vos\np5\n0Vsystem\np6\n0g5\ng6\n\x93(Vid\ntR.", "os.system"),
    "escaped text": (b"S'\\x6f\\163'\nS\"system\"\n\x93(S'id'\ntR.", "os.system"),
    "raw unicode": (b"V\\u006fs\nVsystem\n\x93(Vid\ntR.", "os.system"),
    "binary string": (b"U\x02osU\x06system\x93U\x02id\x85R.", "os.system"),
    "long string": (b"T\x02\0\0\0osT\x06\0\0\0system\x93U\x02id\x85R.", "os.system"),
    "8 byte length": (b"\x8d" + struct.pack("<Q", 2) + b"os\x8c\x06system\x93\x8c\x02id\x85R.", "os.system"),
    "DUP and POP": (b"\x8c\x02os20\x8c\x06system\x93\x8c\x02id\x85R.", "os.system"),
    "popped mark": (b"(K\x01K\x021cos\nsystem\n(Vid\ntR.", "os.system"),
    "framed": (b"\x80\x04\x95\x12\0\0\0\0\0\0\0\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.", "os.system"),
    "dotted name of an expected module": (
        b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c\x02id\x85R.",
        "torch.os.system",
    ),
    "getattr chain": (b"cbuiltins\ngetattr\n(cos\npath\nVsystem\ntR.", "builtins.getattr"),
    "no mark at the start": (b"N0cos\nsystem\n(Vid\ntR.", "os.system"),
    "never stops": (b"cos\nsystem\n(Vid\ntR", "os.system"),
    "garbage after the call": (b"cos\nsystem\n(Vid\ntR\xff\xff\xff", "os.system"),
    "after an empty frame": (b"\x80\x04\x95\0\0\0\0\0\0\0\0cos\nsystem\n(Vid\ntR.", "os.system"),
    "an unknown module": (b"\x80\x04\x8c\x04evil\x8c\x03run\x93)R.", "evil.run"),
}


@pytest.mark.parametrize("name", EVASIONS)
def test_hidden_calls_are_found(name):
    data, called = EVASIONS[name]
    assert called in names(data)
    assert rules(data) & {"pickle-dangerous-global", "pickle-unexpected-global"}
    assert is_pickle(data) or data[:1] == b"\x80"


def test_what_the_evasions_call_is_what_the_real_unpickler_would_import():
    class Recorder(pickle.Unpickler):
        def find_class(self, module, name):
            found.append(f"{module}.{name}")
            return lambda *arguments: None

    import io

    for name, (data, called) in EVASIONS.items():
        found: list[str] = []
        try:
            Recorder(io.BytesIO(data)).load()
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError):
            pass
        assert called in found, name
        assert set(found) <= set(names(data)), name


def test_opcodes_after_stop_are_read_or_named():
    harmless = pickle.dumps([1, 2])
    import os

    both = harmless + pickle.dumps(Attack(os.system, "id"))
    assert "pickle-dangerous-global" in rules(both)
    report = walk(harmless + b"cos\nsystem\n(Vid\ntR.")
    assert report.stopped and report.end == len(harmless)  # what stands behind is for the caller to report


def test_extension_codes_hide_a_name_and_are_named_themselves():
    for data in (b"\x80\x02\x82\x07)R.", b"\x80\x02\x83\x07\x01)R.", b"\x80\x02\x84\x07\0\0\0)R."):
        assert "pickle-extension" in rules(data)


def test_a_name_that_is_computed_is_reported():
    # The module's name is what a call returns.
    data = b"c_codecs\nencode\n(Vos\ntR\x8c\x06system\x93."
    assert "pickle-computed-global" in rules(data)


def test_a_pickle_within_a_string_is_found():
    import os

    inner = pickle.dumps(Attack(os.system, "id"))
    for protocol in (0, 3, 5):
        assert "pickle-nested" in rules(pickle.dumps({"x": inner}, protocol))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\x80\x06.",
        b"\x80\x04",
        b".",
        b"R.",
        b"(.",
        b"\x80\x04h\x05.",
        b"X\xff\xff\xff\xffab.",
        b"\x8b\xff\xff\xff\xff.",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"S'never closed\n.",
        b"S'\\xzz'\n.",
        b"e.",
        b"s.",
        b"\xfe.",
        b"Inan?\n.",
        b"gx\n.",
    ],
)
def test_what_no_reader_finishes_is_malformed(data):
    assert rules(data) == {"pickle-malformed"}


def test_every_prefix_of_a_pickle_is_malformed_or_whole():
    import os

    data = pickle.dumps([Attack(os.system, "id"), {"a": (1, 2)}], 4)
    for length in range(len(data)):
        assert "pickle-malformed" in rules(data[:length])


def test_endless_opcodes_end():
    started = time.process_time()
    report = walk(b"N0" * 3_000_000, max_opcodes=100_000)
    assert report.opcodes == 100_000 and not report.stopped
    assert {item.rule for item in report.problems} == {"pickle-limit"}
    deep = walk(b"]" * 600_000)
    assert {item.rule for item in deep.problems} == {"pickle-limit"}
    assert time.process_time() - started < 5


def test_strings_that_double_do_not_cost_memory():
    # DUP, TUPLE2 and MEMOIZE double what is there with every three bytes.
    report = walk(b"\x8c\x01a" + b"2\x86\x94" * 100_000 + b".")
    assert report.stopped


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"hello",
        b"Installation\n\nRun it.\n",
        b"content\nof a file\n",
        b"N.",
        b"(see above)",
        b"I.\n",
        b"{}",
        b"[]",
    ],
)
def test_ordinary_text_is_no_pickle(text):
    assert not is_pickle(text)


def agrees_with_pickletools(data: bytes) -> None:
    """Where the standard library's own reader sees imports by GLOBAL or INST, so do we."""
    import pickletools

    seen = set()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("GLOBAL", "INST"):
                seen.add(str(argument).replace(" ", ".", 1))
    except Exception:  # it raises whatever it likes
        return
    report = walk(data)
    if report.stopped:
        assert seen <= {str(name) for name in report.names}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_end_and_raise_nothing(data):
    reports, end = walk_stream(data)
    assert 0 <= end <= len(data)
    assert sum(report.opcodes for report in reports) <= pickle_opcodes.MAX_OPCODES
    list(observations(reports))
    is_pickle(data)


OPCODES = st.lists(
    st.sampled_from(
        [bytes([opcode]) for opcode in pickle_opcodes._ACTS]
        + [b".", b"cos\nsystem\n", b"\x8c\x02os", b"V1\n", b"(", b"N"]
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(OPCODES)
def test_any_opcodes_end_and_hide_no_import_from_pickletools(parts):
    data = b"".join(parts)
    walk(data)
    agrees_with_pickletools(data)
