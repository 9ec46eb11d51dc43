"""What runs inside the sandbox: greet, close the door, then load and generate as told until the supervisor is gone.

    entered -> reseed -> Hello -> Welcome -> seal -> Ready -> ( LoadModel | Generate )* -> killed or Shutdown
                                                           -> ( DecodeAgain | LoadPart )*      a way out of a failure
                                                           -> ( OpenWeights | SendTensors )*   for a conversion

The main thread loads and generates; the control thread speaks (control.py). A failed or cancelled job is reported and
the worker goes on; anything that this file does not expect ends the process, which is what a sandbox is good at.
"""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from typing import TYPE_CHECKING

from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import JobCancelled, UnusableFrames, clean_text
from wan_compat.protocol.launch import SpawnWorker
from wan_compat.protocol.values import PipelineSpec, Value
from wan_compat.sandbox import seccomp, selftest, spec
from wan_compat.sandbox.report import EntryReport
from wan_compat.workers import libraries
from wan_compat.workers.cancellation import Cancellation
from wan_compat.workers.control import Control
from wan_compat.workers.failures import to_message
from wan_compat.workers.prompt_length import describe_cut

if TYPE_CHECKING:  # torch is imported with them, which a light zygote must not do
    from wan_compat.workers.conversion import Opened
    from wan_compat.workers.frames import FrameRing
    from wan_compat.workers.loader import LoadedModel
    from wan_compat.workers.media import Media
    from wan_compat.workers.second_decode import LatentKeeper


OWN_PIPELINE = "the repository's own pipeline returns its frames as a whole"
SEGMENTS = "this pipeline decodes by itself, and returns its frames as a whole"


def run(
    order: SpawnWorker,
    confinement: spec.ConfinementSpec,
    ring_fd: int,
    doorbell_fd: int,
    report: EntryReport,
    *,
    light: bool,
) -> None:
    """Be a worker. Called by sandbox.launch in the confined process; never returns, the control thread ends it.

    Args:
        order: From the supervisor; its seed and endpoint are used here.
        confinement: Its spec, already in force.
        ring_fd, doorbell_fd: This worker's own, see protocol/ring.py.
        report: Which layers were entered.
        light: The zygote did not import the libraries; do it now, before the first message, which comes seconds later.
    """
    # First of all, while no descriptor is open but what was handed over.
    probes = _probes(selftest.run_probes((ring_fd, doorbell_fd)))
    _use_scratch(confinement)
    if light:
        libraries.import_libraries()
    reseed(order.seed)
    from wan_compat.workers.frames import FrameRing

    cancellation = Cancellation()
    ring = FrameRing(ring_fd, doorbell_fd, cancellation)
    control = Control(order.endpoint, ring.doorbell_fileno(), cancellation)
    control.start()
    _greet(control, report, probes, confinement)
    _serve(control, ring, cancellation, model_folder(confinement))


def _use_scratch(confinement: spec.ConfinementSpec) -> None:
    """Have temporary files made where this worker can write. tempfile found its folder in the zygote, where it was
    another one; torch's compiler, which some attention asks for even where it does not compile, has a variable."""
    inside = spec.Layer.VIEW in confinement.in_force
    scratch = spec.SCRATCH_TARGET if inside else confinement.view.host_scratch_dir
    if scratch is not None:
        tempfile.tempdir = os.environ["TORCHINDUCTOR_CACHE_DIR"] = scratch


def reseed(seed: bytes) -> None:
    """Give this worker random numbers of its own. A fork copies the state of every generator.

    Python's, numpy's and torch's are reseeded here; a Generate brings its own seed besides. Not in our hands: the
    hash seed of strings and the address layout, which all workers of one zygote share until it is restarted.
    """
    import numpy as np
    import torch

    def derive(name: str) -> int:
        return int.from_bytes(hashlib.blake2b(seed, digest_size=8, person=name.encode()).digest(), "big")

    random.seed(derive("random"))
    np.random.seed(derive("numpy") % 2**32)
    torch.manual_seed(derive("torch") % 2**63)


def model_folder(confinement: spec.ConfinementSpec) -> str:
    """Return where the model lies for this worker.

    With a view, that is where the view put it. Without one (tier C) the files are where they were, anywhere, and
    libraries want a folder: links in the scratch folder give the admitted files the same layout.
    """
    scratch = confinement.view.host_scratch_dir
    if spec.Layer.VIEW in confinement.in_force or scratch is None:
        return spec.MODEL_TARGET
    folder = os.path.join(scratch, "model")
    for bind in confinement.view.binds:
        if bind.target.startswith(f"{spec.MODEL_TARGET}/"):
            link = os.path.join(folder, os.path.relpath(bind.target, spec.MODEL_TARGET))
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink(bind.source, link)
    return folder


def _greet(
    control: Control, report: EntryReport, probes: tuple[m.Probe, ...], confinement: spec.ConfinementSpec
) -> None:
    control.post(
        m.Hello(
            protocol_version=m.PROTOCOL_VERSION,
            layers=report.layers,
            probes=probes,
            versions=libraries.versions(),
            entry_s=report.timings_s.get("total", 0.0),
        )
    )
    welcome = control.receive()
    assert isinstance(welcome, m.Welcome)
    if spec.Layer.SECCOMP in confinement.layers:
        seccomp.seal()
        control.post(m.Ready(probes=_probes(selftest.run_sealed_probes())))
    else:
        control.post(m.Ready(probes=()))


def _probes(found: tuple[selftest.ProbeResult, ...]) -> tuple[m.Probe, ...]:
    return tuple(m.Probe(name=p.name, denied=p.denied, detail=clean_text(p.detail, 200)) for p in found)


def _serve(control: Control, ring: FrameRing, cancellation: Cancellation, folder: str) -> None:
    from wan_compat.workers.generation import free_memory

    model: LoadedModel | None = None
    keeper: LatentKeeper | None = None
    opened: list[Opened] = []
    while True:
        message = control.receive()
        if isinstance(message, m.LoadModel):
            model, answer = _load(message.pipeline, control, cancellation, folder)
        elif isinstance(message, m.LoadPart):
            answer = _load_part(message, cancellation, folder)
        elif isinstance(message, m.OpenWeights):
            from wan_compat.workers.conversion import open_weights

            opened, answer = open_weights(message, folder, cancellation, control.post)
        elif isinstance(message, m.SendTensors):
            from wan_compat.workers.conversion import send_tensors

            answer = send_tensors(opened, message, ring, cancellation)
        elif isinstance(message, m.DecodeAgain):
            assert model is not None  # the state machine saw to it
            answer = _decode_again(model, keeper, message, control, ring, cancellation)
        else:
            from wan_compat.workers.second_decode import LatentKeeper

            assert isinstance(message, m.Generate) and model is not None  # as above
            keeper = LatentKeeper()
            answer = _generate(model, message, control, ring, cancellation, keeper)
        # Here, and not where the error was caught: an exception keeps the tensors of all its frames alive.
        free_memory(model)
        control.post(answer)


def _load(
    pipeline: PipelineSpec, control: Control, cancellation: Cancellation, folder: str
) -> tuple[LoadedModel | None, Value]:
    import torch

    from wan_compat.workers.loader import load_model

    # Before anything computes: the zygote's environment says one thread.
    torch.set_num_threads(pipeline.threads)
    try:
        model = load_model(pipeline, cancellation, control.post, folder)
    except JobCancelled:
        return None, m.Failed(job=0, code="generation_failed", message="loading was cancelled")
    except Exception as error:  # noqa: BLE001 - foreign libraries raise anything; it is translated and reported
        return None, to_message(error, 0)
    # What stays for the worker's life need not be looked at by each collection.
    libraries.freeze()
    return model, m.ModelLoaded(
        pipeline_class=pipeline.pipeline_class,
        parameters=model.parameters,
        streaming=model.frame_exit is not None and model.frame_exit.streaming,
        streaming_reason=_why_whole(pipeline) if model.frame_exit is None else model.frame_exit.reason,
        applied=model.applied,
        load_s=model.load_s,
    )


def _why_whole(pipeline: PipelineSpec) -> str:
    return OWN_PIPELINE if pipeline.code is not None else SEGMENTS


def _generate(
    model: LoadedModel,
    order: m.Generate,
    control: Control,
    ring: FrameRing,
    cancellation: Cancellation,
    keeper: LatentKeeper,
) -> Value:
    if model.restricted is not None:
        from wan_compat.workers.restricted.generation import generate_restricted as generate
    elif model.spec.code is None and model.spec.code_kind == "pipeline":
        from functools import partial

        from wan_compat.workers.generation import generate as generate_keeping

        generate = partial(generate_keeping, keep=keeper.keep)
    else:
        from wan_compat.workers.own_generation import generate_own as generate

    try:
        media = _receive_media(model, order, ring, cancellation)
        writer = ring.writer(order.job, order.params.frames, order.params.videos_at_once)
        ended = generate(model, order, writer, cancellation, control.post, media)
        # A repository's own code reads prompts in ways of its own.
        cut = describe_cut(model.pipeline, order.params) if model.spec.code is None else ()
        return ended.model_copy(update={"notes": (*cut, *media.notes)})
    except JobCancelled:
        return m.Cancelled(job=order.job)
    except UnusableFrames as error:
        from wan_compat.workers.finite import blame_weights

        return to_message(blame_weights(error, getattr(model.pipeline, "components", {})), order.job)
    except Exception as error:  # noqa: BLE001 - as above
        return to_message(error, order.job)


def _decode_again(
    model: LoadedModel,
    keeper: LatentKeeper | None,
    order: m.DecodeAgain,
    control: Control,
    ring: FrameRing,
    cancellation: Cancellation,
) -> Value:
    from wan_compat.workers.second_decode import decode_again

    try:
        latents = keeper.latents if keeper is not None else None
        writer = ring.writer(order.job, order.frames, order.videos)
        return decode_again(model, latents, order, writer, cancellation, control.post)
    except JobCancelled:
        return m.Cancelled(job=order.job)
    except Exception as error:  # noqa: BLE001 - as above
        return to_message(error, order.job)


def _load_part(order: m.LoadPart, cancellation: Cancellation, folder: str) -> Value:
    import torch

    from wan_compat.workers.loader import load_part

    torch.set_num_threads(order.pipeline.threads)
    try:
        return load_part(order.pipeline, order.component, cancellation, folder)
    except JobCancelled:
        return m.Failed(job=0, code="generation_failed", message="loading was cancelled")
    except Exception as error:  # noqa: BLE001 - as above
        return to_message(error, 0)


def _receive_media(model: LoadedModel, order: m.Generate, ring: FrameRing, cancellation: Cancellation) -> Media:
    from wan_compat.workers.media import NO_MEDIA, decode_media

    descriptors = ring.receive_media(order.job, len(order.params.media))
    if not descriptors:
        return NO_MEDIA
    step = getattr(model.pipeline, "vae_scale_factor_temporal", 4)  # a pipeline of the repository's may not say
    return decode_media(descriptors, order.params, step, cancellation)
