"""`SchemaValidator`: one model_index.json against its schema, in words for a person."""

from __future__ import annotations

import dataclasses
import os
import stat

from pydantic import ValidationError

from wan_compat.policies.facts import FileFact
from wan_compat.policies.findings import FINDINGS, Severity
from wan_compat.policies.model_index import ModelIndexSchema
from wan_compat.protocol.errors import clean_text
from wan_compat.supervisor.inspection.budget import Budget
from wan_compat.supervisor.inspection.json_document import read_document
from wan_compat.supervisor.inspection.problems import Defect

INDEX = "model_index.json"
MAX_ERRORS = 50

# A phrase of an error -> what a person can do about it.
_FIXES: dict[str, str] = {
    "does not start with Wan": "use the repository's own model_index.json: its pipeline and its parts disagree",
    "no transformer_2 to switch to": FINDINGS["boundary_without_second_expert"].fix,
    "the second expert would never run": FINDINGS["second_expert_without_boundary"].fix,
    "pipeline of the repository's own": FINDINGS["remote_code_pipeline"].fix,
    "not from diffusers or transformers": FINDINGS["library_unknown"].fix,
    "_class_name is missing": FINDINGS["model_index_corrupt"].fix,
}


@dataclasses.dataclass
class SchemaValidationResult:
    """`schema` is None where the file is no model_index.json at all; `errors` say what is wrong, `suggested_fixes` what
    to do about it, most promising first."""

    is_valid: bool
    schema: ModelIndexSchema | None
    errors: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    suggested_fixes: list[str] = dataclasses.field(default_factory=list)


class SchemaValidator:
    """Validates index files. Keeps nothing between calls."""

    def validate_model_index(self, model_index_path: str) -> SchemaValidationResult:
        """Validate one file; nothing that it holds, and no way in which it is missing, raises.

        Args:
            model_index_path: The file, or the folder that it lies in.
        """
        try:
            decoded = read_document(_find(model_index_path), Budget())
        except Defect as defect:
            fixes = [defect.finding.fix, FINDINGS["model_index_corrupt"].fix]
            return SchemaValidationResult(False, None, [defect.finding.message], [], fixes)
        except OSError as error:
            why = f"{clean_text(model_index_path, 300)}: {error.strerror or error}"
            return SchemaValidationResult(False, None, [why], [], [FINDINGS["model_index_missing"].fix])
        grave = [note for note in decoded.notes if note.severity is Severity.ERROR]
        warnings = [note.message for note in decoded.notes if note.severity is not Severity.ERROR]
        try:
            schema = ModelIndexSchema.from_document(decoded.document)
        except ValidationError as error:
            errors = [note.message for note in grave] + self.generate_schema_errors(_raw_errors(error))
            return SchemaValidationResult(False, None, errors, warnings, [FINDINGS["model_index_corrupt"].fix])
        found = schema.get_schema_validation_errors()
        errors = [note.message for note in grave] + self.generate_schema_errors(found)
        if not errors and not schema.validate_wan_architecture():
            warnings.append("no Wan transformer is named: this is the index of another family")
        fixes = [note.fix for note in grave]
        fixes += [fix for text in found for phrase, fix in _FIXES.items() if phrase in text]
        return SchemaValidationResult(not errors, schema, errors, warnings, list(dict.fromkeys(fixes)))

    def generate_schema_errors(self, validation_errors: list[str]) -> list[str]:
        """Return errors as sentences that name the file, cleaned and bounded: they quote what the repository says."""
        texts = [clean_text(text, 600).strip().rstrip(".") for text in validation_errors[:MAX_ERRORS]]
        more = len(validation_errors) - MAX_ERRORS
        return [
            *(f"{INDEX}: {text}." for text in dict.fromkeys(texts) if text),
            *([f"{INDEX}: and {more} more."] if more > 0 else []),
        ]


def _find(path: str) -> FileFact:
    """Return the file's facts. Raises OSError where there is no regular file."""
    try:
        if os.path.isdir(path):
            path = os.path.join(path, INDEX)
        real = os.path.realpath(path)
        info = os.stat(real)
    except ValueError as error:
        raise OSError(None, "this is no path") from error
    if not stat.S_ISREG(info.st_mode):
        raise OSError(None, "not a regular file")
    return FileFact(os.path.basename(path), real, info.st_size, info.st_dev, info.st_ino, info.st_mtime_ns)


def _raw_errors(error: ValidationError) -> list[str]:
    """Return pydantic's findings, one for each field, with the value that was found."""
    texts: dict[str, str] = {}
    for item in error.errors(include_url=False, include_context=False):
        field = str(item["loc"][0]) if item["loc"] else "the file"
        texts.setdefault(field, f"{field} has {item['input']!r:.100}: {item['msg'].removeprefix('Input ')}")
    return list(texts.values())
