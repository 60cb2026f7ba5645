"""The rows that a run is trained and judged on, as they were when it was started."""

from __future__ import annotations

from core.data.chat_options import AS_THEY_ARE, ChatOptions
from core.data.dataset_file import DatasetFile
from core.data.importing import Summary
from core.data.split import Split
from core.data.version import Version, first_version
from storage.registry import Registry
from storage.tables import Run


def data_of(registry: Registry, run: Run) -> tuple[DatasetFile, Version, bool]:
    """The rows of the version that the run names, its parts and options, and whether special tokens in its
    texts are meant. Raises BlobDamaged.
    """
    blobs, digest = registry.blobs, registry.datasets.rows_of(run.dataset_digest)
    folder = blobs.verify(digest)
    rows, summary = DatasetFile(folder), Summary.read(folder)
    if (
        run.dataset_digest == digest
    ):  # stored by an earlier version of the workbench, which split when it trained
        version = first_version(digest, rows, Split())
    else:
        version = Version.read(blobs.verify(run.dataset_digest))
    return rows, version, bool(summary and summary.mapping.get("special_tokens"))


def chat_of(registry: Registry, run: Run) -> ChatOptions:
    """How the run's conversations are fitted to the base's chat template."""
    if run.dataset_digest == registry.datasets.rows_of(run.dataset_digest):
        return AS_THEY_ARE
    return Version.read(registry.blobs.path(run.dataset_digest)).chat
