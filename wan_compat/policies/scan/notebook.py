"""What a Jupyter notebook would do: its cells are Python with lines for a shell in between."""

from __future__ import annotations

import json

from wan_compat.policies.scan.python_source import MAX_SOURCE_BYTES, read_python
from wan_compat.policies.scan.rules import Observation

MAX_CELLS = 5000


def read_notebook(raw: bytes) -> list[Observation]:
    """Return what the cells of a notebook would do, all taken as one program. Lines are those of that program."""
    if len(raw) > 16 * MAX_SOURCE_BYTES:
        return [Observation("scan-limit", f"a notebook of {len(raw):,} bytes is not read")]
    try:
        document = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return [Observation("config-corrupt", f"not valid JSON: {error}")]
    cells = document.get("cells") if isinstance(document, dict) else None
    lines: list[str] = []
    shell: list[str] = []
    for cell in cells[:MAX_CELLS] if isinstance(cells, list) else ():
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        source = cell.get("source")
        text = "".join(item for item in source if isinstance(item, str)) if isinstance(source, list) else source
        for line in text.splitlines() if isinstance(text, str) else ():
            if line.lstrip().startswith(("!", "%", "?")):
                shell.append(line.strip())
                lines.append("")
            else:
                lines.append(line)
    found = [Observation("script-in-notebook", f"runs {line[:120]!r}") for line in shell[:10] if line.startswith("!")]
    # Half characters (\ud800) are valid in JSON and no text.
    return found + read_python("\n".join(lines).encode("utf-8", "replace"), "notebook")
