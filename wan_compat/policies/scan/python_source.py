"""What a Python file would do, read from its syntax tree. Never imported, compiled or run.

A linter for hostile text: names are followed through imports and simple assignments (`from os import system as s`), not
through computation. What is computed is reported as such, since a pipeline has no need to compute the names it uses.
A clean answer means that nothing known was seen, and opens nothing.
"""

from __future__ import annotations

import ast
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Iterator

from wan_compat.policies.scan.rules import Observation

MAX_SOURCE_BYTES = 1 << 20  # the largest file of diffusers has 0.4 MB
MAX_NODES = 500_000
MAX_PER_RULE = 10
# Imports of dotted names make CPython's parser quadratic (40 s for 100,000 dots, measured). No line of a program has as
# many as this.
MAX_DOTS = 1000
LONG_LITERAL_CHARS = 2000
LONG_LIST = 16


def _table(text: str) -> dict[str, str]:
    """Return word -> rule, from lines `rule: word word`."""
    lines = (line.strip().partition(": ") for line in text.strip().splitlines())
    return {word: rule for rule, _, words in lines for word in words.split()}


_MODULE_RULES = _table(
    """
    python-process: subprocess pty multiprocessing concurrent.futures.process pexpect sh commands _posixsubprocess
    python-network: socket ssl urllib urllib2 urllib3 http requests httpx aiohttp websocket websockets ftplib smtplib
    python-network: telnetlib xmlrpc paramiko socketserver asyncio.streams zmq grpc boto3 webbrowser dns
    python-native: ctypes cffi _ctypes cython pyximport numba.core llvmlite triton.backends torch.utils.cpp_extension
    python-unpickle: pickle _pickle cPickle cloudpickle dill joblib shelve marshal jsonpickle
    python-dynamic-import: importlib imp runpy code codeop pkgutil zipimport
    python-install: pip ensurepip pkg_resources setuptools distutils
    python-hook: sitecustomize usercustomize atexit
    python-download: huggingface_hub modelscope gdown wget kernels
    """
)

# Dotted names, as they are after imports were followed.
_NAME_RULES = _table(
    """
    python-exec: eval exec compile builtins.eval builtins.exec builtins.compile execfile torch.jit.CompilationUnit
    python-dynamic-import: __import__ builtins.__import__ sys.modules sys.path sys.path_hooks sys.path_importer_cache
    python-process: os.system os.popen os.execl os.execle os.execlp os.execlpe os.execv os.execve os.execvp os.execvpe
    python-process: os.fork os.forkpty os.posix_spawn os.posix_spawnp os.spawnl os.spawnle os.spawnlp os.spawnlpe
    python-process: os.spawnv os.spawnve os.spawnvp os.spawnvpe os.startfile os.kill os.killpg posix.system nt.system
    python-process: asyncio.create_subprocess_exec asyncio.create_subprocess_shell torch.multiprocessing.spawn
    python-network: asyncio.open_connection asyncio.start_server
    python-file-write: os.remove os.unlink os.rmdir os.removedirs os.rename os.replace os.chmod os.chown os.mkdir
    python-file-write: os.makedirs os.symlink os.link os.truncate os.mknod os.mkfifo os.open os.write shutil.rmtree
    python-file-write: shutil.copy shutil.copy2 shutil.copyfile shutil.copytree shutil.move shutil.unpack_archive
    python-environment: os.environ os.environb os.getenv os.putenv os.unsetenv os.getlogin pwd.getpwnam getpass.getuser
    python-unpickle: torch.load numpy.load yaml.load yaml.unsafe_load yaml.full_load pandas.read_pickle
    python-download: torch.hub.load torch.hub.load_state_dict_from_url torch.hub.download_url_to_file
    python-download: transformers.dynamic_module_utils.get_class_from_dynamic_module
    python-download: diffusers.utils.dynamic_modules_utils.get_class_from_dynamic_module
    python-native: torch.ops.load_library torch.classes.load_library numpy.ctypeslib.load_library
    python-hook: sys.settrace sys.setprofile sys.meta_path sys.excepthook sys.displayhook sys.addaudithook
    python-hook: threading.settrace signal.signal sys._getframe gc.get_objects gc.get_referrers
    python-hook: inspect.currentframe inspect.stack
    python-obfuscation: base64.b64decode base64.b85decode base64.a85decode base64.b32decode base64.b16decode
    python-obfuscation: zlib.decompress bz2.decompress lzma.decompress gzip.decompress codecs.decode
    python-obfuscation: binascii.unhexlify binascii.a2b_base64 bytes.fromhex bytearray.fromhex
    python-computed-attribute: globals locals vars builtins.globals __builtins__
    """
)
# Judged with their arguments, where they are called.
_BY_ARGUMENTS = frozenset({"torch.load", "numpy.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"})

_DUNDERS = frozenset(
    {"__globals__", "__builtins__", "__subclasses__", "__bases__", "__base__", "__mro__", "__code__", "__closure__"}
    | {"__func__", "__self__", "__loader__", "__spec__", "__getattribute__", "__reduce__", "__reduce_ex__"}
    | {"__import__", "__subclasshook__", "gi_frame", "f_globals", "f_builtins", "f_locals", "f_back", "cr_frame"}
    | {"tb_frame", "mro"}
)
# Defining these decides what unpickling runs.
_DEFINED = frozenset({"__reduce__", "__reduce_ex__"})
# Of pathlib.Path, whatever the variable is called.
_WRITING_METHODS = frozenset({"write_text", "write_bytes", "rmdir", "unlink", "symlink_to", "hardlink_to", "touch"})
_DOWNLOADS = frozenset({"hf_hub_download", "snapshot_download", "load_state_dict_from_url", "cached_download"})
_ATTRIBUTE_FUNCTIONS = frozenset(
    {"getattr", "setattr", "delattr", "hasattr", "builtins.getattr", "operator.attrgetter"}
)
_RUN_BY_NAME = {
    "setup.py": "pip",
    "conftest.py": "pytest",
    "sitecustomize.py": "every start of Python",
    "usercustomize.py": "every start of Python",
    "none.py": "diffusers before 0.38 (CVE-2026-44827)",
    "__main__.py": "python -m",
    "noxfile.py": "nox",
    "hubconf.py": "torch.hub.load",
}
_CREDENTIALS = re.compile(
    r"(?:^|[/\\~])\.(?:ssh|aws|netrc|gnupg|kube|docker|git-credentials|bash_history|pypirc|npmrc|config/gcloud)\b"
    r"|/etc/(?:passwd|shadow|sudoers)|id_rsa|id_ed25519|HF_TOKEN|HUGGING_FACE_HUB_TOKEN|AWS_SECRET|GITHUB_TOKEN"
    r"|OPENAI_API_KEY|Login Data|wallet\.dat|/proc/(?:self|\d+)/(?:environ|mem|maps)|\.cache/huggingface/token",
    re.IGNORECASE,
)
_PACKED = re.compile(r"[A-Za-z0-9+/=_\-\s]{200,}|[0-9a-fA-F\s]{400,}")
_COOKIE = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_PLAIN_ENCODINGS = frozenset({"utf-8", "utf8", "ascii", "us-ascii", "latin-1", "iso-8859-1", "utf-8-sig"})
# Characters that make a line look different from what it means (CVE-2021-42574).
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\u2060\ufeff\u00ad]")


def read_python(raw: bytes, name: str) -> list[Observation]:
    """Return what a Python file would do, worst rules first within each line. Never raises, always ends.

    Args:
        raw: The whole file; larger ones than MAX_SOURCE_BYTES are not parsed, and that is said.
        name: Its file name: some are run because of it.
    """
    return read_parsed(raw, name, *parse(raw))


def read_parsed(raw: bytes, name: str, tree: ast.Module | None, problem: str) -> list[Observation]:
    """Return what `read_python` does, for a source whose `parse` is at hand."""
    found = list(_by_name(name))
    found += _by_text(raw)
    if tree is None:
        found.append(Observation("python-unreadable", problem))
        return found
    found += _bounded(_Reader(tree).observe())
    return found


def parse(raw: bytes) -> tuple[ast.Module | None, str]:
    """Return the syntax tree, or None and why there is none."""
    if len(raw) > MAX_SOURCE_BYTES:
        return None, f"{len(raw):,} bytes of Python, more than any pipeline has"
    joined = raw.replace(b"\\\r\n", b"").replace(b"\\\n", b"")
    for line in joined.splitlines():
        if line.count(b".") > MAX_DOTS and (b"import" in line or b"from" in line):
            return None, f"an import of more than {MAX_DOTS} parts"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\d", which are ours to judge and not to print
            text = raw.decode("utf-8-sig")
            return ast.parse(text), ""
    except UnicodeDecodeError as error:
        return None, f"it is not UTF-8 (byte {error.start:,})"
    except SyntaxError as error:
        return None, f"line {error.lineno}: {error.msg}"
    except ValueError as error:
        return None, str(error)
    except (RecursionError, MemoryError):
        return None, "it is nested deeper than Python's own parser goes"


def _by_name(name: str) -> Iterator[Observation]:
    if (reader := _RUN_BY_NAME.get(name.lower())) is not None:
        yield Observation("code-runs-by-name", f"{name} is run by {reader}")
    elif name.lower().endswith(".pth"):
        yield Observation("code-runs-by-name", f"{name} is run by every start of Python that finds it in site-packages")


def _by_text(raw: bytes) -> Iterator[Observation]:
    for number, line in enumerate(raw.split(b"\n", 2)[:2], 1):
        cookie = _COOKIE.match(line)
        if cookie and cookie[1].decode("ascii", "replace").lower().replace("_", "-") not in _PLAIN_ENCODINGS:
            yield Observation("python-encoding", f"encoded as {cookie[1].decode('ascii', 'replace')}", number)
    text = raw.decode("utf-8", "replace")
    found = _BIDI.search(text, 1)
    if found is not None:
        line_number = text.count("\n", 0, found.start()) + 1
        yield Observation("python-bidi", f"the character U+{ord(found[0]):04X}", line_number)


def _bounded(observations: Iterator[Observation]) -> list[Observation]:
    """Keep the first few of each rule: a file that does one thing a thousand times needs no thousand lines."""
    counts: Counter[str] = Counter()
    kept: list[Observation] = []
    seen: set[Observation] = set()
    for item in observations:
        if item in seen:
            continue
        seen.add(item)
        counts[item.rule] += 1
        if counts[item.rule] <= MAX_PER_RULE:
            kept.append(item)
    kept += [
        Observation(rule, f"and {count - MAX_PER_RULE} more of this kind")
        for rule, count in counts.items()
        if count > MAX_PER_RULE
    ]
    return sorted(kept, key=lambda item: (item.line or 1 << 30, item.rule))


class _Reader:
    """One pass to learn what names mean, one to judge."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.meaning: dict[str, str] = {}  # local name -> dotted name

    def observe(self) -> Iterator[Observation]:
        nodes: list[ast.AST] = []
        for node in ast.walk(self.tree):
            nodes.append(node)
            if len(nodes) > MAX_NODES:
                yield Observation("python-unreadable", f"more than {MAX_NODES:,} parts")
                return
        for node in nodes:
            yield from self._learn(node)
        for node in nodes:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                self._learn_assignment(node)
        for node in nodes:
            yield from self._judge(node)

    # -- names

    def _learn(self, node: ast.AST) -> Iterator[Observation]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self.meaning[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                yield from _module(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            yield from _module(module, node.lineno)
            for alias in node.names:
                full = f"{module}.{alias.name}"
                self.meaning[alias.asname or alias.name] = full
                if _module_rule(module) is None:
                    yield from _module(full, node.lineno)
                if (rule := _NAME_RULES.get(full)) is not None:
                    yield Observation(rule, f"imports {full}", node.lineno)

    def _learn_assignment(self, node: ast.Assign | ast.AnnAssign | ast.NamedExpr) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        value = self._dotted(node.value) if node.value is not None else None
        if value is None:
            return
        for target in targets:
            # Only what is dangerous is worth following: `e = eval`, `run = os.system`.
            known = value in _NAME_RULES or _module_rule(value) is not None or value in ("os", "sys", "builtins")
            if isinstance(target, ast.Name) and known:
                self.meaning.setdefault(target.id, value)

    def _dotted(self, node: ast.AST) -> str | None:
        """Return the dotted name of `a.b.c` with `a` followed to what it was imported as."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
            if len(parts) > MAX_DOTS:
                return None
        if not isinstance(node, ast.Name):
            return None
        parts.append(self.meaning.get(node.id, node.id))
        return ".".join(reversed(parts))

    # -- rules

    def _judge(self, node: ast.AST) -> Iterator[Observation]:
        if isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.Attribute):
            if node.attr in _DUNDERS:
                yield Observation("python-dunder-walk", f"reaches for .{node.attr}", node.lineno)
            yield from self._named(node)
        elif isinstance(node, ast.Name):
            yield from self._named(node)
        elif isinstance(node, ast.Constant):
            yield from _constant(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in _DEFINED:
            yield Observation("python-hook", f"defines {node.name}, which decides what a pickle runs", node.lineno)
        elif isinstance(node, ast.keyword):
            yield from _keyword(node)

    def _named(self, node: ast.Attribute | ast.Name) -> Iterator[Observation]:
        full = self._dotted(node)
        rule = _NAME_RULES.get(full) if full is not None else None
        if rule is None or full is None:
            return
        if isinstance(node, ast.Name) and node.id == full and isinstance(node.ctx, ast.Store):
            return  # a variable that happens to be called `compile`
        if full in _BY_ARGUMENTS:
            return
        yield Observation(rule, f"uses {full}", node.lineno)

    def _call(self, node: ast.Call) -> Iterator[Observation]:
        full = self._dotted(node.func) or ""
        line = node.lineno
        last = node.func.attr if isinstance(node.func, ast.Attribute) else full.rpartition(".")[2]
        if full in _ATTRIBUTE_FUNCTIONS:
            yield from _attribute_call(node, full)
        elif full in ("open", "io.open", "builtins.open", "codecs.open") and _writes(node):
            yield Observation("python-file-write", "opens a file for writing", line)
        elif full == "torch.load":
            yield Observation("python-unpickle", "torch.load, which reads pickles", line)
        elif full == "numpy.load":
            # Without the argument numpy refuses objects; `**options` may bring it.
            if any(item.arg is None for item in node.keywords):
                yield Observation("python-unpickle", "numpy.load with arguments that cannot be seen", line)
        elif full in _BY_ARGUMENTS:
            yield Observation("python-unpickle", f"calls {full}", line)
        elif full in ("types.FunctionType", "types.CodeType", "types.ModuleType"):
            yield Observation("python-exec", f"makes a {last}", line)
        elif full in ("bytes", "bytearray") and node.args:
            if isinstance(node.args[0], ast.List | ast.Tuple) and len(node.args[0].elts) >= LONG_LIST:
                yield Observation("python-obfuscation", "builds bytes from a list of numbers", line)
        elif last in _WRITING_METHODS and full not in _NAME_RULES:
            yield Observation("python-file-write", f"calls .{last}", line)
        elif last in _DOWNLOADS and full not in _NAME_RULES:
            yield Observation("python-download", f"calls {last}", line)
        elif last == "join" and _mentions(node, "chr"):
            yield Observation("python-obfuscation", "builds text from character codes", line)


def _attribute_call(node: ast.Call, function: str) -> Iterator[Observation]:
    position = 0 if function == "operator.attrgetter" else 1
    name = node.args[position] if len(node.args) > position else None
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        if name.value.rpartition(".")[2] in _DUNDERS | {"system", "popen", "eval", "exec"}:
            yield Observation("python-dunder-walk", f"{function} of {name.value!r}", node.lineno)
    elif name is not None:
        yield Observation("python-computed-attribute", f"{function} by a computed name", node.lineno)


def _module_rule(module: str) -> str | None:
    parts = module.split(".")
    for end in range(min(len(parts), 8), 0, -1):
        if (rule := _MODULE_RULES.get(".".join(parts[:end]))) is not None:
            return rule
    return None


def _module(module: str, line: int) -> Iterator[Observation]:
    if (rule := _module_rule(module)) is not None:
        yield Observation(rule, f"imports {module}", line)


def _keyword(node: ast.keyword) -> Iterator[Observation]:
    value = node.value.value if isinstance(node.value, ast.Constant) else None
    if node.arg == "trust_remote_code" and value not in (False, None):
        yield Observation("python-remote-code", "passes trust_remote_code", node.value.lineno)
    elif node.arg in ("custom_pipeline", "custom_revision") and value is not None:
        yield Observation("python-remote-code", f"passes {node.arg}", node.value.lineno)
    elif node.arg == "shell" and value is True:
        yield Observation("python-process", "runs a shell", node.value.lineno)
    elif node.arg == "weights_only" and value is False:
        yield Observation("python-unpickle", "loads pickles with weights_only=False", node.value.lineno)
    elif node.arg == "allow_pickle" and value is True:
        yield Observation("python-unpickle", "loads pickled objects", node.value.lineno)


def _constant(node: ast.Constant) -> Iterator[Observation]:
    if isinstance(node.value, bytes):
        text = node.value[:100_000].decode("latin-1")
    elif isinstance(node.value, str):
        text = node.value[:100_000]
    else:
        return
    if _CREDENTIALS.search(text):
        yield Observation("python-credentials", f"names {text.strip()[:80]!r}", node.lineno)
    if len(text) >= LONG_LITERAL_CHARS and (packed := _PACKED.search(text)) is not None:
        spaces = sum(char.isspace() for char in packed[0])
        if spaces < len(packed[0]) / 20:  # prose has a space every six letters
            yield Observation("python-obfuscation", f"a literal of {len(text):,} packed characters", node.lineno)
    elif any(dunder in text for dunder in ("__globals__", "__subclasses__", "__builtins__")):
        yield Observation("python-dunder-walk", f"the text {text.strip()[:80]!r}", node.lineno)


def _writes(node: ast.Call) -> bool:
    mode: ast.expr | None = node.args[1] if len(node.args) > 1 else None
    for item in node.keywords:
        if item.arg == "mode":
            mode = item.value
    if mode is None:
        return False
    return not (isinstance(mode, ast.Constant) and isinstance(mode.value, str) and not set(mode.value) & set("wax+"))


def _mentions(node: ast.Call, name: str) -> bool:
    """Whether `name` is among the first parts of a call's arguments; `"".join(map(chr, ...))` is what this is for."""
    for argument in node.args:
        for part in itertools.islice(ast.walk(argument), 200):
            if isinstance(part, ast.Name) and part.id == name:
                return True
    return False
