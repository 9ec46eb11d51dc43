"""Every denoiser of the installed diffusers in six forms, built with its class' defaults: is it taken for Wan?

Nothing of this was recorded and no rule was written for most of these classes, so this measures what detection says of
architectures that nobody thought of. Imports torch; takes about half a minute.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.assets.corpus.files import typed, write_json, write_safetensors, write_weights
from tests.assets.corpus.layouts import TOKENIZER, UMT5, VAE21, Part, diffusers_repository, unipc
from tests.assets.corpus.tables import Tensors

WAN_FAMILY = {
    "WanTransformer3DModel", "WanVACETransformer3DModel", "WanAnimateTransformer3DModel",
    "WanAnimate2Transformer3DModel", "SkyReelsV2Transformer3DModel", "ChronoEditTransformer3DModel",
    "AnyFlowTransformer3DModel", "AnyFlowFARTransformer3DModel", "HeliosTransformer3DModel",
}  # fmt: skip

Form = Callable[[Path, str, Tensors, dict[str, object]], Path]


def sweep() -> Iterator[tuple[str, str, Path, bool]]:
    """Yield (class, form, path, whether it is Wan's). The path is gone when the next one is asked for."""
    for name, tensors, config in _denoisers():
        for form in FORMS:
            with tempfile.TemporaryDirectory(prefix="wan-compat-sweep-") as folder:
                path = form(Path(folder) / "model", name, tensors, config)
                yield name, form.__name__.strip("_"), path, name in WAN_FAMILY


def _denoisers() -> Iterator[tuple[str, Tensors, dict[str, object]]]:
    import torch
    from diffusers.models import controlnets, transformers, unets
    from diffusers.models.modeling_utils import ModelMixin

    for package in (transformers, unets, controlnets):
        for found in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{found.name}")
            for name, model_class in sorted(vars(module).items()):
                if not (inspect.isclass(model_class) and issubclass(model_class, ModelMixin)):
                    continue
                if model_class.__module__ != module.__name__:
                    continue
                try:
                    with torch.device("meta"):
                        model = model_class()
                except Exception:
                    # Some need arguments, some packages that are not installed: they have no defaults to look at.
                    continue
                tensors = {key: tuple(value.shape) for key, value in model.state_dict().items()}
                if tensors:
                    yield name, tensors, json.loads(model.to_json_string())


def _repository(index_class: str, folder: Path, name: str, tensors: Tensors) -> Path:
    parts = {"transformer": Part("diffusers", name), "vae": VAE21, "text_encoder": UMT5, "tokenizer": TOKENIZER}
    diffusers_repository(index_class, parts | {"scheduler": unipc(3.0)})(folder)
    write_weights(folder / "transformer", tensors, "F16")
    return folder


def _repository_that_says_wan(folder: Path, name: str, tensors: Tensors, config: dict[str, object]) -> Path:
    write_json(folder / "transformer" / "config.json", config)
    return _repository("WanPipeline", folder, name, tensors)


def _repository_without_config(folder: Path, name: str, tensors: Tensors, config: dict[str, object]) -> Path:
    return _repository("SomePipeline", folder, name, tensors)


def _repository_without_index(folder: Path, name: str, tensors: Tensors, config: dict[str, object]) -> Path:
    _repository_that_says_wan(folder, name, tensors, config)
    (folder / "model_index.json").unlink()
    return folder


def _flat_folder(folder: Path, name: str, tensors: Tensors, config: dict[str, object]) -> Path:
    write_json(folder / "config.json", config)
    write_weights(folder, tensors, "F16")
    return folder


def _single_file(folder: Path, name: str, tensors: Tensors, config: dict[str, object]) -> Path:
    write_safetensors(folder / "wan.safetensors", typed(tensors, "F16"))
    return folder / "wan.safetensors"


def _prefixed_file(folder: Path, name: str, tensors: Tensors, config: dict[str, object]) -> Path:
    renamed = {f"model.diffusion_model.{key}": shape for key, shape in tensors.items()}
    return _single_file(folder, name, renamed, config)


FORMS: tuple[Form, ...] = (
    _repository_that_says_wan,
    _repository_without_config,
    _repository_without_index,
    _flat_folder,
    _single_file,
    _prefixed_file,
)
