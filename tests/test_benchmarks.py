"""The benchmarks' harness: arms take turns, ratios are of neighbours, a missed bar fails. Times nothing real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import harness
from benchmarks.harness import Benchmark, Failure, Row, Samples, Skipped, alternate, at_most, faster, part

FOLDER = Path(command.__file__).parent
HELPERS = {"__init__", "__main__", "arms", "child", "harness", "long_clip", "plain_script"}


def test_arms_take_turns_and_the_warm_up_is_dropped() -> None:
    calls: list[str] = []

    def arm(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    samples = alternate(lambda: arm("ours"), lambda: arm("reference"), 2, warm_up=1)
    assert calls == ["ours", "reference"] * 3
    assert samples == Samples(ours=(3.0, 5.0), reference=(4.0, 6.0))


def test_a_ratio_is_the_median_of_neighbours_not_of_arms() -> None:
    # The machine was ten times slower during the last two turns; each pair still says one half.
    row = Row("x", Samples((1.0, 10.0, 11.0), (2.0, 20.0, 22.0)), "s", part(0.6))
    assert row.ratio == pytest.approx(0.5)
    assert (row.ours, row.reference) == (10.0, 20.0)
    assert row.ok


def test_a_ratio_of_a_few_percent_survives_a_disturbed_machine_and_tells_its_spread() -> None:
    # Other work slowed four of nine turns, by what it pleased; in each turn both arms ran under the same load.
    load = (1.0, 1.0, 3.0, 1.0, 5.0, 1.0, 2.0, 4.0, 1.0)
    reference = tuple(factor * 2.0 for factor in load)
    ours = tuple(value * 1.02 for value in reference)
    row = Row("x", Samples(ours, reference), "s", part(1.03))
    assert row.ratio == pytest.approx(1.02) and row.ok
    assert row.spread == pytest.approx((1.02, 1.02))
    # One arm alone was disturbed in two turns: neither moves the median.
    row = Row("x", Samples((ours[0] * 2, ours[1] * 0.5, *ours[2:]), reference), "s", part(1.03))
    assert row.ratio == pytest.approx(1.02) and row.ok
    assert row.to_json()["spread"] == row.spread
    assert Row("x", Samples((1.0,) * 3, (1.0,) * 3), "s", part(1.03)).spread is None


@pytest.mark.parametrize(
    ("bar", "ours", "reference", "ok"),
    [
        (faster(8), 1.0, (8.0,), True),
        (faster(8), 1.0, (7.9,), False),
        (part(0.05), 0.05, (1.0,), True),
        (part(0.05), 0.06, (1.0,), False),
        (at_most(10), 10.0, (), True),
        (at_most(10), 10.1, (), False),
        (faster(), 5.0, (1.0,), None),
        (part(), 5.0, (1.0,), None),
        (at_most(), 5.0, (), None),
    ],
)
def test_a_row_is_judged_by_its_bar(
    bar: harness.Bar, ours: float, reference: tuple[float, ...], ok: bool | None
) -> None:
    assert Row("x", Samples((ours,), reference), "ms", bar).ok is ok


def benchmark(name: str, *rows: Row, error: Exception | None = None) -> Benchmark:
    def run(_shared: object) -> Iterator[Row]:
        yield from rows
        if error is not None:
            raise error

    return Benchmark(name, f"about {name}", run)


FAST = Row("fast", Samples((1.0,), (200.0,)), "ms", faster(100), "a note")
SLOW = Row("slow", Samples((1.0,), (2.0,)), "s", part(0.1))


@pytest.mark.parametrize(
    ("benchmarks", "status"),
    [
        ([benchmark("fast", FAST)], 0),
        ([benchmark("fast", FAST), benchmark("slow", SLOW)], 1),
        ([benchmark("broken", error=ValueError("no such thing")), benchmark("fast", FAST)], 1),
        ([benchmark("forbidden", error=Skipped("only root may")), benchmark("fast", FAST)], 0),
    ],
)
def test_a_missed_bar_and_a_broken_benchmark_fail_the_run_and_a_skipped_one_does_not(
    benchmarks: list[Benchmark],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "load", lambda: benchmarks)
    assert command.main([]) == status
    shown = capsys.readouterr()
    assert "| fast " in shown.out
    assert "200x" in shown.out and ">= 100x" in shown.out and "a note" in shown.out
    assert all(one.name in shown.err for one in benchmarks)


def test_json_has_every_sample(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "load", lambda: [benchmark("fast", FAST), benchmark("slow", SLOW)])
    assert command.main(["--json", "--only", "slow"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["machine"]["cores"] >= 1
    (row,) = document["rows"]
    assert (row["name"], row["ok"], row["ratio"], row["runs"]) == ("slow", False, 0.5, 1)
    assert row["samples"] == {"ours": [1.0], "reference": [2.0]}


def test_optional_benchmarks_run_only_when_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    optional = Benchmark("study", "takes long", lambda _shared: [SLOW], optional=True)
    monkeypatch.setattr(command, "load", lambda: [benchmark("fast", FAST), optional])
    assert command.main([]) == 0
    assert command.main(["--only", "study"]) == 1
    assert "study" in capsys.readouterr().err


def test_an_unknown_name_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--only", "nothing_of_ours"])
    assert stopped.value.code == 2
    assert "nothing_of_ours" in capsys.readouterr().err


def test_list_names_every_benchmark_in_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert sorted(listed) == sorted({path.stem for path in FOLDER.glob("*.py")} - HELPERS)
    assert listed == [one.name for one in command.load()]


def test_every_benchmark_says_what_both_arms_do() -> None:
    for name in command.MODULES:
        text = (FOLDER / f"{name}.py").read_text()
        docstring = text.split('"""')[1]
        assert "    ours  " in docstring and "    reference  " in docstring, name


def test_rows_and_failures_make_one_table() -> None:
    lines = harness.table([FAST, SLOW, Failure("broken", "ValueError: x")]).splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[-1] == "broken: ValueError: x"
    assert not harness.reached([SLOW]) and harness.reached([FAST])
