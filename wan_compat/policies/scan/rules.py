"""The rules of `scan`: what each looks for, how bad it is, and what to do. docs/scan.md is checked against this table.

A rule belongs to a finding code (policies/findings.py), which groups rules for people: `pickle-dangerous-global` and
`pickle-unexpected-global` are both `scan_pickle_code`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from wan_compat.policies.findings import FINDINGS, Finding, Severity, finding


@dataclasses.dataclass(frozen=True)
class Rule:
    """One thing that is looked for. `severity` None is the finding code's own; `fix` likewise."""

    code: str
    meaning: str
    severity: Severity | None = None
    fix: str | None = None

    @property
    def level(self) -> Severity:
        return self.severity or FINDINGS[self.code].severity


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a reader of bytes saw: the rule, the actual values in words, and the line (from 1) or None."""

    rule: str
    message: str
    line: int | None = None


_E, _W, _I = Severity.ERROR, Severity.WARNING, Severity.INFO

RULES: Mapping[str, Rule] = {
    # --- pickles
    "pickle-present": Rule("scan_pickle", "A pickle whose opcodes name only what tensors need."),
    "pickle-dangerous-global": Rule("scan_pickle_code", "A pickle names a function that runs programs or code."),
    "pickle-unexpected-global": Rule("scan_pickle_code", "A pickle names something that no weights need."),
    "pickle-computed-global": Rule("scan_pickle_code", "A pickle computes a name to hide what it imports."),
    "pickle-extension": Rule("scan_pickle_code", "A pickle imports by extension code, which hides the name."),
    "pickle-nested": Rule("scan_pickle_code", "A pickle carries another pickle as a string."),
    "pickle-trailing": Rule("scan_pickle_malformed", "Bytes after a pickle's end."),
    "pickle-malformed": Rule(
        "scan_pickle_malformed", "A pickle that no reader can finish; it may have run code before it fails."
    ),
    "pickle-limit": Rule("scan_pickle_malformed", "A pickle too long to be read to its end."),
    "pickle-polyglot": Rule("scan_pickle_code", "A file of another format that is a working pickle too."),
    # --- Python
    "code-present": Rule("scan_code", "Source code lies in the repository."),
    "code-sample-hook": Rule("scan_code", "One of git's own sample hooks, which nothing runs.", _I, "nothing to do"),
    "code-runs-by-name": Rule("scan_code", "A file that programs run because of its name."),
    "code-native": Rule("scan_native_code", "Compiled code."),
    "python-unreadable": Rule("scan_code_danger", "Python that cannot be parsed, or is built to stop readers."),
    "python-encoding": Rule("scan_code_danger", "Python in an encoding that shows readers something else."),
    "python-bidi": Rule("scan_code_danger", "Invisible or direction-changing characters in Python."),
    "python-exec": Rule("scan_code_danger", "Runs text as code."),
    "python-dynamic-import": Rule("scan_code_danger", "Imports by a computed name."),
    "python-dunder-walk": Rule("scan_code_danger", "Climbs through Python's internals to what was hidden from it."),
    "python-computed-attribute": Rule("scan_code", "Reads or sets attributes by a computed name."),
    "python-process": Rule("scan_code_danger", "Starts programs."),
    "python-network": Rule("scan_code_danger", "Uses the network."),
    "python-download": Rule("scan_code_danger", "Downloads models or code."),
    "python-install": Rule("scan_code_danger", "Installs packages."),
    "python-native": Rule("scan_code_danger", "Loads or calls native code."),
    "python-unpickle": Rule("scan_code_danger", "Loads pickles or other data that runs code."),
    "python-remote-code": Rule("scan_code_danger", "Switches remote code on."),
    "python-file-write": Rule("scan_code", "Writes or removes files."),
    "python-environment": Rule("scan_code", "Reads the environment, where tokens are kept."),
    "python-credentials": Rule("scan_code_danger", "Names places where keys and passwords are kept."),
    "python-obfuscation": Rule("scan_code_danger", "Hides what it does."),
    "python-hook": Rule("scan_code_danger", "Hooks itself into the interpreter."),
    "python-restricted": Rule("scan_restricted", "What RestrictedPython says of it."),
    "script-in-notebook": Rule("scan_code_danger", "A notebook runs shell commands."),
    # --- formats
    "format-lies": Rule("scan_format", "The name promises another format than the content has."),
    "format-runs-code": Rule("scan_format_code", "A format that carries a program."),
    "format-may-run-code": Rule("scan_format", "A format that can carry code, and no Wan model needs."),
    "format-unknown": Rule("scan_format", "Content that no known format explains."),
    "format-corrupt": Rule("weights_corrupt", "A header that lies or is malformed."),
    "lfs-pointer": Rule("lfs_pointer", "A Git LFS pointer: the file itself was not looked at."),
    "numpy-objects": Rule("scan_pickle", "A numpy file with Python objects, which are a pickle."),
    # --- archives
    "archive-present": Rule("scan_archive", "An archive; looked into as far as limits permit."),
    "archive-unread": Rule("scan_archive", "An archive or compressed file that cannot be looked into."),
    "archive-escape": Rule("scan_archive_hostile", "An entry that would be unpacked outside of the folder."),
    "archive-bomb": Rule("scan_archive_hostile", "An archive that unpacks to far more than it holds."),
    "archive-lies": Rule("scan_archive_hostile", "An archive that shows different readers different files."),
    "archive-hidden": Rule("scan_archive_hostile", "An archive hidden in a file of another format."),
    # --- configurations
    "config-corrupt": Rule("json_corrupt", "JSON that cannot be read."),
    "config-duplicate-key": Rule("json_duplicate_key", "JSON with a key twice: readers disagree on its value."),
    "config-escaped-letters": Rule(
        "scan_config", "JSON that writes plain letters as \\u escapes, which hides words from readers."
    ),
    "config-auto-map": Rule("remote_code_auto_map", "Names Python of the repository."),
    "config-remote-code": Rule("remote_code_flag", "Switches remote code on."),
    "config-pipeline": Rule("remote_code_pipeline", "Names a pipeline of the repository's own."),
    "config-kernel": Rule("remote_code_kernel", "Names kernels or code to fetch."),
    "config-library": Rule("library_unknown", "A component of a library other than diffusers and transformers."),
    "config-path": Rule("scan_config_path", "A path that leads out of the repository."),
    "config-local-path": Rule("scan_config_note", "A path of the author's own machine."),
    "config-repository": Rule("cross_repository_reference", "Refers to another repository."),
    "config-url": Rule("scan_config_note", "Refers to an address in the network."),
    "config-yaml-code": Rule("scan_config", "YAML tags that make Python objects.", _E),
    "template-dangerous": Rule("scan_config", "A chat template that reaches for Python's internals.", _E),
    "template-includes": Rule("scan_config", "A chat template that includes other files."),
    # --- the folder
    "link-escape": Rule("path_escape", "A link leads out of the repository."),
    "link-broken": Rule("link_broken", "A link leads to nothing."),
    "link-folder": Rule("scan_link", "A link to a folder; not followed."),
    "link-inside": Rule("scan_link", "A link to another file of the folder."),
    "file-special": Rule("special_file", "A FIFO, socket or device; not opened."),
    "file-hidden": Rule("scan_hidden", "A hidden file."),
    "file-name": Rule("file_name_unsafe", "A name with control characters, or that is no text."),
    "file-unreadable": Rule("file_unreadable", "A file or folder that may not be read."),
    "file-setuid": Rule("scan_link", "A file with set-user-id or set-group-id.", _W),
    "folder-too-deep": Rule("too_deep", "Folders nested too deeply; not looked into."),
    "folder-too-many": Rule("too_many_files", "More files than are looked at."),
    "scan-changed": Rule("changed_while_scanned", "Something changed while it was read."),
    "scan-limit": Rule("scan_limit", "A limit was reached; the rest was not looked at."),
}


def rule_finding(observation: Observation, *, path: str | None, component: str | None = None) -> Finding:
    """Return the finding of an observation in the file `path`; text is cleaned and bounded there."""
    rule = RULES[observation.rule]
    return finding(
        rule.code,
        observation.message,
        component=component,
        path=path,
        line=observation.line,
        rule=observation.rule,
        fix=rule.fix,
        severity=rule.severity,
    )
