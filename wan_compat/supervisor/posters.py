"""Posters: a small picture of each video for the gallery, made by a confined ffmpeg and remembered.

    small enough for the page    embedded in it, as a data: URI, up to MAX_EMBEDDED_BYTES for all together
    beyond that                  `report_posters/NAME.jpg` beside it; the file is its own memory

A picture that cannot be had costs its video a neutral tile, and nothing else.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import stat
import time
from pathlib import Path

from wan_compat.policies.encoding import format_for
from wan_compat.policies.encoding.formats import Format
from wan_compat.protocol.errors import WanCompatError
from wan_compat.supervisor.outputs import prepare_document
from wan_compat.supervisor.read_back import run_confined

POSTER_FOLDER = "report_posters"
POSTER_SIDE = 480  # pixels of the longer side: a tile is 300 wide, and screens have up to two pixels for one
MAX_POSTER_BYTES = 96 << 10
# A page of this size opens at once; base64 makes it a third more.
MAX_EMBEDDED_BYTES = 8 << 20
MAX_PICTURE_BYTES = 64 << 20  # of a picture that is given and has to be made smaller
POSTER_TIMEOUT_S = 20.0

_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_NAME = re.compile(r"[0-9a-f]{24}\.jpg")

# Of this process, by the key of a picture: what the page embeds. Bounded, since only what fits a page comes in.
_remembered: dict[str, bytes] = {}
_FAILED = b""


class PosterStore:
    """The posters of one page.

    Args:
        folder: The gallery's folder, to which all names are relative.
        deadline_s: On the monotonic clock; what is not made by then is left for the next page.
    """

    def __init__(self, folder: Path, deadline_s: float) -> None:
        self._folder = folder
        self._deadline_s = deadline_s
        self._embedded_bytes = 0
        self._used: set[str] = set()

    def source_of(self, given: str | bytes | os.PathLike[str] | None, output: str | None) -> str | None:
        """Return what an `<img>` may have as its source: a data: URI or a name in the folder; None without a picture.

        Args:
            given: A picture's content, or its path relative to the folder.
            output: The video, relative to the folder and known to stay within it.
        """
        if isinstance(given, bytes):
            return self._embed(given) if len(given) <= MAX_POSTER_BYTES and kind_of(given) else None
        # ValueError: a name that no file can have.
        with contextlib.suppress(OSError, WanCompatError, ValueError):
            if given is not None:
                return self._of_file(os.path.join(self._folder, given))
            if output is not None:
                return self._of_file(os.path.join(self._folder, output))
        return None

    def close(self) -> None:
        """Remove pictures of earlier pages that this one does not show."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self._folder / POSTER_FOLDER):
                if _NAME.fullmatch(name) and name not in self._used:
                    os.unlink(self._folder / POSTER_FOLDER / name)

    def _of_file(self, path: str) -> str | None:
        path = os.path.realpath(path, strict=True)
        if os.path.isdir(path):
            path = os.path.join(path, min(name for name in os.listdir(path) if name.startswith("frame_000001.")))
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            return None
        key = hashlib.sha256(f"{path}\0{info.st_size}\0{info.st_mtime_ns}".encode()).hexdigest()[:24]
        picture = _remembered.get(key)
        if picture == _FAILED:
            return None
        if picture is not None and self._fits(picture):
            return self._embed(picture)
        name = f"{POSTER_FOLDER}/{key}.jpg"
        if os.path.isfile(self._folder / name):
            self._used.add(f"{key}.jpg")
            return name
        if picture is None:
            if time.monotonic() > self._deadline_s:
                return None
            picture = small_picture(path) or _FAILED
            if not picture or self._fits(picture):
                _remember(key, picture)
                return self._embed(picture) if picture else None
        os.makedirs(self._folder / POSTER_FOLDER, exist_ok=True)
        with prepare_document(self._folder / name, overwrite=True) as target:
            with open(target.part_path, "wb") as file:
                file.write(picture)
            target.commit()
        self._used.add(f"{key}.jpg")
        return name

    def _fits(self, picture: bytes) -> bool:
        return self._embedded_bytes + len(picture) <= MAX_EMBEDDED_BYTES

    def _embed(self, picture: bytes) -> str | None:
        if not self._fits(picture):
            return None
        self._embedded_bytes += len(picture)
        return f"data:{kind_of(picture)};base64,{base64.b64encode(picture).decode('ascii')}"


def small_picture(path: str) -> bytes | None:
    """Return the first frame of a video or picture of ours as a small JPEG, None where it cannot be had.

    Takes some 50 ms, in a confined ffmpeg that reads this file only. The picture itself is decoded by nobody here.
    """
    try:
        form = format_for(os.path.splitext(path)[1])
    except WanCompatError:
        return None
    for demuxer in _demuxers(form):
        with contextlib.suppress(WanCompatError):
            finished = run_confined(
                [
                    *("-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-protocol_whitelist", "file,pipe"),
                    *("-threads", "1", "-f", demuxer, "-i", f"file:{path}", "-map", "0:v:0", "-frames:v", "1"),
                    *(
                        "-vf",
                        f"scale='min({POSTER_SIDE},iw)':'min({POSTER_SIDE},ih)':force_original_aspect_ratio=decrease",
                    ),
                    *("-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-q:v", "5", "-f", "image2pipe", "pipe:1"),
                ],
                path,
                timeout_s=POSTER_TIMEOUT_S,
                max_bytes=MAX_POSTER_BYTES + 1,
            )
            if finished.returncode == 0 and len(finished.stdout) <= MAX_POSTER_BYTES and kind_of(finished.stdout):
                return finished.stdout
    return None


def kind_of(picture: bytes) -> str | None:
    """Return the media type of a PNG or JPEG by its first bytes."""
    return next((kind for start, kind in _KINDS.items() if picture.startswith(start)), None)


def _demuxers(form: Format) -> list[str]:
    return [name for name in (form.demuxer, form.still_demuxer) if name]


def _remember(key: str, picture: bytes) -> None:
    if sum(map(len, _remembered.values())) + len(picture) > MAX_EMBEDDED_BYTES or len(_remembered) > 10_000:
        _remembered.clear()
    _remembered[key] = picture
