"""The videos of a job that stand: their results and sidecars, and what an error that ends the others says of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from wan_compat.policies.requests import ResolvedRequest
from wan_compat.policies.videos import Round, remade_by, resolved_of, what_is_left
from wan_compat.protocol.errors import MemoryExceeded, WanCompatError
from wan_compat.protocol.results import VideoGenerationResult
from wan_compat.protocol.values import GenerationRequest, seed_after
from wan_compat.supervisor import provenance
from wan_compat.supervisor.job_result import Made, compose_result
from wan_compat.supervisor.round_output import TakenVideo
from wan_compat.supervisor.worker import Worker


class FinishedVideos:
    """Belongs to the run of one job.

    Args:
        request: What was asked for.
        since_s: When the first video's time begins; that of each other begins where the one before ended.
        tell_warning: Tells what goes wrong with a sidecar.

    Attributes:
        results: In their order.
    """

    def __init__(self, request: GenerationRequest, since_s: float, tell_warning: Callable[[str], None]) -> None:
        self._request = request
        self._tell_warning = tell_warning
        self._since_s = since_s
        self.results: list[VideoGenerationResult] = []

    def keep(self, taken: Sequence[TakenVideo], together: Round, made: Made, worker: Worker) -> None:
        """Put together the results of videos that stand since the last call, and write their sidecars.

        Args:
            together: The videos that were denoised with them.
            made: What is true of all of them; `made.resolved` is the job's.
        """
        now = time.monotonic()
        for video in taken:
            resolved = resolved_of(made.resolved, video.number, together)
            timings = dataclasses.replace(made.timings, encode_s=video.encode_s, total_s=now - self._since_s)
            own = [text for text in video.warnings if text not in made.warnings]
            result = compose_result(
                dataclasses.replace(
                    made,
                    resolved=resolved,
                    frames=video.frames,
                    output=video.output,
                    timings=timings,
                    warnings=[*made.warnings, *own],
                    recovery=[*made.recovery, *video.recovery],
                ),
                worker,
            )
            self.results.append(result)
            if video.delivery is not None and video.output is not None:
                request = remade_by(self._request, made.resolved, together, video.number)
                number = video.number - together.first if together.size > 1 else None
                document = provenance.document(request, made.model, resolved, result, number)
                video.delivery.write_sidecar(document, video.output)
                for warning in video.delivery.warnings[len(video.warnings) :]:
                    result.warnings.append(warning)
                    self._tell_warning(warning)
        if taken:
            self._since_s = now

    def result(self) -> VideoGenerationResult:
        """Return the job's result: that of the first video, which has the others."""
        return VideoGenerationResult.of_videos(self.results)

    def tell(self, error: WanCompatError, resolved: ResolvedRequest) -> None:
        """Give to an error the videos that are finished all the same, and say what makes the others."""
        finished, total = len(self.results), self._request.num_videos
        if isinstance(error, MemoryExceeded) and min(total, self._request.videos_at_once) > 1:
            # Asked for by name, so that recovery leaves it as it is.
            error.fixes = ("leave --videos-at-once out: one after the other takes the memory of one", *error.fixes)
        if not finished:
            return
        paths = [result.output_path for result in self.results if result.output_path is not None]
        error.details["videos_finished"] = paths
        error.finished = tuple(self.results)
        where = "" if paths else ", in the error's `finished`"
        are, them = ("is", "it") if finished == 1 else ("are", "them")
        stand = f"{finished} of {total} videos {are} finished{where}: keep {them}"
        # Frames that were kept are a video once they are encoded, as another fix says.
        made = finished + ("kept" in error.details)
        if made < total:
            seed = error.details["next_seed"] = seed_after(resolved.params.seed, made)
            stand += f", and make the others with {what_is_left(made, total, seed, self._request.output)}"
        error.fixes = (stand, *error.fixes)
