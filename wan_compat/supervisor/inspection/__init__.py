"""Reading a model into facts: any layout, bounded, without torch, and without believing anything it says.

Every limit is explicit, because the files may be hostile: per file in the readers, for the whole model in `budget.py`.
Nothing is written, nothing but regular files is opened, and links are followed only where `walk.py` says.
"""

from wan_compat.supervisor.inspection.json_document import parse_json
from wan_compat.supervisor.inspection.model import read_facts, read_model, require_sound
from wan_compat.supervisor.inspection.single_file import read_gguf_header, read_safetensors_header

__all__ = ["parse_json", "read_facts", "read_gguf_header", "read_model", "read_safetensors_header", "require_sound"]
