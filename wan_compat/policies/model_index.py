"""The schema of model_index.json: forgiving in what it takes, strict in what it concludes.

    "_class_name": "WanPipeline"                         [module, class] means code of the repository: a finding
    "vae": ["diffusers", "AutoencoderKLWan"]             library and class
    "transformer_2": [null, null]                        an optional part that is not there
    "vae": ["diffusers", "AutoencoderKLWan", {...}]      modular: the part lies in another repository
    "vae": [null, null, {...}]                           the same with its class left to that repository: not an absence

A file of the wrong shape is a `ValidationError`; one of the right shape that makes no sense is told by
`get_schema_validation_errors`, so that a person learns everything at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wan_compat.policies.detection.classes import (
    FOREIGN_WAN_PIPELINES,
    LOOK_ALIKE_PIPELINES,
    WAN_FAMILY_TRANSFORMERS,
    WAN_PIPELINES,
)

# More entries, or longer ones, than any index has.
MAX_ENTRIES = 200
MAX_TEXT_CHARS = 300

Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
ComponentEntry = Annotated[list[Text | dict[str, Any] | None], Field(max_length=4)]

LIBRARIES = frozenset({"diffusers", "transformers"})
_DENOISERS = ("transformer", "transformer_2")
_COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "vae", "unet", *_DENOISERS)
# Relatives whose own pipelines are built of Wan's parts: ChronoEdit and Lucy-Edit say WanTransformer3DModel.
_RELATIVE_PIPELINES = frozenset(WAN_PIPELINES) - FOREIGN_WAN_PIPELINES


class ModelIndexSchema(BaseModel):
    """One model_index.json. Everything without a field of its own is in `custom_attributes`."""

    model_config = ConfigDict(populate_by_name=True, extra="allow", frozen=True)

    class_name: Text | list[Text] | None = Field(default=None, alias="_class_name")
    diffusers_version: Text | None = Field(default=None, alias="_diffusers_version")

    scheduler: ComponentEntry | None = None
    text_encoder: ComponentEntry | None = None
    tokenizer: ComponentEntry | None = None
    vae: ComponentEntry | None = None
    unet: ComponentEntry | None = None

    transformer: ComponentEntry | None = None
    transformer_2: ComponentEntry | None = None
    boundary_ratio: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = None

    custom_attributes: dict[str, Any] | None = Field(default_factory=dict, max_length=MAX_ENTRIES)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the schema of a parsed file. Keys of the file that only look like our field names
        (`class_name` without its underscore) stay custom attributes.

        Raises:
            pydantic.ValidationError: A field has the wrong type, or there are too many.
        """
        lookalikes = ("class_name", "diffusers_version", "custom_attributes")
        taken = {name: value for name, value in document.items() if name not in lookalikes}
        custom = {name: value for name, value in document.items() if name in lookalikes}
        return cls.model_validate({**taken, **({"custom_attributes": custom} if custom else {})})

    @model_validator(mode="before")
    @classmethod
    def _move_extras(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        known = set(cls.model_fields) | {field.alias for field in cls.model_fields.values() if field.alias}
        extras = {name: entry for name, entry in value.items() if name not in known}
        custom = value.get("custom_attributes")
        if not extras or not (custom is None or isinstance(custom, Mapping)):
            return value
        return {
            **{name: entry for name, entry in value.items() if name in known},
            "custom_attributes": {**extras, **(custom or {})},
        }

    def components(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield name and entry of every part, those among the custom attributes too, absent ones left out."""
        entries = {name: getattr(self, name) for name in _COMPONENTS} | dict(self.custom_attributes or {})
        for name, entry in entries.items():
            if not name.startswith("_") and is_component_entry(entry) and not is_absent(entry):
                yield name, entry

    def validate_wan_architecture(self) -> bool:
        """Whether the denoiser's class is Wan's or a relative's, and diffusers' own.

        VAE, `boundary_ratio`, `transformer_2` and the pipeline's name prove nothing: other models have them too. Only
        the pipelines that are known to be other models around a Wan transformer (Kiwi-Edit) speak against it.
        """
        named = self.class_name[-1:] if isinstance(self.class_name, list) else [self.class_name]
        if any(name in LOOK_ALIKE_PIPELINES for name in named):
            return False
        denoisers = [entry for name, entry in self.components() if name in _DENOISERS]
        return bool(denoisers) and all(
            entry[0] == "diffusers" and entry[1] in WAN_FAMILY_TRANSFORMERS for entry in denoisers
        )

    def get_schema_validation_errors(self) -> list[str]:
        """Return what makes no sense, each with the actual value; empty for a sound index."""
        return [*self._pipeline_errors(), *self._component_errors(), *self._expert_errors()]

    def _pipeline_errors(self) -> Iterator[str]:
        if self.class_name is None:
            yield "_class_name is missing: nothing says which pipeline this is"
            return
        if isinstance(self.class_name, list):
            yield f"_class_name is {self.class_name!r}: a pipeline of the repository's own, which safe mode never runs"
            return
        marks = [
            f"{name} {entry[1]}"
            for name, entry in self.components()
            if name in _DENOISERS and entry[1] in WAN_FAMILY_TRANSFORMERS
        ]
        if "transformer_2" in dict(self.components()) and not marks:
            marks.append("transformer_2")
        if self.boundary_ratio is not None:
            marks.append(f"boundary_ratio {self.boundary_ratio:g}")
        known = self.class_name.startswith("Wan") or self.class_name in _RELATIVE_PIPELINES
        if marks and not known:
            yield (
                f"Wan components ({', '.join(marks)}) but the pipeline class does not start with Wan: "
                f"_class_name is {self.class_name!r}"
            )

    def _component_errors(self) -> Iterator[str]:
        for name in _COMPONENTS:
            entry = getattr(self, name)
            if entry is not None and not is_component_entry(entry):
                yield f"{name} is {entry!r}, not a pair of library and class"
        for name, entry in self.components():
            library, class_name = entry[0], entry[1]
            if (library is None) != (class_name is None):
                yield f"{name} is {entry[:2]!r}: library and class must both be there, or both be null"
            elif library is not None and library not in LIBRARIES:
                yield f"{name} comes from {library!r}, not from diffusers or transformers"

    def _expert_errors(self) -> Iterator[str]:
        if self.boundary_ratio is not None and not 0 <= self.boundary_ratio <= 1:
            yield f"boundary_ratio is {self.boundary_ratio:g}, outside of 0 to 1"
        two = "transformer_2" in dict(self.components())
        if self.boundary_ratio is not None and not two:
            yield f"boundary_ratio is {self.boundary_ratio:g}, but there is no transformer_2 to switch to"
        if two and self.boundary_ratio is None:
            yield "transformer_2 is there, but boundary_ratio is not: the second expert would never run"


def is_component_entry(value: Any) -> bool:
    """Whether an index entry has the form of a component: a list of library, class and at most a reference."""
    return (
        isinstance(value, list)
        and len(value) >= 2
        and all(part is None or isinstance(part, str) for part in value[:2])
        and all(isinstance(part, Mapping) for part in value[2:])
    )


def is_absent(entry: list[Any]) -> bool:
    """Whether an entry says that the optional part is not there. With a reference it is elsewhere, not absent."""
    return entry[0] is None and entry[1] is None and not reference(entry)


def reference(entry: list[Any]) -> Mapping[str, Any]:
    """Return what a modular entry says about where its part lies; empty where it is in this repository."""
    return next((part for part in entry[2:] if isinstance(part, Mapping)), {})
