"""What `generate` is told about the task and given to work from (docs/tasks.md)."""

from __future__ import annotations

import enum
from typing import Annotated

import typer


# The values of protocol.values.Task, for the reason that options.py gives; tests/cli/test_main.py compares the two, and
# tests/cli/test_check.py those that `check` answers.
class Task(enum.StrEnum):
    T2V = "t2v"
    I2V = "i2v"
    FLF2V = "flf2v"
    V2V = "v2v"
    VACE = "vace"
    TI2V = "ti2v"
    ANIMATE = "animate"
    EDIT = "edit"
    T2I = "t2i"


TaskOption = Annotated[
    Task | None,
    typer.Option("--task", help="What to make. Default: follows from the model and what is given."),
]
Image = Annotated[str | None, typer.Option("--image", metavar="FILE", help="First frame, or picture to edit.")]
LastImage = Annotated[str | None, typer.Option("--last-image", metavar="FILE", help="Last frame.")]
Video = Annotated[
    str | None,
    typer.Option("--video", metavar="FILE", help="What to change or be led by, frame by frame."),
]
Mask = Annotated[
    str | None,
    typer.Option("--mask", metavar="FILE", help="For --video or --background-video: white is new."),
]
References = Annotated[
    list[str] | None,
    typer.Option("--reference", metavar="FILE", help="Picture of what shall appear; repeatable."),
]
PoseVideo = Annotated[str | None, typer.Option("--pose-video", metavar="FILE", help="For Animate: the body's poses.")]
FaceVideo = Annotated[str | None, typer.Option("--face-video", metavar="FILE", help="For Animate: the face.")]
BackgroundVideo = Annotated[
    str | None,
    typer.Option("--background-video", metavar="FILE", help="For Animate: where the character takes a place (--mask)."),
]
Strength = Annotated[
    float | None,
    typer.Option("--strength", metavar="X", help="Share of --video that is made new, 0 to 1."),
]
ConditioningScale = Annotated[
    float | None,
    typer.Option("--conditioning-scale", metavar="X", help="How strongly control signals lead."),
]
