"""`generate --from SIDECAR`: what an earlier video was asked for, and whether the model is still the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wan_compat.protocol.errors import InvalidRequest
from wan_compat.supervisor.cli.options import Mode
from wan_compat.supervisor.cli.session import Session

if TYPE_CHECKING:
    from wan_compat.protocol.results import VideoGenerationResult


class Again:
    """A sidecar, read. `fields` are those of the request, `video_name` the name that the video had, if it says one.

    A sidecar may be anybody's: it never chooses where something is written, and never the mode.

    Raises:
        InvalidRequest: It is none, or its video was made in a mode that was not asked for.
    """

    def __init__(self, path: str, mode: Mode, *, restricted: bool) -> None:
        from wan_compat.supervisor.video_info import request_again

        self.fields, self._document = request_again(path)
        made = self._document.get("mode")
        if made == "trust" and mode is not Mode.TRUST:
            raise InvalidRequest(
                "that video was made in trust mode, which a sidecar cannot choose",
                hint="say --mode trust too if you approved the model's code, or give another model",
            )
        if self._document.get("restricted") is True and not restricted:
            raise InvalidRequest("that video was made with --restricted", hint="say --restricted too")

    @property
    def video_name(self) -> str | None:
        video = self._document.get("video")
        name = video.get("path") if isinstance(video, Mapping) else None
        return name if isinstance(name, str) else None

    @property
    def note(self) -> str | None:
        """What a person should know about making it again."""
        together = _of(self._document, "at_once")
        number, size = together.get("video"), together.get("of")
        if not isinstance(number, int) or not isinstance(size, int):
            return None
        return f"that video is number {number} of {size} that were denoised at once: all of them are made again"

    def compare(self, session: Session, result: VideoGenerationResult) -> None:
        """Tell when the video could not come out the same: another model, or other versions."""
        from wan_compat.supervisor import sidecar

        if result.output_path is None:
            return
        now = sidecar.find(result.output_path) or {}
        before, after = _of(self._document, "model").get("sha256"), _of(now, "model").get("sha256")
        if before and after and before != after:
            session.note("Warning: the model's files are others than those that the sidecar names")
        then = _of(_of(_of(self._document, "result"), "metadata"), "system_info")
        for library in ("torch", "diffusers", "transformers"):
            version = result.metadata.system_info.get(library)
            if library in then and version != then[library]:
                session.note(f"Warning: {library} was {then[library]} then and is {version} now; pixels may differ")


def _of(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = document.get(name)
    return inner if isinstance(inner, Mapping) else {}
