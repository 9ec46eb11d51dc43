"""From a plan to its end: the folder made and held, the journal open, a supervisor, the run, its report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from wan_compat.policies.batch.progress import Shard
from wan_compat.supervisor.batch.contract import BatchView, Outcome, RunOptions
from wan_compat.supervisor.batch.folder import BatchFolder, held, is_alone, sweep
from wan_compat.supervisor.batch.journal import Journal
from wan_compat.supervisor.batch.preflight import BatchPlan
from wan_compat.supervisor.batch.report import Reporter
from wan_compat.supervisor.batch.runner import BatchRun
from wan_compat.supervisor.client import Supervisor


@contextlib.contextmanager
def holding(folder: BatchFolder, shard: Shard) -> Iterator[Callable[[], None]]:
    """Hold a shard from now on if its folder is there, else from the moment when the given function is called.

    What the lines ask for is checked in between, and a folder that no run will use is not made.

    Raises:
        BatchBusy: Another process holds it; so does the function.
        OutputNotWritable: The folder cannot be written, or what is the batch's own in it leads elsewhere.
    """
    folder.check()
    with contextlib.ExitStack() as stack:
        is_held = folder.exists
        if is_held:
            stack.enter_context(held(folder, shard))

        def make_and_hold() -> None:
            folder.make()
            if not is_held:
                stack.enter_context(held(folder, shard))

        yield make_and_hold


def execute(
    plan: BatchPlan,
    options: RunOptions,
    supervisor: contextlib.AbstractContextManager[Supervisor],
    view: BatchView,
    *,
    mode: str,
) -> tuple[Outcome, dict[str, Any]]:
    """Run a plan in a folder that is held; return how that went, and the summary that was written.

    Args:
        supervisor: Entered if there is something to do; it spawns nothing before its first job.

    Raises:
        JournalUnusable, OutputNotWritable, DiskExceeded: The journal cannot be used.
    """
    folder = plan.folder
    with Journal(folder.journal(options.shard), options.shard) as journal:
        if journal.cut_bytes:
            view.note(f"The last record of the journal was cut off ({journal.cut_bytes} bytes) and is put aside")
        is_another = folder.write_plan(plan.file.path, plan.items)
        if is_alone(folder, options.shard):
            sweep(folder)
        reporter = Reporter(folder, plan.file.path, plan.items, plan.progress, mode)
        outcome = Outcome()
        if plan.left or os.listdir(folder.leases):
            with supervisor as opened:
                outcome = BatchRun(plan, options, opened, journal, view, reporter.changed).run()
        document = reporter.finish(
            is_another,
            {
                "shard": f"{options.shard.number}/{options.shard.count}",
                "done": outcome.done,
                "found": outcome.found,
                "failed": outcome.failed,
                "left": outcome.left,
                "elsewhere": outcome.elsewhere,
                "seconds": round(outcome.seconds, 3),
                "interrupted": outcome.interrupted or None,
            },
        )
        if reporter.warning is not None:
            view.note(f"Warning: {reporter.warning}")
    return outcome, document
