"""What a person can do by hand about an error: the last part of recovery, and the table of manual options.

    unrecognised format         what else to do with it
    damaged index               rebuilt from the parts
    missing files               which to fetch, and how
    versions, missing packages  an environment of the model's own
    code refused                how it can be read and approved; never how to let it run unread
    too large                   smaller, shorter, by name
    encoder, format             another format, the frames

Every text names a command that exists; none of them turns on code of a repository or weakens the sandbox.
"""

from __future__ import annotations

import dataclasses
import shlex


@dataclasses.dataclass(frozen=True)
class Subject:
    """What the error was about, as far as it is known."""

    model: str
    repository: str | None = None
    has_output: bool = True
    alternatives: tuple[str, ...] = ()


def advise(code: str, message: str, subject: Subject) -> tuple[str, ...]:
    """Return fixes for an error's code and message, most promising first; () where the error says it all."""
    model = shlex.quote(subject.model)
    words = message.lower()
    again = f"fetch it again: wan-compat check {shlex.quote(subject.repository or 'REPOSITORY')} --download"
    match code:
        case "model_index_missing" | "model_corrupt" if "model_index.json" in words:
            repair = f"rebuild the index from the parts: wan-compat check {model} --repair NEW_FOLDER"
            return (repair, again if subject.repository else "download model_index.json again")
        case "model_corrupt" | "model_unreadable" | "model_invalid":
            which = f"see which files are missing or broken: wan-compat check {model}"
            return (which, again) if subject.repository else (which, "download the named files again")
        case "unusable_frames" if "weights of" in words:
            return (f"see which parts are sound: wan-compat diagnose {model} --parts", again)
        case "model_not_compatible":
            use = tuple(f"use {name}" for name in subject.alternatives[:2])
            return (*use, f"see what it is and what it needs: wan-compat check {model}")
        case "worker_extra_missing" | "version_conflict" | "environment_lacks":
            return (f"install what it needs into an environment of its own: wan-compat install-deps {model}",)
        case "remote_code_refused" | "trust_refused":
            return (
                f"read what the repository would run: wan-compat scan {model}",
                "docs/trust.md tells how code that you have reviewed is approved by its hash",
            )
        case "pickle_refused":
            return (f"convert the weights inside the sandbox: wan-compat convert {model} --output NEW_FOLDER",)
        case "memory_exceeded":
            return (f"see what fits: wan-compat plan {model}", "ask for fewer frames or a smaller size")
        case "generation_failed" | "worker_died" | "worker_silent" | "worker_stalled" | "unusable_frames":
            return (f"write a report: wan-compat diagnose {model} --parts",)
        case "encoding_failed" | "ffmpeg_missing":
            return (
                ("write pictures, which need no encoder: --format png; `wan-compat encode` makes the video of them",)
                if subject.has_output
                else ()
            )
    return ()
