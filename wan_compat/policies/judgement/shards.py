"""Weights in several files: are all of them there, and does their index tell the truth?

diffusion_pytorch_model-00001-of-00002.safetensors
diffusion_pytorch_model-00002-of-00002.safetensors
diffusion_pytorch_model.safetensors.index.json         weight_map: tensor -> file
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.findings import Finding, finding
from wan_compat.policies.judgement.parts import SHARD, counted, files_in, folders, several

MAX_SHARDS = 1000


def judge_shards(facts: ModelFacts, components: Collection[str]) -> Iterator[Finding]:
    """Yield shards that are missing, by number or by index, indexes that lie, and tensors that are there twice."""
    for folder in folders(facts):
        names = list(files_in(facts, folder))
        component = folder if folder in components else None
        yield from _shard_numbers(facts, folder, names, component)
        for name in names:
            if name.endswith(".safetensors.index.json"):
                yield from _shard_map(facts, folder, name, set(names), component)
        yield from _duplicates(facts, folder, names, component)


def _groups(names: list[str]) -> dict[tuple[str, str, str | None], set[int]]:
    groups: dict[tuple[str, str, str | None], set[int]] = defaultdict(set)
    for name in names:
        if (shard := SHARD.fullmatch(name)) is not None:
            groups[shard["stem"], shard["total"], shard["variant"]].add(int(shard["number"]))
    return groups


def _shard_numbers(facts: ModelFacts, folder: str, names: list[str], component: str | None) -> Iterator[Finding]:
    for (stem, text, variant), present in _groups(names).items():
        total, where = int(text), f"{folder}/" if folder else ""
        if not 1 <= total <= MAX_SHARDS or max(present) > total or min(present) < 1:
            yield finding(
                "shard_index_mismatch",
                f"{where}{stem} has shards {min(present)} to {max(present)} of {total}",
                component=component,
                path=f"{where}{stem}",
            )
            continue
        absent = [
            f"{stem}-{number:05d}-of-{text}{variant or ''}.safetensors"
            for number in range(1, total + 1)
            if number not in present
        ]
        if absent:
            yield finding(
                "shard_missing",
                f"{len(absent)} of {total} shards of {where or 'the model'} are missing: {several(absent)}",
                component=component,
                path=f"{where}{absent[0]}",
            )
        index = f"{stem}.safetensors.index{variant or ''}.json"
        plain = f"{stem}{variant or ''}.safetensors.index.json"
        if component and not absent and index not in names and plain not in names:
            yield finding(
                "shard_index_mismatch",
                f"{where} has {total} shards but no {plain}, by which they are found",
                component=component,
                path=f"{where}{plain}",
            )


def _shard_map(
    facts: ModelFacts, folder: str, name: str, present: set[str], component: str | None
) -> Iterator[Finding]:
    path = f"{folder}/{name}" if folder else name
    document = facts.documents.get(path)
    if document is None:
        return  # facts.problems tells why
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(file, str) for file in weight_map.values()):
        yield finding("wrong_type", f"{path} has no weight_map of names to files", component=component, path=path)
        return
    named: dict[str, set[str]] = defaultdict(set)
    for tensor, file in weight_map.items():
        named[file].add(tensor)
    outside = sorted(file for file in named if "/" in file or "\\" in file or file in ("", ".", ".."))
    if outside:
        yield finding("path_escape", f"{path} names files in other folders: {several(outside)}", path=path)
        return
    told = {
        number for group in _groups(list(present)).items() for number in _absent_of_group(*group)
    }  # told by their numbers already
    absent = sorted(file for file in named if file not in present and file not in told)
    if absent:
        yield finding(
            "shard_missing",
            f"{path} names {counted(len(absent), 'file')} not found here: {several(absent)}",
            component=component,
            path=f"{folder}/{absent[0]}" if folder else absent[0],
        )
    for file, tensors in sorted(named.items()):
        header = facts.weights.get(f"{folder}/{file}" if folder else file)
        if header is None:
            continue
        lacking = sorted(tensors - header.tensors.keys())
        extra = sorted(header.tensors.keys() - tensors)
        if lacking or extra:
            what = [f"lacks {several(lacking)}"] if lacking else []
            what += [f"holds {several(extra)}, which the index puts elsewhere"] if extra else []
            yield finding(
                "shard_index_mismatch", f"{file} {' and '.join(what)} (by {path})", component=component, path=path
            )


def _absent_of_group(key: tuple[str, str, str | None], present: set[int]) -> Iterator[str]:
    stem, text, variant = key
    for number in range(1, min(int(text), MAX_SHARDS) + 1):
        if number not in present:
            yield f"{stem}-{number:05d}-of-{text}{variant or ''}.safetensors"


def _duplicates(facts: ModelFacts, folder: str, names: list[str], component: str | None) -> Iterator[Finding]:
    """Compare files that are read together: the shards of one set, and a whole file beside them."""
    sets: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for name in sorted(names):
        if (shard := SHARD.fullmatch(name)) is not None:
            sets[shard["stem"], shard["variant"]].append(name)
    for (stem, variant), files in sets.items():
        whole = f"{stem}{variant or ''}.safetensors"
        holder: dict[str, str] = {}
        twice: list[str] = []
        for file in [*files, *([whole] if whole in names else [])]:
            header = facts.weights.get(f"{folder}/{file}" if folder else file)
            for tensor in header.tensors if header else ():
                if tensor in holder:
                    twice.append(f"{tensor} in {holder[tensor]} and {file}")
                holder.setdefault(tensor, file)
        if twice:
            yield finding(
                "tensors_duplicate",
                f"{counted(len(twice), 'tensor')} in two files: {several(twice, 2)}",
                component=component,
                path=f"{folder}/{files[0]}" if folder else files[0],
            )
