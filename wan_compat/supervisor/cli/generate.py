"""`wan-compat generate MODEL`: one prompt, one video or several."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from wan_compat.protocol.errors import InvalidRequest
from wan_compat.supervisor.cli.again import Again
from wan_compat.supervisor.cli.downloads import Download, obtain
from wan_compat.supervisor.cli.operations import LogPrompts, LogTo, MetricsTo
from wan_compat.supervisor.cli.options import Isolation, Json, MinTier, Mode, PhaseTimeout, Quiet, Verbose
from wan_compat.supervisor.cli.parts_options import (
    Components,
    ImageEncoder,
    Lora,
    Quantize,
    TextEncoder,
    Transformer,
    Transformer2,
    Vae,
    parts_fields,
)
from wan_compat.supervisor.cli.plan_options import (
    AttentionBackend,
    CacheOption,
    DeviceOption,
    GpuMemoryLimit,
    LayerwiseCastingOption,
    NumVideos,
    OffloadOption,
    PrecisionOption,
    VaeTiling,
    VideosAtOnce,
)
from wan_compat.supervisor.cli.quantities import parse_bytes, parse_seconds
from wan_compat.supervisor.cli.session import Session
from wan_compat.supervisor.cli.task_options import (
    BackgroundVideo,
    ConditioningScale,
    FaceVideo,
    Image,
    LastImage,
    Mask,
    PoseVideo,
    References,
    Strength,
    TaskOption,
    Video,
)
from wan_compat.supervisor.cli.video_options import (
    Audio,
    Codec,
    ContactSheet,
    CropOdd,
    FormatName,
    Fragmented,
    MetadataOption,
    Poster,
    QualityOption,
    default_suffix,
    given,
)


def generate(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Folder of a Wan model, or a single file of one (see --components)."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="What to show; - reads it from stdin.")
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", metavar="TEXT", help="What to keep away from.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="FILE", help="Video to write. Default: named after the prompt, here."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output if it exists.")] = False,
    task: TaskOption = None,
    image: Image = None,
    last_image: LastImage = None,
    video: Video = None,
    mask: Mask = None,
    pose_video: PoseVideo = None,
    face_video: FaceVideo = None,
    background_video: BackgroundVideo = None,
    reference: References = None,
    strength: Strength = None,
    conditioning_scale: ConditioningScale = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Same seed, same video. Default: drawn, and told.")
    ] = None,
    num_videos: NumVideos = None,
    videos_at_once: VideosAtOnce = None,
    width: Annotated[
        int | None, typer.Option("--width", metavar="PIXELS", help="Of the video; must fit the model.")
    ] = None,
    height: Annotated[
        int | None, typer.Option("--height", metavar="PIXELS", help="Of the video; must fit the model.")
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option("--num-frames", metavar="N", help="Length of the video; 4k + 1.")
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option("--num-inference-steps", metavar="N", help="Denoising steps: more is slower.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", metavar="X", help="How closely to follow the prompt.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option("--fps", metavar="X", help="Frames per second of the file. Default: the family's.")
    ] = None,
    format: FormatName = None,
    codec: Codec = None,
    quality: QualityOption = None,
    metadata: MetadataOption = None,
    crop_odd: CropOdd = False,
    fragmented: Fragmented = False,
    audio: Audio = None,
    preview: Annotated[
        str | None,
        typer.Option("--preview", metavar="DIR", help="Folder in which pictures of the frames so far appear."),
    ] = None,
    preview_latents: Annotated[
        bool, typer.Option("--preview-latents", help="In --preview, also what the video becomes while it is denoised.")
    ] = False,
    poster: Poster = False,
    contact_sheet: ContactSheet = False,
    from_sidecar: Annotated[
        str | None,
        typer.Option("--from", metavar="SIDECAR", help="Make a sidecar's video again; other options change it."),
    ] = None,
    components: Components = None,
    transformer: Transformer = None,
    transformer_2: Transformer2 = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    image_encoder: ImageEncoder = None,
    lora: Lora = None,
    quantize: Quantize = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    offload: OffloadOption = None,
    vae_tiling: VaeTiling = None,
    attention_backend: AttentionBackend = None,
    cache: CacheOption = None,
    layerwise_casting: LayerwiseCastingOption = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="TIME", parser=parse_seconds, help="For the whole job: 90s, 10m, 1.5h."),
    ] = None,
    phase_timeout: PhaseTimeout = None,
    memory_limit: Annotated[
        int | None,
        typer.Option(
            "--memory-limit", metavar="SIZE", parser=parse_bytes, help="Worker's cap: 8GB, 512MiB. Default: from free."
        ),
    ] = None,
    gpu_memory_limit: GpuMemoryLimit = None,
    worker_log: Annotated[
        str | None, typer.Option("--worker-log", metavar="FILE", help="Keep what the worker printed, cleaned.")
    ] = None,
    mode: Annotated[Mode | None, typer.Option("--mode", help="trust runs approved code only. Default: safe.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="The original spelling of --mode trust.")
    ] = False,
    safe_mode: Annotated[bool, typer.Option("--safe-mode", help="The original spelling of --mode safe.")] = False,
    restricted: Annotated[
        bool,
        typer.Option("--restricted", help="Safe mode: run the repository's code if it keeps to an audited subset."),
    ] = False,
    isolation: Annotated[
        Isolation, typer.Option("--isolation", help="job: a fresh worker for every video.")
    ] = Isolation.MODEL,
    min_tier: Annotated[
        MinTier | None,
        typer.Option("--min-tier", help="Weakest sandbox to accept; see doctor. Default: the settings', else B."),
    ] = None,
    no_recovery: Annotated[
        bool, typer.Option("--no-recovery", help="Stop at the first error, instead of trying other ways.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask at the first use of a model.")] = False,
    log_file: LogTo = None,
    log_prompts: LogPrompts = False,
    metrics: MetricsTo = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Decide and tell everything; start and write nothing.")
    ] = False,
    download: Download = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Generate a video, or several, in a sandboxed worker.

    Options that are left out take the model family's defaults. Sizes are never changed in silence.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    session.observed(log_file=log_file, log_prompts=log_prompts, metrics=metrics)
    chosen = settle_mode(mode, trust_remote_code=trust_remote_code, safe_mode=safe_mode)

    from wan_compat.policies.phases import parse_phase_timeouts
    from wan_compat.supervisor.cli.confirm import confirm_first_use
    from wan_compat.supervisor.cli.outlook_view import show_outlook
    from wan_compat.supervisor.cli.runner import build_request, describe_result, free_name, name_for_prompt, run_request
    from wan_compat.supervisor.performance_monitor import note as note_timings

    said = given(
        model=model,
        prompt=read_prompt() if prompt == "-" else prompt,
        negative_prompt=negative_prompt,
        task=task.value if task is not None else None,
        image=image,
        last_image=last_image,
        video=video,
        mask=mask,
        pose_video=pose_video,
        face_video=face_video,
        background_video=background_video,
        references=tuple(reference) if reference else None,
        strength=strength,
        conditioning_scale=conditioning_scale,
        seed=seed,
        num_videos=num_videos,
        videos_at_once=videos_at_once,
        width=width,
        height=height,
        num_frames=num_frames,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        fps=fps,
        format=format,
        codec=codec,
        quality=quality,
        metadata=metadata,
        crop_odd=crop_odd,
        fragmented=fragmented,
        audio=audio,
        preview=preview,
        preview_latents=preview_latents,
        poster=poster,
        contact_sheet=contact_sheet,
        device=device,
        precision=precision.value if precision else None,
        offload=offload.value if offload else None,
        attention_backend=attention_backend,
        cache=cache.value if cache else None,
        layerwise_casting=layerwise_casting.value if layerwise_casting else None,
    )
    if vae_tiling is not None:
        said["vae_tiling"] = vae_tiling  # False is a wish here
    files = {
        "components": components,
        "transformer": transformer,
        "transformer_2": transformer_2,
        "vae": vae,
        "text_encoder": text_encoder,
        "image_encoder": image_encoder,
    }
    said |= parts_fields(files, lora, quantize)
    again = Again(from_sidecar, chosen, restricted=restricted) if from_sidecar is not None else None
    fields = (again.fields if again else {}) | said
    if again is not None and again.note is not None:
        session.note(f"Note: {again.note}")
    for name, option in (("model", "MODEL"), ("prompt", "--prompt")):
        if name not in fields:
            raise InvalidRequest(f"{option} is missing", hint="see `wan-compat generate --help`")
    if (videos_at_once or 1) > 1 and fields.get("num_videos", 1) == 1:
        session.note("Note: one video is made, whatever --videos-at-once says: --num-videos N makes several")
    if preview_latents and preview is None:
        raise InvalidRequest("--preview-latents has no folder to write to", hint="add --preview DIR")
    model = session.model = fields["model"]
    if output is None:
        suffix = default_suffix(fields.get("format"), again.video_name if again else None)
        output = free_name(name_for_prompt(str(fields["prompt"])), suffix, num_videos=fields.get("num_videos", 1))
    request = build_request(
        output=output,
        overwrite=overwrite,
        timeout_s=timeout,
        phase_timeouts=parse_phase_timeouts(phase_timeout),
        memory_limit_bytes=memory_limit,
        gpu_memory_limit_bytes=gpu_memory_limit,
        worker_log=worker_log,
        isolation=isolation.value,
        mode=chosen.value,
        restricted=restricted,
        recover=not no_recovery,
        **fields,
    )
    if dry_run:
        show_outlook(session, request, min_tier=min_tier.value if min_tier else None)
        return 0
    obtain(session, model, download=download, code=chosen is Mode.TRUST)
    confirm_first_use(session, model, chosen, yes=yes)
    result = run_request(session, request, min_tier=min_tier.value if min_tier else None)
    if again is not None:
        again.compare(session, result)
    if (remark := note_timings(result)) is not None:
        session.note(f"Warning: {remark}")
    if session.json:
        session.document(result.to_json())
    else:
        for one in result.videos:
            session.say(describe_result(session, one))
    return 0


def settle_mode(mode: Mode | None, *, trust_remote_code: bool, safe_mode: bool) -> Mode:
    """Settle the three spellings of the mode."""
    trust = mode is Mode.TRUST or trust_remote_code
    if trust and (mode is Mode.SAFE or safe_mode):
        raise InvalidRequest("safe and trust mode were both asked for", hint="keep one of them")
    return Mode.TRUST if trust else Mode.SAFE


def read_prompt() -> str:
    """Return the prompt from stdin, without its last line break. Reads no more than a prompt may have."""
    from wan_compat.protocol.values import MAX_PROMPT_CHARS

    data = sys.stdin.buffer.read(4 * MAX_PROMPT_CHARS + 2)
    try:
        text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the prompt on stdin is not UTF-8 (byte {error.start})") from error
    if len(text) > MAX_PROMPT_CHARS:
        raise InvalidRequest(f"the prompt on stdin is longer than {MAX_PROMPT_CHARS} characters")
    return text
