"""`SandboxedPipeline`: a diffusers script's pipeline, whose model runs in a contained worker.

    from wan_compat import SandboxedPipeline                  # was: from diffusers import WanPipeline

    with SandboxedPipeline.from_pretrained("path/to/model") as pipe:
        frames = pipe("a red fox in snow", num_frames=49, generator=7).frames[0]

Each prompt of a call is a job of a `Supervisor` (client.py). Nothing here imports torch or diffusers.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from wan_compat.policies import drop_in
from wan_compat.policies.pipelines import ways_of
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import InvalidRequest, ModelNotCompatible, PipelineFeatureMissing, WanCompatError
from wan_compat.protocol.results import VideoGenerationResult
from wan_compat.protocol.values import GenerationRequest, Mode
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor import audit_log
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.client import Job, Supervisor
from wan_compat.supervisor.generator_seeds import take_seeds
from wan_compat.supervisor.given_pictures import PictureFiles
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.model_choice import choose_model
from wan_compat.supervisor.model_parts import SINGLE_FILES, parts_of
from wan_compat.supervisor.pipeline_output import PipelineOutput, as_output, check_output_type
from wan_compat.supervisor.pipeline_settings import PipelineSettings, precision_of

if TYPE_CHECKING:
    from wan_compat.supervisor.remote import RemoteJob, RemoteSupervisor

    AnySupervisor = Supervisor | RemoteSupervisor

_VIDEOS = ("video", "mask", "pose_video", "face_video", "background_video")
_OF_VIDEO_TO_VIDEO = ("WanPipeline", "WanVideoToVideoPipeline")

StepCallback = Callable[["SandboxedPipeline", int, "float | None", dict[str, Any]], "Mapping[str, Any] | None"]


class SandboxedPipeline(PipelineSettings):
    """Called as the diffusers pipeline that it stands for; made by `from_pretrained`.

    Frames cross the wall of the sandbox as uint8, so that a float of `.frames` is that number / 255: below the float
    that diffusers returns by less than 1/255, and the same number in a video file. What needs the pipeline's own
    objects, its tensors, modules or scheduler, raises PipelineFeatureMissing with the alternative.
    """

    def __init__(
        self, supervisor: AnySupervisor, fields: Mapping[str, Any], pipeline_class: str, *, owned: bool
    ) -> None:
        super().__init__(fields)
        self._supervisor = supervisor
        self._pipeline_class = pipeline_class
        self._interrupt = False
        self._finalizer = weakref.finalize(self, supervisor.close if owned else _nothing)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        mode: Mode | str = Mode.SAFE,
        *,
        torch_dtype: Any = None,
        pipeline_class: str | None = None,
        supervisor: AnySupervisor | None = None,
        policy: Policy | None = None,
        min_tier: Tier | str | None = None,
        memory_limit_bytes: int | None = None,
        timeout_s: float | None = None,
        phase_timeouts: Mapping[str, float] | None = None,
        isolation: str = "model",
        attention_backend: str | None = None,
        layerwise_casting: Any = None,
        quantize: Mapping[str, str] | None = None,
        components: str | os.PathLike[str] | None = None,
        transformer: Any = None,
        transformer_2: Any = None,
        vae: Any = None,
        text_encoder: Any = None,
        image_encoder: Any = None,
        **others: Any,
    ) -> SandboxedPipeline:
        """Say that a model can be run, and return what runs it. No worker starts before the first call.

        Args:
            pretrained_model_name_or_path: As `GenerationRequest.model`.
            mode: "safe", or "trust" for files that were approved (docs/trust.md).
            torch_dtype: Of transformer and text encoder: a torch.dtype or its name. None lets the plan choose, where
                diffusers loads float32.
            pipeline_class: The class that a script names, where another one than the model's shall be an error.
            supervisor: Whose workers to use, and which stays open: a `Supervisor`, or a served one (`connect()`). None
                makes one that ends with this object.
            policy, min_tier, memory_limit_bytes: As for `Supervisor`.
            timeout_s, phase_timeouts, isolation, attention_backend, quantize, components: As for `GenerationRequest`,
                for every call.
            layerwise_casting: Storage of the transformers' layers: torch.float8_e4m3fn, torch.float8_e5m2 or a name of
                them. Stands for diffusers' `transformer.enable_layerwise_casting` of every transformer.
            transformer, transformer_2, vae, text_encoder, image_encoder: Paths of single files, each for one part.
            others: What diffusers takes besides and is done here anyway (`use_safetensors=True`).

        Raises:
            PipelineFeatureMissing: An argument that asks for what is not done, with the alternative.
            ModelNotFound, ModelNotCompatible, RemoteCodeRefused, TrustRefused, ...: What a job would end with.
        """
        others = dict(others)
        dtype = others.pop("dtype", None)  # what transformers and newer code call torch_dtype
        drop_in.check_load_arguments(others)
        fields: dict[str, Any] = {
            "model": os.fspath(pretrained_model_name_or_path),
            "mode": mode,
            "precision": precision_of(torch_dtype if torch_dtype is not None else dtype),
            "timeout_s": timeout_s,
            "phase_timeouts": dict(phase_timeouts or {}),
            "isolation": isolation,
            "attention_backend": attention_backend,
            "layerwise_casting": None if layerwise_casting is None else str(layerwise_casting).removeprefix("torch."),
            "quantize": dict(quantize or {}),
            "components": components,
        }
        parts = (transformer, transformer_2, vae, text_encoder, image_encoder)
        for name, part in zip(SINGLE_FILES, parts, strict=True):
            fields[name] = _path_of_part(name, part)
        with contextlib.ExitStack() as stack:
            owned = supervisor is None
            if supervisor is None:
                supervisor = stack.enter_context(
                    Supervisor(mode, policy=policy, min_tier=min_tier, memory_limit_bytes=memory_limit_bytes)
                )
            elif (policy, min_tier, memory_limit_bytes) != (None, None, None):
                raise InvalidRequest("policy, min_tier and memory_limit_bytes are the supervisor's that was given")
            pipeline = cls(supervisor, fields, _pipeline_class(fields, pipeline_class), owned=owned)
            stack.pop_all()
        return pipeline

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        image: Any = None,
        last_image: Any = None,
        video: Any = None,
        mask: Any = None,
        reference_images: Any = None,
        pose_video: Any = None,
        face_video: Any = None,
        background_video: Any = None,
        mask_video: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_scale_2: float | None = None,
        strength: float | None = None,
        conditioning_scale: float | None = None,
        num_videos_per_prompt: int | None = 1,
        generator: Any = None,
        output_type: str | None = "np",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (),
        max_sequence_length: int | None = None,
        **others: Any,
    ) -> PipelineOutput | tuple[Any, ...]:
        """Generate, and wait for it. Names mean what they mean in diffusers; left out, they have its defaults.

        Args:
            prompt, negative_prompt: A text, or a list with one for each video. Videos of one prompt with seeds that
                follow each other are one job, which makes them one after the other; others are jobs of their own.
            image, last_image, reference_images: Paths, PIL images, arrays (height, width, 3) or tensors.
            video, mask, pose_video, face_video, background_video: A path, or frames as a list, array or tensor.
            generator: A torch.Generator, a seed as a number, or a list with one for each video. Of several videos from
                one, the first is diffusers' own, the others have the seeds that follow.
            output_type: "np", "pil", or "pt" in a program that has imported torch.
            callback_on_step_end: Called with this object, the step from 0, the scheduler's timestep and a mapping
                without tensors, when a step is over; the worker does not wait for it. An exception ends the jobs.
            others: Refused, with the alternative.

        Raises:
            PipelineFeatureMissing: Something that does not reach across the sandbox.
            WanCompatError: Whatever ended a job, with its code. The other jobs of the call are cancelled; `finished`
                has the results of the videos that stand, with their frames.
        """
        for name, value in others.items():
            if value is not None:
                raise drop_in.missing_argument(name)
        if callback_on_step_end is not None and callback_on_step_end_tensor_inputs:
            raise _no_tensors(", ".join(map(str, callback_on_step_end_tensor_inputs)))
        output_type = check_output_type(output_type)
        prompts = drop_in.prompts_of(prompt, negative_prompt, num_videos_per_prompt or 1)
        asked: dict[str, Any] = {
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "guidance_scale_2": guidance_scale_2,
            "strength": strength,
            "conditioning_scale": conditioning_scale,
            "max_sequence_length": max_sequence_length,
        }
        pictures = {"image": image, "last_image": last_image}
        videos = dict(zip(_VIDEOS, (video, mask, pose_video, face_video, background_video), strict=True))
        videos["mask"] = videos["mask"] if mask_video is None else mask_video
        self._interrupt = False
        # Until the last job is over: a job copies its files when its turn comes.
        with self._given(pictures, videos, reference_images, asked) as given:
            fields = self._fields | self._with_defaults(asked) | given | {"loras": tuple(self._loras.values())}
            requests = [_request(fields, prompt=one, negative_prompt=other) for one, other in prompts]
            # Last, because a generator is used up by it.
            seeds = drop_in.spread_seeds(take_seeds(generator), len(requests))
            seeded = [one.model_copy(update={"seed": seed}) for one, seed in zip(requests, seeds, strict=True)]
            results = self._run(drop_in.joined(seeded), callback_on_step_end)
        output = as_output(results, output_type)
        return output if return_dict else output.to_tuple()

    def close(self) -> None:
        """End the workers, unless the supervisor was given. Safe to call twice; done when this object goes, too."""
        self._finalizer()

    def __enter__(self) -> SandboxedPipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- a call ----------------------------------------------------------------------------------------------------

    def _with_defaults(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        defaults = drop_in.CALL_DEFAULTS if self._pipeline_class in drop_in.WITH_CALL_DEFAULTS else {}
        return {name: value if value is not None else defaults.get(name) for name, value in asked.items()}

    @contextlib.contextmanager
    def _given(
        self, pictures: Mapping[str, Any], videos: Mapping[str, Any], references: Any, asked: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Yield the fields of a request that name files, which are gone afterwards unless they were given as paths."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wan-compat-given-"))
            files = PictureFiles(folder)
            fields: dict[str, Any] = {
                name: files.picture(value, name) for name, value in pictures.items() if value is not None
            }
            for name, value in videos.items():
                if value is None:
                    continue
                fields[name], frames = files.video(value, name)
                by_video = name == "video" and self._pipeline_class in _OF_VIDEO_TO_VIDEO
                if by_video and frames and asked["num_frames"] is None:
                    # As WanVideoToVideoPipeline, which has no num_frames: as many as its VAE can take.
                    asked["num_frames"] = (frames - 1) // 4 * 4 + 1
            if references is not None:
                fields["references"] = files.pictures(references, "reference_images")
            yield fields

    def _run(self, requests: Sequence[GenerationRequest], callback: StepCallback | None) -> list[VideoGenerationResult]:
        jobs: list[Job | RemoteJob] = []
        results = []
        try:
            for request in requests:
                jobs.append(self._supervisor.submit(request))
            for job in jobs:
                for event in job.events():
                    if callback is not None and isinstance(event, ev.Progress) and event.phase == "denoise":
                        self._call_back(callback, event)
                results += job.results()
        except BaseException as error:
            for job in jobs:
                job.cancel()
            if isinstance(error, WanCompatError):
                error.finished = (*results, *error.finished)
            raise
        return results

    def _call_back(self, callback: StepCallback, event: ev.Progress) -> None:
        changed = callback(self, event.step - 1, event.timestep, _NoTensors())
        if changed:
            raise _no_tensors(", ".join(map(str, changed)))
        if self._interrupt:
            raise PipelineFeatureMissing(
                "a video cannot be ended early and decoded as it is", hint="raise an exception in the callback to stop"
            )


class _NoTensors(dict[str, Any]):
    """The `callback_kwargs` of a step: empty, and with an answer for who looks for latents."""

    def __missing__(self, name: str) -> Any:
        raise _no_tensors(name)


def _no_tensors(names: str) -> PipelineFeatureMissing:
    return PipelineFeatureMissing(
        f"a callback cannot read or change {names}: tensors do not leave the worker",
        hint="give callback_on_step_end_tensor_inputs=[] and return {}; "
        "LatentPreview events of a Supervisor show what the video is becoming",
    )


def _request(fields: Mapping[str, Any], **more: Any) -> GenerationRequest:
    try:
        return GenerationRequest(**fields, **more)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"{name}: {first['msg'].removeprefix('Input ')}") from error


def _nothing() -> None:
    """What ends with a pipeline whose supervisor is somebody else's."""


def _path_of_part(name: str, part: Any) -> str | None:
    if part is None:
        return None
    if not isinstance(part, str | os.PathLike):
        raise PipelineFeatureMissing(
            f"{name} is a {type(part).__name__}: an object of this process cannot go into a worker",
            hint="leave it out, or give the path of a file with its weights",
        )
    return os.fspath(part)


def _pipeline_class(fields: Mapping[str, Any], wanted: str | None) -> str:
    """Return the class of the usual task, or raise what a job of this model would end with."""
    request = _request(fields, prompt="")
    host = read_host()
    try:
        decision = choose_model(
            request.model,
            request.mode,
            threads=host.cpu_count,
            memory_limit_bytes=host.memory_total_bytes,
            parts=parts_of(request),
            recover=request.recover,
        )
    except WanCompatError as error:
        audit_log.note_error(error, model=request.model, mode=request.mode.value)  # as of a job, which will not come
        raise
    usual = decision.pipeline.pipeline_class
    known = {usual, *(way.pipeline for way in (ways_of(decision.way.weights) if decision.way is not None else ()))}
    if wanted is not None and wanted not in known:
        raise ModelNotCompatible(
            f"{request.model} does not run in {wanted!r}", hint=f"it runs in {' and '.join(sorted(known))}"
        )
    return usual if wanted is None else wanted
