"""Findings: everything that can be wrong or noteworthy about a model, under stable codes.

One table, `FINDINGS`: code -> severity, what it means, what to do, and the error that an act (such as `generate`)
raises when it meets an `error`. Readers and decisions only add the actual values: `finding("lfs_pointer", "...")`.
docs/findings.md is checked against this table.

    error     it cannot be loaded as it is
    warning   it can, but something is likely to go wrong, or was not what it claimed
    info      worth knowing, nothing to do
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from wan_compat.protocol.errors import (
    EnvironmentLacks,
    MemoryExceeded,
    ModelCorrupt,
    ModelIndexMissing,
    ModelInvalid,
    ModelNotCompatible,
    ModelUnreadable,
    PickleRefused,
    RefusedByPolicy,
    RemoteCodeRefused,
    WanCompatError,
    clean_text,
)

MAX_MESSAGE_CHARS = 600


class Severity(enum.StrEnum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclasses.dataclass(frozen=True)
class FindingKind:
    """What a code means. `error` is raised by acts that meet this finding at severity `error`."""

    severity: Severity
    meaning: str
    fix: str
    error: type[WanCompatError] = ModelInvalid


@dataclasses.dataclass(frozen=True)
class Finding:
    """One observation about a model. `path` is relative to the model's root; `line` and `rule` are used by `scan`."""

    code: str
    severity: Severity
    message: str
    fix: str
    component: str | None = None
    path: str | None = None
    line: int | None = None
    rule: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields of INTERFACES' finding; `path`, `line` and `rule` only where they are known."""
        document: dict[str, Any] = {
            "code": self.code,
            "severity": self.severity.value,
            "component": self.component,
            "message": self.message,
            "fix": self.fix,
        }
        extra = {"path": self.path, "line": self.line, "rule": self.rule}
        return document | {name: value for name, value in extra.items() if value is not None}

    def to_error(self, root: str) -> WanCompatError:
        """Return the error that an act on the model at `root` raises for this finding."""
        return FINDINGS[self.code].error(f"{root}: {self.message}", hint=self.fix, details={"finding": self.code})


def finding(
    code: str,
    message: str,
    *,
    component: str | None = None,
    path: str | None = None,
    line: int | None = None,
    rule: str | None = None,
    fix: str | None = None,
    severity: Severity | None = None,
) -> Finding:
    """Return a finding of a known code with its text cleaned and bounded: it quotes what the repository says."""
    kind = FINDINGS[code]
    return Finding(
        code=code,
        severity=severity or kind.severity,
        message=clean_text(message, MAX_MESSAGE_CHARS),
        fix=clean_text(fix or kind.fix, MAX_MESSAGE_CHARS),
        component=None if component is None else clean_text(component, 80),
        path=None if path is None else clean_text(path, 300),
        line=line,
        rule=rule,
    )


_E, _W, _I = Severity.ERROR, Severity.WARNING, Severity.INFO
_AGAIN = "download the file again"
_ALL_AGAIN = "download the repository again, all of it"
_OWN_FOLDER = "give the model's own folder"

FINDINGS: Mapping[str, FindingKind] = {
    # --- reading files -------------------------------------------------------------------------------------------
    "file_unreadable": FindingKind(_E, "A file may not be read by this user.", "run as its owner", ModelUnreadable),
    "path_escape": FindingKind(
        _E, "A link or reference leads out of the repository.", "copy the file in if you trust it", ModelUnreadable
    ),
    "special_file": FindingKind(_W, "A FIFO, socket or device lies among the files.", "remove it"),
    "link_broken": FindingKind(_E, "A link leads to nothing or to itself.", _ALL_AGAIN, ModelCorrupt),
    "file_name_unsafe": FindingKind(_W, "A file name has control characters or is no text.", "rename or remove it"),
    "too_many_files": FindingKind(_E, "More files or folders than any model has.", _OWN_FOLDER, ModelCorrupt),
    "folder_link": FindingKind(_W, "A link to a folder; not followed.", "copy the folder to where the link is"),
    "file_changed": FindingKind(
        _E, "A file changed while it was read.", "wait until its download has ended, then try again", ModelCorrupt
    ),
    "reading_limit": FindingKind(_E, "More to read than any model has; the rest is unread.", _OWN_FOLDER, ModelCorrupt),
    "too_deep": FindingKind(_W, "Folders nested deeper than any model's; not looked into.", _OWN_FOLDER),
    "json_corrupt": FindingKind(_E, "A JSON file cannot be parsed.", _AGAIN, ModelCorrupt),
    "json_duplicate_key": FindingKind(
        _E, "A JSON object has a key twice: readers disagree on its value.", _AGAIN, ModelCorrupt
    ),
    "json_byte_order_mark": FindingKind(
        _E,
        "A JSON file starts with a byte order mark, which the libraries refuse.",
        "save it as plain UTF-8",
        ModelCorrupt,
    ),
    "json_too_large": FindingKind(_E, "A JSON file beyond the limits on bytes, depth or values.", _AGAIN, ModelCorrupt),
    "json_not_an_object": FindingKind(_E, "A JSON file holds something else than an object.", _AGAIN, ModelCorrupt),
    "json_constant": FindingKind(_W, "NaN or Infinity, which only Python takes for JSON.", "put a number in its place"),
    "weights_corrupt": FindingKind(_E, "The header of a weight file is malformed or lies.", _AGAIN, ModelCorrupt),
    "weights_truncated": FindingKind(_E, "A weight file is shorter than its header says.", _AGAIN, ModelCorrupt),
    "lfs_pointer": FindingKind(
        _E, "A Git LFS pointer instead of the file.", "run `git lfs pull`, or download the file itself", ModelCorrupt
    ),
    # --- what the folder holds -----------------------------------------------------------------------------------
    "model_index_missing": FindingKind(
        _W,
        "No model_index.json.",
        "use a repository in diffusers layout (Wan-AI's end in -Diffusers)",
        ModelIndexMissing,
    ),
    "model_index_corrupt": FindingKind(
        _E,
        "model_index.json cannot be used; component files tell what it should say.",
        "run `wan-compat check MODEL --repair DIR` for a copy with a rebuilt model_index.json",
        ModelCorrupt,
    ),
    "wrong_type": FindingKind(_E, "A field has a value of the wrong type.", _AGAIN, ModelCorrupt),
    "out_of_range": FindingKind(_E, "A number is outside of what can be.", _AGAIN, ModelCorrupt),
    "component_missing": FindingKind(_E, "A component that the pipeline needs is missing.", _ALL_AGAIN, ModelCorrupt),
    "component_config_missing": FindingKind(_E, "A component has no configuration.", _ALL_AGAIN, ModelCorrupt),
    "weights_missing": FindingKind(_E, "A component has no weights.", _ALL_AGAIN, ModelCorrupt),
    "shard_missing": FindingKind(_E, "A shard of the weights is missing.", "download the missing files", ModelCorrupt),
    "shard_index_mismatch": FindingKind(_E, "The shard index and the shards disagree.", _ALL_AGAIN, ModelCorrupt),
    "tensors_duplicate": FindingKind(_E, "Two weight files hold the same tensor.", _ALL_AGAIN, ModelCorrupt),
    "layout_not_diffusers": FindingKind(
        _E,
        "The layout has no loader in diffusers.",
        "use the -Diffusers repository of the same model, or `wan-compat convert`",
        ModelNotCompatible,
    ),
    "empty_model": FindingKind(_E, "Nothing here is a model.", _OWN_FOLDER),
    # --- what it is ------------------------------------------------------------------------------------------------
    "not_wan": FindingKind(_E, "A model of another family.", "use its own program, or a Wan model", ModelNotCompatible),
    "unknown_architecture": FindingKind(
        _E, "No known architecture.", "see the evidence; use a known Wan model", ModelNotCompatible
    ),
    "ambiguous_variant": FindingKind(_I, "Files alone cannot tell some variants apart.", "nothing; see `candidates`"),
    "no_pipeline": FindingKind(
        _E, "diffusers has no pipeline for this model.", "use an alternative that the message names", ModelNotCompatible
    ),
    "task_not_supported": FindingKind(
        _E, "The model does not do the task that was asked for.", "use a model of that task", ModelNotCompatible
    ),
    "pipeline_class_unknown": FindingKind(
        _E,
        "The pipeline class is not part of diffusers.",
        "use a repository whose pipeline diffusers has",
        ModelNotCompatible,
    ),
    "class_unknown": FindingKind(
        _E,
        "A component's class is not part of diffusers or transformers.",
        "use a repository with known classes",
        ModelNotCompatible,
    ),
    "library_unknown": FindingKind(
        _E,
        "A component comes from a library other than diffusers and transformers.",
        "use a repository whose components are part of diffusers and transformers",
        RemoteCodeRefused,
    ),
    "pipeline_mismatch": FindingKind(
        _W, "model_index.json names a pipeline that does not fit the transformer.", "the right one is used"
    ),
    "transformer_vae_mismatch": FindingKind(
        _E, "Transformer and VAE work on different latents.", "take both from one repository"
    ),
    "text_encoder_mismatch": FindingKind(
        _E, "The text encoder's width is not what the transformer takes.", "take both from one repository"
    ),
    "image_encoder_mismatch": FindingKind(
        _E, "Image encoder and transformer do not fit together.", "take both from one repository"
    ),
    "experts_differ": FindingKind(_E, "The two experts differ in shape.", "take both from one repository"),
    "boundary_without_second_expert": FindingKind(
        _E,
        "boundary_ratio is set, but there is no second expert: sampling would fail half-way.",
        "run `wan-compat check MODEL --repair DIR`, which sets boundary_ratio to null in a copy",
    ),
    "second_expert_without_boundary": FindingKind(
        _E,
        "A second expert without boundary_ratio would silently never run.",
        "run `wan-compat check MODEL --repair DIR`, which sets the family's boundary_ratio in a copy",
    ),
    "header_against_config": FindingKind(
        _E,
        "The weights' shapes are not what config.json says; the header is believed.",
        "take both from one repository",
    ),
    "config_fields_ignored": FindingKind(
        _W, "config.json has fields that the class ignores: they decide in another program.", "see the message"
    ),
    "fp8_scaled": FindingKind(
        _E,
        "fp8 weights with scale tensors, which diffusers does not understand.",
        "use the fp16 or bf16 file of the same model",
        ModelNotCompatible,
    ),
    "key_prefix_unusual": FindingKind(
        _W, "Tensor names carry a prefix that diffusers takes for another model.", "nothing to do: the prefix is known"
    ),
    "dtype_mixed": FindingKind(_I, "Weights of several precisions in one component.", "none needed"),
    "quantized": FindingKind(_I, "Quantised weights.", "the matching backend must be installed"),
    # --- code and pickles -----------------------------------------------------------------------------------------
    "remote_code_pipeline": FindingKind(
        _E,
        "The repository brings a pipeline of its own.",
        "use a repository whose pipeline is part of diffusers",
        RemoteCodeRefused,
    ),
    "remote_code_auto_map": FindingKind(
        _E,
        "A configuration names Python code of the repository (auto_map).",
        "use a repository without code of its own",
        RemoteCodeRefused,
    ),
    "remote_code_kernel": FindingKind(
        _E,
        "A configuration names kernels or code to fetch.",
        "use a repository without code of its own",
        RemoteCodeRefused,
    ),
    "remote_code_flag": FindingKind(
        _E,
        "A configuration switches trust_remote_code on for itself.",
        "use a repository without code of its own",
        RemoteCodeRefused,
    ),
    "remote_code_file": FindingKind(
        _W,
        "Python or native code lies in the repository; safe mode never shows it to a worker.",
        "nothing to do in safe mode",
    ),
    "cross_repository_reference": FindingKind(
        _W, "A component is fetched from another repository.", "download that repository and check it on its own"
    ),
    "pickle_weights": FindingKind(
        _E,
        "Weights only as a pickle, which can run code when it is loaded.",
        "use a repository with .safetensors weights",
        PickleRefused,
    ),
    "pickle_beside_safetensors": FindingKind(
        _I, "A pickle lies beside safetensors weights; it is never opened.", "nothing to do"
    ),
    # --- scan ------------------------------------------------------------------------------------------------------
    "scan_pickle": FindingKind(
        _W, "A pickle: loading it can run code.", "use a repository with .safetensors weights", PickleRefused
    ),
    "scan_pickle_code": FindingKind(
        _E, "A pickle that names code beyond tensors.", "do not load it; report the repository", PickleRefused
    ),
    "scan_pickle_malformed": FindingKind(
        _E, "A pickle that is cut, malformed or goes on after its end.", "do not load it", PickleRefused
    ),
    "scan_code": FindingKind(
        _W, "Code lies in the repository.", "nothing to do in safe mode, which never shows it", RemoteCodeRefused
    ),
    "scan_code_danger": FindingKind(
        _E,
        "Code that does what no pipeline needs, or hides what it does.",
        "do not approve it; safe mode never runs it",
        RemoteCodeRefused,
    ),
    "scan_native_code": FindingKind(_E, "Compiled code lies in the repository.", "do not run it", RemoteCodeRefused),
    "scan_restricted": FindingKind(_I, "RestrictedPython's advice on a source file.", "advice only"),
    "scan_format": FindingKind(_W, "A file's format is not what it says, or is not known.", "see where it comes from"),
    "scan_format_code": FindingKind(
        _E,
        "A format that carries a program beside its weights.",
        "use a repository with .safetensors weights",
        RemoteCodeRefused,
    ),
    "scan_archive": FindingKind(_W, "An archive lies among the files.", "unpack it and scan what comes out"),
    "scan_archive_hostile": FindingKind(
        _E, "An archive that is built to harm who unpacks or checks it.", "do not unpack it", RefusedByPolicy
    ),
    "scan_config": FindingKind(
        _W, "A configuration holds what can run or hide code.", "read it before use", RemoteCodeRefused
    ),
    "scan_config_path": FindingKind(
        _E, "A configuration names a path outside of the repository.", "do not use it", RefusedByPolicy
    ),
    "scan_config_note": FindingKind(_I, "A configuration names an address or a path of its author's.", "nothing to do"),
    "scan_link": FindingKind(_I, "A link among the files.", "nothing to do"),
    "scan_hidden": FindingKind(_I, "A hidden file.", "nothing to do"),
    "scan_limit": FindingKind(_W, "A limit of the scan was reached.", _OWN_FOLDER),
    "changed_while_scanned": FindingKind(
        _E, "The repository changed while it was read: what was checked may be gone.", "scan it again", ModelCorrupt
    ),
    # --- whether it is what somebody said it is --------------------------------------------------------------------
    "hash_mismatch": FindingKind(
        _E, "A file has other bytes than the hub, a list or a signature says.", _AGAIN, ModelCorrupt
    ),
    "signature_invalid": FindingKind(
        _E, "A signature that is not right for these files and this key.", "do not use it", RefusedByPolicy
    ),
    "signature_unverified": FindingKind(
        _I, "A signature that could not be judged.", "give the signer's key with --public-key, if you have it"
    ),
    "manifest_unusable": FindingKind(_W, "A list of hashes that cannot be read as one.", "see where it comes from"),
    "manifest_file_missing": FindingKind(
        _W, "A list of hashes names a file that is not here.", "nothing to do if you left it out on purpose"
    ),
    # --- whether it runs here --------------------------------------------------------------------------------------
    "diffusers_missing": FindingKind(
        _E, "diffusers is not installed.", "pip install 'wan-compat[worker]'", EnvironmentLacks
    ),
    "diffusers_too_old": FindingKind(
        _E, "The installed diffusers is too old for this model.", "upgrade diffusers", EnvironmentLacks
    ),
    "written_by_newer": FindingKind(
        _W,
        "Its files were written by a later diffusers: settings that only that one has are ignored.",
        "upgrade diffusers if the video is not what it should be",
    ),
    "transformers_too_old": FindingKind(
        _E, "The installed transformers is too old.", "upgrade transformers", EnvironmentLacks
    ),
    "dependency_missing": FindingKind(
        _E, "A package that this model needs is not installed.", "wan-compat install-deps MODEL", EnvironmentLacks
    ),
    "memory_short": FindingKind(
        _E,
        "The weights alone need more memory than this machine has.",
        "use a smaller or quantised model",
        MemoryExceeded,
    ),
    "generate_mends": FindingKind(
        _I,
        "`generate` helps itself here and goes on, with a warning.",
        "nothing to do for a video; --no-recovery ends it",
    ),
    "memory_tight": FindingKind(_W, "The weights take most of the memory there is.", "close other programs"),
    "not_runnable_yet": FindingKind(
        _E, "A sound model for which this version has no way to run.", "see the message", ModelNotCompatible
    ),
}
