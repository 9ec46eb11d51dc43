"""Which files of a component a worker gets to see: by the names that its library opens, and nothing beside them.

A format that runs code when it is read (pickles under whatever name, `.pt2`, object arrays) is not among these names.
That a file called `.safetensors` is one was found out before, from its header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.protocol.errors import ModelCorrupt, PickleRefused

# By whose rules a part is loaded, and so which names its files have.
Kind = Literal["diffusers", "transformers", "tokenizer", "scheduler", "image_processor", "guider"]

_WEIGHTS = {
    "diffusers": re.compile(r"diffusion_pytorch_model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"),
    "transformers": re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"),
}
# What diffusers opens only when it is told `variant="fp16"`.
_VARIANT = re.compile(r"(diffusion_pytorch_model|model)(-\d{5}-of-\d{5})?\.\w+(-\d{5}-of-\d{5})?\.safetensors")
_TOKENIZER_FILES = re.compile(
    r"(tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|spiece\.model)"
)
# Parts that are one file of settings.
_ONE_FILE: Mapping[Kind, str] = {
    "scheduler": "scheduler_config.json",
    "image_processor": "preprocessor_config.json",
    "guider": "guider_config.json",
}
_PICKLES = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle)")


def is_opened(name: str) -> bool:
    """Say whether a file of this name is one that the library of some part opens."""
    return (
        name in ("config.json", *_ONE_FILE.values())
        or _TOKENIZER_FILES.fullmatch(name) is not None
        or any(pattern.fullmatch(name) for pattern in _WEIGHTS.values())
    )


def is_pickle_name(name: str) -> bool:
    """Say whether a name is one that pickled weights have."""
    return _PICKLES.fullmatch(name) is not None


def admit_component(facts: ModelFacts, name: str, kind: Kind) -> list[FileFact]:
    """Return the files of the component in folder `name` that its library opens.

    Raises:
        PickleRefused: Its weights are there only as a pickle.
        ModelCorrupt: What it needs is not there.
    """
    if name in facts.sources:
        return [facts.files[path] for path in facts.sources[name].files]
    inside = {path.split("/", 1)[1]: fact for path, fact in facts.files.items() if path.startswith(f"{name}/")}
    if kind == "tokenizer":
        chosen = [fact for path, fact in inside.items() if _TOKENIZER_FILES.fullmatch(path)]
        if not any(fact.path.endswith(("tokenizer.json", "spiece.model")) for fact in chosen):
            raise ModelCorrupt(f"{facts.root} has neither {name}/tokenizer.json nor {name}/spiece.model")
        return chosen
    if kind in _ONE_FILE:
        chosen = [fact for path, fact in inside.items() if path == _ONE_FILE[kind]]
        if not chosen:
            raise ModelCorrupt(f"{facts.root} has no {name}/{_ONE_FILE[kind]}")
        return chosen
    weights = [fact for path, fact in inside.items() if _WEIGHTS[kind].fullmatch(path)]
    if not any(fact.path.endswith(".safetensors") for fact in weights):
        pickles = sorted(path for path in inside if _PICKLES.fullmatch(path))
        if pickles:
            raise PickleRefused(
                f"the weights of {name!r} in {facts.root} are a pickle ({name}/{pickles[0]}), "
                "which can run code when it is loaded",
                hint="use a repository with .safetensors weights",
            )
        variants = sorted(path for path in inside if _VARIANT.fullmatch(path))
        if variants:
            flag = name.replace("_", "-")
            raise ModelCorrupt(
                f"{facts.root} has the weights of {name!r} in a variant only: {', '.join(variants[:3])}",
                hint=f"name the file: --{flag} {facts.root}/{name}/{variants[0]}",
            )
        raise ModelCorrupt(
            f"{facts.root} has no safetensors weights for {name!r}",
            hint="download the repository again, all of it",
        )
    if "config.json" not in inside:
        raise ModelCorrupt(f"{facts.root} has no {name}/config.json", hint="download the repository again, all of it")
    return [inside["config.json"], *weights]
