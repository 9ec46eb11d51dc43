"""What the encoder of one output writes, and what is found in it afterwards. Pictures are one stream, which is cut."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction

from wan_compat.policies.encoding import EncodingConfig, VideoFacts, Writer
from wan_compat.protocol.errors import (
    DeadlineExceeded,
    DiskExceeded,
    EncodingFailed,
    EnvironmentLacks,
    MemoryExceeded,
    SandboxEntryFailed,
)
from wan_compat.protocol.values import FrameSpec
from wan_compat.supervisor.encoder import EncoderProcess, spawn_encoder
from wan_compat.supervisor.frame_files import disk_error, picture_name
from wan_compat.supervisor.read_back import verify_video

# What an encoder can die of. Everything else is a bug, or somebody's wish to stop.
FAILURES = (EncodingFailed, DiskExceeded, MemoryExceeded, SandboxEntryFailed, EnvironmentLacks, DeadlineExceeded)


class EncodedStream:
    """
    Args:
        config: How it is encoded; may be another one once that failed.
        frames: Size and number of the frames.
        part_path: The file, or for pictures the folder, that gets the output's name when it is whole.
    """

    def __init__(self, config: EncodingConfig, frames: FrameSpec, part_path: str) -> None:
        self.config, self.frames = config, frames
        self._part_path = part_path

    @property
    def path(self) -> str:
        """The file or folder that is written. ffmpeg gets one file: of pictures, a stream that is cut later."""
        if self.config.is_sequence and self.config.format.writer is Writer.FFMPEG:
            return os.path.join(self._part_path, ".stream")
        return self._part_path

    def spawn(self, check_stop: Callable[[], None]) -> EncoderProcess:
        """Start an encoder that writes it from its beginning. `check_stop` raises what ends the job meanwhile."""
        if self.config.is_sequence:
            with open(self.path, "wb"):
                pass
        encoder = spawn_encoder(self.config, self.frames.num_frames, self.path)
        encoder.check_stop = check_stop
        return encoder

    def read_back(self) -> VideoFacts:
        """Look whether it is what was promised. Raises EncodingFailed."""
        if self.config.format.writer is not Writer.FFMPEG:
            return self.as_written()
        facts = verify_video(self.path, self.config, self.frames.num_frames)
        if self.config.is_sequence:
            self._cut(facts.packet_bytes)
        return facts

    def as_written(self) -> VideoFacts:
        """Return what is in a file that our own writer made."""
        frames = self.frames
        return VideoFacts(
            codec=self.config.codec,
            pixel_format="rgb24",
            color=("pc",),
            width=frames.width,
            height=frames.height,
            num_frames=frames.num_frames,
            duration=frames.num_frames / self.config.frame_rate,
            tick=Fraction(0),
        )

    def _cut(self, sizes: tuple[int, ...]) -> None:
        """Cut the one stream of pictures into files."""
        suffix = self.config.format.suffix
        try:
            with open(self.path, "rb") as stream:
                for index, size in enumerate(sizes):
                    with open(os.path.join(self._part_path, picture_name(index, suffix)), "wb") as picture:
                        picture.write(stream.read(size))
                if stream.read(1):
                    raise EncodingFailed("the pictures do not add up to the stream")
            os.unlink(self.path)
        except OSError as error:
            raise disk_error(error, self._part_path) from error
