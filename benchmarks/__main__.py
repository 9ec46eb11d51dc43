"""`python -m benchmarks`: run the benchmarks and print the table; exit with 1 when a bar is missed."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time

from benchmarks.harness import Benchmark, reached, run_all, table

# In the order in which they run: the quick ones first.
MODULES = (
    "supervisor_import",
    "check",
    "scan",
    "hashing",
    "sandbox_entry",
    "worker_ready",
    "idle_memory",
    "transport",
    "pixels",
    "conv3d",
    "first_generation",
    "batch_throughput",
    "equal_frames",
    "first_frame",
    "decode_memory",
    "generation_memory",
    "decode_encode",
    "encode_tail",
    "encode_speed",
    "encode_memory",
    "isolation_tax",
    "supervisor_cpu",
    "wait_policy",
)


def load() -> list[Benchmark]:
    """Return all benchmarks. Importing one costs nothing: torch is imported by child processes only."""
    return [importlib.import_module(f"benchmarks.{name}").BENCHMARK for name in MODULES]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the benchmarks and what they compare")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this one; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the rows, samples included, as JSON")
    options = parser.parse_args(arguments)
    benchmarks = load()
    if options.list:
        width = max(len(benchmark.name) for benchmark in benchmarks)
        for benchmark in benchmarks:
            suffix = " (only when named)" if benchmark.optional else ""
            print(f"{benchmark.name:{width}}  {benchmark.title}{suffix}")
        return 0
    unknown = sorted(set(options.only or ()) - {benchmark.name for benchmark in benchmarks})
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; see --list")
    if options.only:
        chosen = [benchmark for benchmark in benchmarks if benchmark.name in options.only]
    else:
        chosen = [benchmark for benchmark in benchmarks if not benchmark.optional]
    from benchmarks.arms import Shared, machine

    started = time.monotonic()
    facts = machine()
    load_before = os.getloadavg()[0]
    with Shared() as shared:
        rows = run_all(chosen, shared)
    seconds = time.monotonic() - started
    facts |= {"seconds": round(seconds), "load_before": load_before, "load_after": os.getloadavg()[0]}
    if options.json:
        print(json.dumps({"machine": facts, "rows": [row.to_json() for row in rows]}, indent=2))
    else:
        print(table(rows))
        print()
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    return 0 if reached(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
