"""Where the registry learns from: the installed diffusers' source, the models in the local cache, a signed publication.

Each source gives a document that `CompatibilityRegistry.apply` puts over the overlay under the rules of
`policies/registry_merge.py`. Nothing is imported or downloaded but what the user configured.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Literal

from wan_compat.policies.detection.decide import detect
from wan_compat.policies.registry_document import (
    MAX_DOCUMENT_BYTES,
    Alternative,
    PipelineEntry,
    RegistryDocument,
    RegistryEntry,
    parse_document,
)
from wan_compat.policies.variants import VARIANTS
from wan_compat.protocol.errors import FetchFailed, RefusedByPolicy, WanCompatError, clean_text
from wan_compat.supervisor.inspection import read_facts
from wan_compat.supervisor.inspection.locate import hub_cache
from wan_compat.supervisor.installed import find_package
from wan_compat.supervisor.registry import shipped_registry
from wan_compat.supervisor.settings import Settings
from wan_compat.supervisor.signed_file import fetch_signed, read_signed

MAX_REPOSITORIES = 500
MAX_REVISIONS = 20  # of one repository
SURE = 0.9  # confidence from which on a cached model is recorded as a variant

# Pipelines that are worth knowing when a new diffusers brings them.
_FAMILY = re.compile(r"(Wan|SkyReels|ChronoEdit|LucyEdit|AnyFlow|Helios)\w*Pipeline")
_REVISION = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True)
class Source:
    """What one source gave: `used` (with a document), `absent`, or `failed`; `detail` is a sentence for a person."""

    name: Literal["installed", "cache", "signed"]
    status: Literal["used", "absent", "failed"]
    detail: str
    document: RegistryDocument | None = None


def from_installed(site_packages: str | None = None) -> Source:
    """Read classes and arguments of the pipelines that the installed diffusers has.

    What a class needs at least stays as the package says it; a class that the package does not know is recorded with
    the version in which it was seen.
    """
    package = find_package("diffusers", site_packages)
    if package is None:
        return Source("installed", "absent", "diffusers is not installed")
    known = shipped_registry().pipelines
    new = {name for name in package.class_names() if _FAMILY.fullmatch(name) and name not in known}
    pipelines = {}
    for name in sorted({*known, *new}):
        signature = package.signature(name)
        if signature is None or signature.call is None:
            continue
        pipelines[name] = PipelineEntry(
            module=signature.module,
            required_args=signature.call.required,
            optional_args=tuple(signature.call.optional),
            accepts_more=signature.call.accepts_more,
            observed_in=package.version if name in new else None,
        )
    detail = f"diffusers {package.version}: {len(pipelines)} pipelines, {len(new)} of them new"
    return Source("installed", "used", detail, RegistryDocument(diffusers_version=package.version, pipelines=pipelines))


def from_cache(cache: str | None = None) -> Source:
    """Look at the repositories in the local Hugging Face cache: names, revisions, and what their files say they are.

    Repositories that are not Wan's kind, or that cannot be read, are passed by.
    """
    cache = cache or hub_cache()
    try:
        folders = sorted(entry.name for entry in os.scandir(cache) if entry.name.startswith("models--"))
    except OSError:
        return Source("cache", "absent", f"no cache at {cache}")
    models: dict[str, RegistryEntry] = {}
    unreadable = 0
    for folder in folders[:MAX_REPOSITORIES]:
        name = folder.removeprefix("models--").replace("--", "/")
        revisions = _revisions(os.path.join(cache, folder, "snapshots"))
        if not _HUB_NAME.fullmatch(name) or len(name) > 200 or not revisions:
            continue
        if name in shipped_registry().models:
            models[name] = RegistryEntry(revisions=revisions)
            continue
        try:
            entry = _detected(os.path.join(cache, folder), revisions)
        except WanCompatError:
            unreadable += 1
            continue
        if entry is not None:
            models[name] = entry
    passed = f", {unreadable} could not be read" if unreadable else ""
    detail = f"{len(models)} of {len(folders)} repositories in {cache} are Wan's kind{passed}"
    return Source("cache", "used", detail, RegistryDocument(models=models))


def from_file(path: str, settings: Settings) -> Source:
    """Read a signed publication from a file.

    Raises:
        InvalidRequest: No such file, or no registry.
        RefusedByPolicy: No key is configured, or the signature is missing or wrong.
    """
    raw = read_signed(path, _key(settings), MAX_DOCUMENT_BYTES)
    document = parse_document(raw, path)
    return Source("signed", "used", f"{path}, serial {document.serial}", document)


def from_url(settings: Settings) -> Source:
    """Fetch the signed publication that the user configured; an unreachable one is told and does no harm.

    Raises:
        InvalidRequest: What was signed is no registry.
        RefusedByPolicy: An address without a key, or a wrong signature.
    """
    url = settings.registry_url
    if url is None:
        return Source("signed", "absent", "no registry_url is configured")
    try:
        raw = fetch_signed(url, _key(settings), MAX_DOCUMENT_BYTES)
    except FetchFailed as error:
        return Source("signed", "failed", error.message)
    document = parse_document(raw, url)
    return Source("signed", "used", f"{url}, serial {document.serial}", document)


def _key(settings: Settings) -> bytes:
    if settings.registry_public_key is None:
        raise RefusedByPolicy(
            "registry updates are taken signed only, and no key is configured",
            hint='set registry_public_key = "<base64>" in your user configuration (see `wan-compat config show`)',
        )
    return settings.registry_public_key


def _revisions(snapshots: str) -> tuple[str, ...]:
    try:
        names = sorted(entry.name for entry in os.scandir(snapshots) if _REVISION.fullmatch(entry.name))
    except OSError:
        return ()
    return tuple(names[:MAX_REVISIONS])


def _detected(repository: str, revisions: tuple[str, ...]) -> RegistryEntry | None:
    """Return an entry for a repository that the package does not know, None for one of another kind."""
    found = detect(read_facts(repository))
    variant = VARIANTS.get(found.variant or "")
    if not found.is_wan or variant is None or found.confidence < SURE:
        return None
    note = f"found in the local cache; by its files {' or '.join(found.candidates) or variant.slug}"
    fields: dict[str, object] = {"variant": variant.slug, "layout": found.layout, "revisions": revisions}
    fields["notes"] = (clean_text(note, 600),)
    if found.layout not in ("diffusers", "modular"):
        # The variant's pipeline runs the -Diffusers repository, not these files.
        fields["pipeline_class"] = None
        if variant.pipeline_class is not None:
            fields["alternative"] = Alternative(model=variant.repository, reason="the same kind in diffusers layout")
    return RegistryEntry.model_validate(fields)
