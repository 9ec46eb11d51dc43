"""A batch in words, and its exit code: what a run is about to do, how it ended, where a folder stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wan_compat.protocol.errors import BatchPartlyFailed, JobCancelled, Terminated, WanCompatError
from wan_compat.supervisor.cli.quantities import show_seconds
from wan_compat.supervisor.cli.session import Session

if TYPE_CHECKING:
    from wan_compat.supervisor.batch.contract import Outcome
    from wan_compat.supervisor.batch.preflight import BatchPlan


def describe_plan(plan: BatchPlan) -> str:
    """Return what a run is about to do, and what it found of earlier ones."""
    done = sum(plan.progress.done(item.key) is not None for item in plan.items)
    lines = [f"{len(plan.items)} videos: {done} done, {len(plan.left)} to make here"]
    if plan.changed:
        lines.append(
            f"The file was changed: {plan.changed} videos of earlier runs are not in it (any more). They stay as they "
            "are; changed lines are new videos"
        )
    lines += [
        f"Line {item.line} makes {item.output}: its name is taken by an earlier video"
        for item in plan.left
        if item.moved
    ]
    return "\n".join(lines)


def tell_plan(session: Session, plan: BatchPlan) -> None:
    """List what would be made."""
    if session.json:
        listed = [
            {"index": item.index, "line": item.line, "output": item.output, "seed": item.seed, "key": item.key}
            for item in plan.left
        ]
        session.document({"schema_version": 1, "dry_run": True, "items": len(plan.items), "left": listed})
        return
    session.note(describe_plan(plan))
    for item in plan.left:
        session.say(f"{item.output}  line {item.line}, seed {item.seed}: {item.title}")


def conclude(session: Session, outcome: Outcome, summary: dict[str, Any]) -> int:
    """Tell how a run ended; return its exit code."""
    error: WanCompatError | None = outcome.fatal
    words = f"{summary['done']} of {summary['items']} videos are done"
    if outcome.interrupted:
        kind = Terminated if outcome.interrupted == "terminated" else JobCancelled
        if outcome.left or kind is Terminated:
            error = kind(f"interrupted; {words}", hint="the same command once more makes the rest")
    if error is None and summary["failed"]:
        error = BatchPartlyFailed(
            f"{words}, {summary['failed']} failed; see {summary['report']}",
            hint="--retry-failed tries again what failed, --max-retries N more than once",
        )
    if session.json and (error is None or isinstance(error, BatchPartlyFailed)):
        session.document(summary | (error.to_json() if error is not None else {}))
        return error.exit_code if error is not None else 0
    if summary["failures"]:
        session.say(
            "\n".join(
                f"Failed: {each['output']} (line {each['line']}): {each['message']}" for each in summary["failures"]
            )
        )
    if error is not None:
        error.details["summary"] = summary
        raise error
    session.say(f"{words}. See {summary['report']}")
    return 0


def describe_status(document: dict[str, Any]) -> str:
    """Return the status for a person."""
    counts = (
        f"{document['done']} of {document['items']} done, {len(document['running'])} running, "
        f"{document['failed']} failed, {document['waiting']} waiting"
    )
    if document["eta_s"] is not None:
        counts += f"; about {show_seconds(document['eta_s'])} left"
    lines = [counts]
    if document["disk_full"]:
        lines.append("The disk was full when it was last written to")
    lines += [
        f"Running: {item['output']} ({item['host']}, process {item['pid']}): {item['title']}"
        for item in document["running"]
    ]
    lines += [f"Failed: {item['output']} ({item['code']}): {item['message']}" for item in document["failures"]]
    return "\n".join(lines)
