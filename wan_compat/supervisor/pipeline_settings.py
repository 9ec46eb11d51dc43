"""What scripts tell a diffusers pipeline between loading and calling it: device, offload, tiling, LoRAs.

Each becomes a field of the requests that follow, where one says the same. Everything else is refused by name, with its
alternative (policies/drop_in.py): a script that sets what nobody heeds would make another video than its writer thinks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from wan_compat.policies import drop_in
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import EnvironmentLacks, InvalidRequest, PipelineFeatureMissing
from wan_compat.protocol.plan import Offload
from wan_compat.protocol.values import LoraRequest
from wan_compat.supervisor.gpus import gpu_for

PRECISIONS = ("float32", "bfloat16", "float16")


class PipelineSettings:
    """The settings of a sandboxed pipeline; `_fields` are those of every request that it makes."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = dict(fields)
        self._loras: dict[str, LoraRequest] = {}
        self._vae = VaeSwitches(self._fields)

    def to(self, *args: Any, dtype: Any = None, device: Any = None) -> Self:
        """Take a device or a precision, in diffusers' ways of giving them. The plan decides what lies where.

        Raises:
            EnvironmentLacks: A GPU, where workers get none.
            PipelineFeatureMissing: Something else.
        """
        for value in (*args, dtype, device):
            name = str(value).removeprefix("torch.")
            if value is None:
                continue
            if name in PRECISIONS:
                self._fields["precision"] = name
            elif name.partition(":")[0] == "cuda":
                try:
                    gpu_for(name, Policy())
                except EnvironmentLacks as error:
                    raise EnvironmentLacks(
                        f"workers compute on the processor here: {error.message}",
                        hint="leave .to('cuda') out; `wan-compat doctor` tells more",
                    ) from error
                self._fields |= {"device": name, "offload": None}
            elif name == "cpu":
                self._fields |= {"device": "cpu", "offload": "full"}
            else:
                raise PipelineFeatureMissing(f"a sandboxed pipeline cannot be moved to {name!r}", hint="use 'cpu'")
        return self

    def enable_model_cpu_offload(self, **options: Any) -> None:
        """Keep weights in main memory and move each model to the GPU when it is needed."""
        self._offload("model", options)

    def enable_sequential_cpu_offload(self, **options: Any) -> None:
        """Keep weights in main memory and move each layer to the GPU when it is needed."""
        self._offload("sequential", options)

    def enable_group_offload(self, **options: Any) -> None:
        """Move groups of layers; how many at a time is planned."""
        self._offload("group", options)

    def _offload(self, way: Offload, options: Mapping[str, Any]) -> None:
        _check_no_options(options, "the plan chooses device and groups")
        self._fields["offload"] = way

    @property
    def vae(self) -> VaeSwitches:
        return self._vae

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str],
        *,
        weight_name: str | None = None,
        adapter_name: str | None = None,
        expert: Literal["high", "low"] | None = None,
    ) -> None:
        """Lay a LoRA file over the transformer from the next call on; over one of two, with `expert`."""
        if not isinstance(pretrained_model_name_or_path_or_dict, str | os.PathLike):
            raise PipelineFeatureMissing("tensors of a LoRA cannot go into a worker", hint="give the path of its file")
        path = os.fspath(pretrained_model_name_or_path_or_dict)
        name = adapter_name or f"default_{len(self._loras)}"
        if name in self._loras:
            raise InvalidRequest(f"there is an adapter {name!r} already", hint="give another adapter_name")
        self._loras[name] = LoraRequest(
            path=os.path.join(path, weight_name) if weight_name is not None else path, expert=expert
        )

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] = 1.0) -> None:
        """Say which LoRAs are applied, and how strongly; the others are kept with a weight of 0."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = list(adapter_weights) if isinstance(adapter_weights, Sequence) else [adapter_weights] * len(names)
        if len(names) != len(weights) or not set(names) <= self._loras.keys():
            raise InvalidRequest(
                f"{len(names)} adapters and {len(weights)} weights were given",
                hint=f"loaded are: {', '.join(self._loras) or 'none'}",
            )
        chosen = dict(zip(names, weights, strict=True))
        for name, lora in self._loras.items():
            self._loras[name] = LoraRequest(path=lora.path, expert=lora.expert, weight=chosen.get(name, 0.0))

    def unload_lora_weights(self) -> None:
        self._loras.clear()

    def set_progress_bar_config(self, **_: Any) -> None:
        """There is no bar; `callback_on_step_end` tells the steps."""

    def __getattr__(self, name: str) -> Any:
        raise drop_in.missing_attribute(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise drop_in.missing_attribute(name)
        super().__setattr__(name, value)


class VaeSwitches:
    """What `pipe.vae` has: the switches of decoding, which become fields of the requests that follow."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise drop_in.missing_attribute(name, "pipeline's vae")
        super().__setattr__(name, value)

    def enable_tiling(self, **options: Any) -> None:
        """Decode in tiles, of the size that the plan chooses."""
        _check_no_options(options, "the plan chooses the size of tiles")
        self._fields["vae_tiling"] = True

    def disable_tiling(self) -> None:
        self._fields["vae_tiling"] = False

    def enable_slicing(self) -> None:
        """Nothing to switch: each video is decoded by itself."""

    def disable_slicing(self) -> None:
        """Nothing to switch: each video is decoded by itself."""

    def __getattr__(self, name: str) -> Any:
        raise drop_in.missing_attribute(name, "pipeline's vae")


def precision_of(dtype: Any) -> str:
    """Return a request's precision for a torch.dtype or its name. Raises PipelineFeatureMissing for others."""
    name = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in ("auto", *PRECISIONS):
        raise PipelineFeatureMissing(
            f"torch_dtype is {name[:80]!r}", hint=f"use one of {', '.join(PRECISIONS)}, for all parts alike"
        )
    return name


def _check_no_options(options: Mapping[str, Any], why: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise PipelineFeatureMissing(f"{', '.join(given)} cannot be chosen: {why}", hint="call it without arguments")
