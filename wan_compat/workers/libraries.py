"""The libraries of a worker: imported once, in the zygote, or after entry when the zygote is light.

Importing costs seconds and a fork milliseconds, so everything that loading or running a pipeline would import later is
imported here. Nothing here computes: one parallel operation in the zygote starts a thread pool that does not survive
a fork, and every child that uses it hangs forever.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import importlib.metadata
import os
import sys
import time

from wan_compat.protocol.errors import WorkerExtraMissing

REPORTED = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "pyzmq")

# Packages first, then what their lazy loaders would import at the first from_pretrained or the first generation.
_MODULES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors.torch",
    "ftfy",
    "PIL.Image",
    "sentencepiece",
    "accelerate.hooks",
    "diffusers.hooks",
    "diffusers.loaders",
    "diffusers.models.model_loading_utils",
    "diffusers.models.autoencoders.autoencoder_kl_wan",
    "diffusers.models.transformers.transformer_wan",
    "diffusers.models.transformers.transformer_wan_vace",
    "diffusers.pipelines.wan.pipeline_wan",
    "diffusers.pipelines.wan.pipeline_wan_i2v",
    "diffusers.pipelines.wan.pipeline_wan_vace",
    "diffusers.schedulers.scheduling_dpmsolver_multistep",
    "diffusers.schedulers.scheduling_flow_match_euler_discrete",
    "diffusers.schedulers.scheduling_unipc_multistep",
    "transformers.models.clip.image_processing_pil_clip",
    "transformers.models.clip.modeling_clip",
    "transformers.models.t5.tokenization_t5",
    "transformers.models.umt5.modeling_umt5",
    "transformers.integrations.accelerate",
    "wan_compat.workers.loader",
    "wan_compat.workers.generation",
)


# What a folder layout of some release may lack without harm: a missing one only makes the first use slower.
_OPTIONAL = frozenset(
    {
        "sentencepiece",
        "accelerate.hooks",
        "diffusers.models.model_loading_utils",
        "diffusers.models.transformers.transformer_wan_vace",
        "diffusers.pipelines.wan.pipeline_wan_vace",
        "transformers.models.clip.image_processing_pil_clip",
        "transformers.integrations.accelerate",
    }
)


_site_packages: list[str] = []  # the names of what `use_site` added
_MAX_SITE_PACKAGES = 20  # that are reported; a message has room for 32


def use_site(folder: str) -> None:
    """Have packages imported from `folder` first. Before anything of them was imported; its .pth files are not run."""
    sys.path.insert(0, folder)
    found = {item.metadata["Name"] for item in importlib.metadata.distributions(path=[folder])}
    _site_packages[:] = sorted(found - {None, *REPORTED})[:_MAX_SITE_PACKAGES]


def import_libraries() -> float:
    """Import all of it; return the seconds it took.

    Raises:
        WorkerExtraMissing: A package is not installed.
    """
    # A worker reads /model and nothing else; without these, the hub's client would try the network first.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # Tokenizers' own pool would be one more set of threads; one prompt is not worth it.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    started = time.perf_counter()
    # Imports make a million objects and no garbage: without the collector they are a quarter faster (measured).
    gc.disable()
    try:
        for name in _MODULES:
            try:
                importlib.import_module(name)
            except ImportError as error:
                if name not in _OPTIONAL:
                    raise WorkerExtraMissing(
                        f"{name} cannot be imported: {error}", hint="pip install 'wan-compat[worker]'"
                    ) from error
        _warm()
    finally:
        gc.enable()
    return time.perf_counter() - started


def freeze() -> None:
    """Move everything imported out of the collector's sight: a collection in a child would copy every shared page."""
    gc.collect()
    gc.freeze()


@functools.cache  # the zygote asks first: reading metadata costs a worker more than entering its sandbox layers
def versions() -> dict[str, str]:
    """Return the versions of what decides a clip's pixels and of what `use_site` added: from metadata, not imported."""
    found = {}
    for name in (*REPORTED, *_site_packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _warm() -> None:
    """Reach the rest that imports itself on first use, and switch off what would write into a worker's log."""
    import diffusers
    import torch
    import transformers

    # NNPACK reads /proc and /sys once, on first use. In a worker's view these do not exist, it would be found unusable,
    # and other kernels with other rounding would be taken: the same seed would give other pixels than outside.
    torch._nnpack_available()
    for name in ("UMT5EncoderModel", "T5TokenizerFast", "PreTrainedTokenizerFast"):
        getattr(transformers, name)  # resolves the lazy module
    # Loading a text encoder asks how checkpoints of this kind are named, and the table of all kinds is made then: 900
    # regular expressions, 65 ms in every fresh worker. Transformers 4 has no such table.
    with contextlib.suppress(ImportError):
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("umt5")
    # Loading a scheduler asks for every class that its config would also fit.
    for name in diffusers.UniPCMultistepScheduler._compatibles:
        getattr(diffusers, name, None)
    # A bar redraws itself into the log, which is bounded: what matters would be pushed out.
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
