"""Damaged, mixed and misleading forms of the corpus, each with what detection must still say about it.

A mutation works on the files of a built repository. It returns the expectation that holds afterwards: the same one
where the evidence that is left still decides, a looser one where it does not, None where it does not apply. Nothing
here knows how detection works; what decides is the tensors' names and shapes first, then the denoiser's class and
configuration, then the index. Names of files and folders never do.
"""

from __future__ import annotations

from tests.assets.corpus import mutate_documents as documents
from tests.assets.corpus import mutate_files as files
from tests.assets.corpus.expected import Expected
from tests.assets.corpus.subject import ONLY, Mutation, Subject

__all__ = ["MUTATIONS", "ONLY", "Subject"]

_HARMLESS: tuple[Mutation, ...] = (
    documents.field_dropped,
    documents.field_nulled,
    documents.field_renamed,
    documents.field_retyped,
    documents.unknown_fields,
    documents.version_mixed,
    files.extra_files,
    documents.null_keys,
    files.vae_missing,
    documents.header_against_config,
    files.variant_files,
)


def several_at_once(subject: Subject) -> Expected | None:
    """Two to four of the mutations that leave the denoiser's tensors alone, then a misleading name."""
    if not subject.has_weights:
        return None
    for mutation in subject.rng.sample(_HARMLESS, subject.rng.randint(2, 4)):
        expected = mutation(subject)
        if expected is not None:
            subject.expected = expected
    return files.folder_renamed(subject)


MUTATIONS: dict[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        documents.field_dropped,
        documents.field_nulled,
        documents.field_renamed,
        documents.field_retyped,
        documents.unknown_fields,
        documents.header_against_config,
        documents.false_image_dim,
        documents.config_missing,
        documents.original_config_missing,
        documents.config_corrupt,
        documents.index_missing,
        documents.index_corrupt,
        documents.pipeline_class_wrong,
        documents.pipeline_class_removed,
        documents.version_mixed,
        documents.null_keys,
        documents.boundary_on_one_expert,
        documents.boundary_lost,
        documents.foreign_library,
        files.weights_missing,
        files.weights_corrupt,
        files.weights_pickled,
        files.shard_missing,
        files.variant_files,
        files.quantized,
        files.fewer_layers,
        files.transformer_swapped,
        files.transformer_foreign,
        files.vae_swapped,
        files.vae_missing,
        files.denoiser_missing,
        files.prefix_changed,
        files.tensors_missing,
        files.all_in_one,
        files.two_expert_files,
        files.folder_renamed,
        files.extra_files,
        files.in_cache,
        several_at_once,
    )
}
