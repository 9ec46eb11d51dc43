"""The format of a file by its content. Names decide only where a format has no mark of its own (Python, ONNX, scripts).

The first bytes decide what a loader would do with a file, whatever its name says: a pickle named `.safetensors` is a
pickle. Files with two faces (a picture with a zip at its end) are for `zip_directory` and the pickle walker to find.
"""

from __future__ import annotations

import enum
import re
import struct

# Enough for every mark below; text is judged by as much.
HEAD_BYTES = 64 << 10


class Format(enum.StrEnum):
    """Values go into reports (`files[].format`)."""

    EMPTY = "empty"
    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    PICKLE = "pickle"
    TORCH_LEGACY = "torch_legacy"  # pickles in a row, then raw storages
    ZIP = "zip"
    TORCH_ZIP = "torch_zip"
    TORCHSCRIPT = "torchscript"
    TORCH_EXPORT = "torch_export"  # .pt2
    NPY = "npy"
    NPZ = "npz"
    KERAS = "keras"
    HDF5 = "hdf5"
    ONNX = "onnx"
    TFLITE = "tflite"
    GZIP = "gzip"
    ZLIB = "zlib"
    BZIP2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"
    LZ4 = "lz4"
    SEVEN_ZIP = "7z"
    RAR = "rar"
    TAR = "tar"
    ELF = "elf"
    PE = "pe"
    MACH_O = "mach_o"
    WASM = "wasm"
    JAVA = "java_class"
    PYC = "pyc"
    PYTHON = "python"
    NOTEBOOK = "notebook"
    SCRIPT = "script"
    SOURCE = "source"
    JSON = "json"
    YAML = "yaml"
    TEMPLATE = "template"
    LFS_POINTER = "lfs_pointer"
    SENTENCEPIECE = "sentencepiece"
    GIT = "git"
    SQLITE = "sqlite"
    PARQUET = "parquet"
    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"
    FONT = "font"
    DOCUMENT = "document"
    TEXT = "text"
    UNKNOWN = "unknown"


NATIVE = frozenset({Format.ELF, Format.PE, Format.MACH_O, Format.WASM, Format.JAVA, Format.PYC})
PICKLED = frozenset({Format.PICKLE, Format.TORCH_LEGACY, Format.TORCH_ZIP})
COMPRESSED = frozenset({Format.GZIP, Format.ZLIB, Format.BZIP2, Format.XZ})
ZIPPED = frozenset({Format.ZIP, Format.TORCH_ZIP, Format.TORCHSCRIPT, Format.TORCH_EXPORT, Format.NPZ, Format.KERAS})
CODE = frozenset({Format.PYTHON, Format.NOTEBOOK, Format.SCRIPT, Format.SOURCE})
TEXTUAL = CODE | {Format.JSON, Format.YAML, Format.TEMPLATE, Format.TEXT, Format.LFS_POINTER}

_MARKS: tuple[tuple[int, bytes, Format], ...] = (
    (0, b"GGUF", Format.GGUF),
    (0, b"PK\x03\x04", Format.ZIP),
    (0, b"PK\x05\x06", Format.ZIP),
    (0, b"\x93NUMPY", Format.NPY),
    (0, b"\x89HDF\r\n\x1a\n", Format.HDF5),
    (0, b"\x7fELF", Format.ELF),
    (0, b"\0asm", Format.WASM),
    (0, b"\xca\xfe\xba\xbe", Format.MACH_O),  # and Java classes; code either way
    (0, b"\xfe\xed\xfa\xce", Format.MACH_O),
    (0, b"\xfe\xed\xfa\xcf", Format.MACH_O),
    (0, b"\xce\xfa\xed\xfe", Format.MACH_O),
    (0, b"\xcf\xfa\xed\xfe", Format.MACH_O),
    (0, b"\x1f\x8b", Format.GZIP),
    (0, b"BZh", Format.BZIP2),
    (0, b"\xfd7zXZ\0", Format.XZ),
    (0, b"\x28\xb5\x2f\xfd", Format.ZSTD),
    (0, b"\x04\x22\x4d\x18", Format.LZ4),
    (0, b"7z\xbc\xaf\x27\x1c", Format.SEVEN_ZIP),
    (0, b"Rar!\x1a\x07", Format.RAR),
    (257, b"ustar", Format.TAR),
    (4, b"TFL3", Format.TFLITE),
    (0, b"SQLite format 3\0", Format.SQLITE),
    (0, b"PAR1", Format.PARQUET),
    (0, b"ARROW1", Format.PARQUET),
    (0, b"\x89PNG\r\n\x1a\n", Format.IMAGE),
    (0, b"\xff\xd8\xff", Format.IMAGE),
    (0, b"GIF8", Format.IMAGE),
    (0, b"II*\0", Format.IMAGE),
    (0, b"MM\0*", Format.IMAGE),
    (0, b"\0\0\1\0", Format.IMAGE),
    (4, b"ftypavif", Format.IMAGE),
    (4, b"ftypheic", Format.IMAGE),
    (4, b"ftyp", Format.VIDEO),
    (0, b"\x1aE\xdf\xa3", Format.VIDEO),
    (0, b"FLV\1", Format.VIDEO),
    (0, b"\0\0\1\xba", Format.VIDEO),
    (0, b"ID3", Format.AUDIO),
    (0, b"\xff\xfb", Format.AUDIO),
    (0, b"\xff\xf3", Format.AUDIO),
    (0, b"OggS", Format.AUDIO),
    (0, b"fLaC", Format.AUDIO),
    (0, b"\0\1\0\0\0", Format.FONT),
    (0, b"OTTO", Format.FONT),
    (0, b"wOFF", Format.FONT),
    (0, b"wOF2", Format.FONT),
    (0, b"%PDF-", Format.DOCUMENT),
    (0, b"PACK\0\0\0", Format.GIT),
    (0, b"DIRC\0\0\0", Format.GIT),
    (0, b"\xfftOc", Format.GIT),
    (0, b"RIDX", Format.GIT),
)
_RIFF = {b"WEBP": Format.IMAGE, b"WAVE": Format.AUDIO, b"AVI ": Format.VIDEO}

# The word that each CPython puts at the front of compiled code, then "\r\n".
_PYC = re.compile(rb"[\x00-\xff][\x0b-\x0f]\r\n")
_SENTENCEPIECE = re.compile(rb"\x0a[\x04-\x20]\x0a[\x01-\x18](<unk>|<pad>|<s>|</s>)")
_TORCH_MAGIC = b"\x8a\nl\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # LONG1 0x1950a86a20f9469cfc6c
_LFS = b"version https://git-lfs.github.com/spec/"

_PYTHON_NAMES = (".py", ".pyw", ".pyi", ".pyx")
# Programs in other languages, by name: text has no mark of its own.
_SCRIPTS = (
    ".sh", ".bash", ".zsh", ".fish", ".csh", ".bat", ".cmd", ".ps1", ".psm1", ".vbs", ".js", ".mjs", ".cjs", ".ts",
    ".pl", ".rb", ".lua", ".php", ".r", ".jl", ".tcl", ".scpt", ".desktop", ".service", ".reg",
)  # fmt: skip
_SOURCES = (".c", ".cc", ".cpp", ".cxx", ".h", ".hpp", ".cu", ".cuh", ".rs", ".go", ".java", ".mm", ".swift", ".s")
_SCRIPT_FILES = ("makefile", "dockerfile", "containerfile", "jenkinsfile", "justfile")

_SHEBANG = re.compile(rb"#![^\n]{0,200}")
_PYTHON_LINE = re.compile(
    rb"^[ \t]*(?:import[ \t]+[A-Za-z_][\w.]*|from[ \t]+[\w.]+[ \t]+import[ \t(]|(?:async[ \t]+)?def[ \t]+\w+[ \t]*\("
    rb"|class[ \t]+\w+[ \t]*[(:]|(?:exec|eval|__import__)[ \t]*\()",
    re.MULTILINE,
)
_CONTROL_BYTES = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_CONTROL_CHARS = re.compile("[\x80-\x9f]")


def detect(head: bytes, name: str, size: int) -> Format:
    """Return the format of a file.

    Zips are told apart by their entries (`zip_format`), pickles without a mark by walking them: both are the caller's
    next step, since they need more than the head.

    Args:
        head: The first HEAD_BYTES of the file, or all of it.
        name: Its file name; used only where content has no mark.
        size: Of the whole file, in bytes.
    """
    if not size:
        return Format.EMPTY
    lower = name.lower()
    lower = name.lower()
    # Text first: `GIF89a = 1` begins a picture and a program. Binary formats have bytes that no text has.
    if _is_text(head):
        return Format.LFS_POINTER if head.startswith(_LFS) else _text_format(head, lower)
    if _is_safetensors(head, size):
        return Format.SAFETENSORS
    for offset, mark, found in _MARKS:
        if head.startswith(mark, offset):
            return found
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[:2] == b"BM" and len(head) >= 18 and struct.unpack_from("<I", head, 2)[0] == size:
        return Format.IMAGE
    if head[:2] == b"MZ" and (b"PE\0\0" in head[:4096] or lower.endswith((".exe", ".dll"))):
        return Format.PE
    if _PYC.match(head) and (lower.endswith((".pyc", ".pyo")) or _is_compiled(head)):
        return Format.PYC
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return Format.TORCH_LEGACY if _TORCH_MAGIC in head[:32] else Format.PICKLE
    if _SENTENCEPIECE.match(head):
        return Format.SENTENCEPIECE
    if head[:1] == b"\x78" and len(head) > 1 and (head[0] << 8 | head[1]) % 31 == 0:
        return Format.ZLIB
    if lower.endswith(_PYTHON_NAMES):
        return Format.PYTHON  # in another encoding, or broken: its reader says so
    return Format.ONNX if lower.endswith(".onnx") else Format.UNKNOWN


def zip_format(names: frozenset[str]) -> Format:
    """Return what kind of zip has these entries. Folders above (`archive/data.pkl`) do not matter."""
    inside = {name.partition("/")[2] if "/" in name else name for name in names} | names
    if any(name.startswith("code/") for name in inside) and ("constants.pkl" in inside or "data.pkl" in inside):
        return Format.TORCHSCRIPT
    if "archive_format" in inside or any(name.startswith("models/") and name.endswith(".json") for name in inside):
        return Format.TORCH_EXPORT
    if "serialized_exported_program.json" in inside:
        return Format.TORCH_EXPORT
    if "data.pkl" in inside:
        return Format.TORCH_ZIP
    if {"config.json", "metadata.json"} <= names and any(name.endswith((".h5", ".npz")) for name in names):
        return Format.KERAS
    if names and all(name.endswith(".npy") for name in names):
        return Format.NPZ
    return Format.ZIP


def looks_like_python(head: bytes) -> bool:
    """Whether a text has lines that only Python has; whether it is, the parser decides."""
    return _PYTHON_LINE.search(head) is not None


# What a name promises. Another content than one of these is a lie that some reader will believe.
_PROMISES: dict[str, frozenset[Format]] = {
    ".safetensors": frozenset({Format.SAFETENSORS, Format.LFS_POINTER}),
    ".gguf": frozenset({Format.GGUF, Format.LFS_POINTER}),
    ".json": frozenset({Format.JSON, Format.LFS_POINTER}),
    ".md": frozenset({Format.TEXT, Format.LFS_POINTER}),
    ".txt": frozenset({Format.TEXT, Format.JSON, Format.YAML, Format.LFS_POINTER}),
    ".png": frozenset({Format.IMAGE, Format.LFS_POINTER}),
    ".jpg": frozenset({Format.IMAGE, Format.LFS_POINTER}),
    ".jpeg": frozenset({Format.IMAGE, Format.LFS_POINTER}),
    ".gif": frozenset({Format.IMAGE, Format.LFS_POINTER}),
    ".webp": frozenset({Format.IMAGE, Format.LFS_POINTER}),
    ".mp4": frozenset({Format.VIDEO, Format.LFS_POINTER}),
    ".wav": frozenset({Format.AUDIO, Format.LFS_POINTER}),
    ".mp3": frozenset({Format.AUDIO, Format.LFS_POINTER}),
    ".yaml": frozenset({Format.YAML, Format.JSON, Format.LFS_POINTER}),
    ".yml": frozenset({Format.YAML, Format.JSON, Format.LFS_POINTER}),
}


def promised(name: str, found: Format) -> bool:
    """Whether content of this format may have this name. Names that promise nothing may have any."""
    _, dot, suffix = name.lower().rpartition(".")
    allowed = _PROMISES.get(dot + suffix)
    return allowed is None or found in allowed or found is Format.EMPTY


def _is_safetensors(head: bytes, size: int) -> bool:
    if len(head) < 10 or head[8:9] != b"{":
        return False
    (length,) = struct.unpack_from("<Q", head)
    return 2 <= int(length) <= size - 8


def _is_compiled(head: bytes) -> bool:
    # Flags of PEP 552 are 0, 1 or 3; then comes a marshalled code object, with or without a reference.
    return len(head) > 16 and struct.unpack_from("<I", head, 4)[0] in (0, 1, 3) and head[16] & 0x7F == ord("c")


def _is_text(head: bytes) -> bool:
    if _CONTROL_BYTES.search(head):
        return False
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4 or len(head) < HEAD_BYTES:  # not merely a character cut at the end
            return False
        text = head[: error.start].decode("utf-8")
    return _CONTROL_CHARS.search(text) is None


def _text_format(head: bytes, lower: str) -> Format:
    base = lower.rpartition("/")[2]
    if shebang := _SHEBANG.match(head):
        return Format.PYTHON if b"python" in shebang[0] else Format.SCRIPT
    if base.endswith(_PYTHON_NAMES):
        return Format.PYTHON
    if base.endswith(_SCRIPTS) or base in _SCRIPT_FILES:
        return Format.SCRIPT
    if base.endswith(_SOURCES):
        return Format.SOURCE
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"%PDF-"):
        return Format.DOCUMENT
    if base.endswith(".ipynb") and start[:1] == b"{":
        return Format.NOTEBOOK
    if base.endswith((".jinja", ".jinja2", ".j2")):
        return Format.TEMPLATE
    if base.endswith((".yaml", ".yml")):
        return Format.YAML
    if start[:1] in (b"{", b"["):
        # README files may begin with a bracket too; JSON goes on with a quote, a bracket, a number or its end.
        rest = start[1:64].lstrip()
        if not rest or rest[:1] in b'"{[]}-0123456789tfn':
            return Format.JSON
    return Format.TEXT
