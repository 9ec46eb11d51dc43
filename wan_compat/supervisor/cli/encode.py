"""`wan-compat encode SOURCE`: one of our outputs into another format; finishes frames that an encoder left behind."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.session import Session
from wan_compat.supervisor.cli.video_options import (
    Audio,
    Codec,
    ContactSheet,
    CropOdd,
    FormatName,
    Fragmented,
    Poster,
    QualityOption,
    given,
)


def encode(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A video, folder of pictures or array, as generate writes them."),
    ],
    output: Annotated[str, typer.Option("--output", metavar="FILE", help="File to write, or folder for pictures.")],
    fps: Annotated[
        float | None, typer.Option("--fps", metavar="X", help="Frames per second. Default: the source's.")
    ] = None,
    format: FormatName = None,
    codec: Codec = None,
    quality: QualityOption = None,
    crop_odd: CropOdd = False,
    fragmented: Fragmented = False,
    audio: Audio = None,
    poster: Poster = False,
    contact_sheet: ContactSheet = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Turn a video, animation, folder of pictures or array of ours into another format.

    Frames are kept one for one: nothing is resized, repeated or dropped. Without a model and without a worker.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)

    from wan_compat.protocol.video import VideoOptions
    from wan_compat.supervisor.cli.quantities import show_bytes, show_frames
    from wan_compat.supervisor.cli.runner import built
    from wan_compat.supervisor.video_encoder import FormatConverter

    options = built(
        VideoOptions,
        given(
            format=format,
            codec=codec,
            quality=quality,
            crop_odd=crop_odd,
            fragmented=fragmented,
            audio=audio,
            poster=poster,
            contact_sheet=contact_sheet,
        ),
    )
    converter = FormatConverter(options, overwrite=overwrite)
    if dry_run:
        path, frames, config = converter.foresee(source, output, fps=fps)
        planned = {"path": path, "codec": config.codec, "fps": config.fps, **frames.model_dump()}
        if session.json:
            session.document({"schema_version": 1, "dry_run": True, "output": planned})
        else:
            session.say(
                f"Would write {path}: {show_frames(frames.num_frames)}, {frames.width}x{frames.height}, "
                f"{config.fps:g} fps, {config.codec}"
            )
        return 0
    result = converter.convert(source, output, fps=fps)
    report = result.report
    assert report is not None
    if session.json:
        session.document({"schema_version": 1, "output": dataclasses.asdict(report), "warnings": result.warnings})
        return 0
    session.say(
        f"Wrote {report.path}: {show_frames(report.num_frames)}, {report.width}x{report.height}, {report.fps:g} fps, "
        f"{report.codec}, {show_bytes(report.bytes)}"
    )
    for warning in result.warnings:
        session.note(f"Warning: {warning}")
    return 0
