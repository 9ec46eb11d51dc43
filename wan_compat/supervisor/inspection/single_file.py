"""The header of one weight file, read strictly: the first thing that is wrong is raised."""

from __future__ import annotations

from collections.abc import Callable

from wan_compat.policies.facts import FileFact, WeightFile
from wan_compat.policies.findings import Finding
from wan_compat.protocol.errors import ModelCorrupt
from wan_compat.supervisor.inspection import gguf_header, safetensors_header
from wan_compat.supervisor.inspection.budget import Budget
from wan_compat.supervisor.inspection.problems import Defect, Exhausted, as_error, raise_first_error


def read_safetensors_header(fact: FileFact) -> WeightFile:
    """Read and check the header of a safetensors file.

    Raises:
        ModelCorrupt: It is malformed, lies, is too large, or the data are not all there.
        ModelUnreadable: The file may not be read.
    """
    return _strictly(safetensors_header.read_header, fact)


def read_gguf_header(fact: FileFact) -> WeightFile:
    """Read and check the header of a GGUF file. Raises as `read_safetensors_header` does."""
    return _strictly(gguf_header.read_header, fact)


def _strictly(read: Callable[[FileFact, Budget], tuple[WeightFile, tuple[Finding, ...]]], fact: FileFact) -> WeightFile:
    try:
        weights, notes = read(fact, Budget())
    except Defect as defect:
        raise as_error(defect.finding) from defect
    except Exhausted as error:
        raise ModelCorrupt(
            f"{fact.path} has more in its header than any model ({error})", hint="download the file again"
        ) from error
    raise_first_error(notes)
    return weights
