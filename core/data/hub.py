"""Data sets by hub id: data files only, never a loading script. Needs no torch."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from core.data.reading import suffix_of, suffixes
from core.data.zipped import Source, left_unread, split_of, unpacked
from core.errors import InvalidData, SourceUnreachable
from core.events import Progress
from core.files.disk_faults import is_disk_fault
from core.files.publish import require_space
from core.offline import require_online
from core.reporting import Report

if TYPE_CHECKING:  # it takes a tenth of a command's start, and most commands ask no hub
    from huggingface_hub import HfApi

HUB_DATASET = re.compile(r"^(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<config>[\w.-]+))?$")
_CONVERTED = (
    "refs/convert/parquet"  # the hub's own conversion of almost every data set: config/split/0000.parquet
)


def fetch_dataset(name: str, target: Path, report: Report, endpoint: str | None = None) -> list[Source]:
    """Download the training and validation files of `owner/name` or `owner/name:config` into the folder
    `target`.

    Raises SourceUnreachable if the hub cannot be reached, InvalidData if it has no such data set, no file
    that can be read, or several configurations of which none was named; OutOfSpace before anything is
    downloaded.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

    found = HUB_DATASET.match(name)
    if found is None:
        raise InvalidData(
            f"{name} is no hub id; expected owner/name, such as openai/gsm8k, or owner/name:configuration."
        )
    hub_id, config = found["id"], found["config"] or ""
    require_online(f"The data set {hub_id}")
    report(Progress(f"Asking the hub for {hub_id}"))
    try:
        revision, sizes = _files(HfApi(endpoint=endpoint), hub_id)
        chosen = _chosen(hub_id, sizes, config, converted=revision == _CONVERTED)
        require_space(target, sum(sizes[path] for path in chosen))
        sources = _download(hub_id, revision, chosen, sizes, target, report, endpoint)
        return left_unread(sources, [path for path in sizes if split_of(path) == "test"])
    except GatedRepoError:
        raise InvalidData(
            f"{hub_id} is gated: accept its terms on the hub, then set HF_TOKEN to a token of yours."
        ) from None
    except RepositoryNotFoundError:
        raise InvalidData(
            f"The hub has no data set {hub_id}, or it is private; check the spelling."
        ) from None
    except (HTTPError, OSError) as error:
        if is_disk_fault(error):
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise SourceUnreachable(
            f"The hub could not be reached for {hub_id} ({reason}). Check the network connection, or "
            "add a local file instead."
        ) from error


def _files(api: HfApi, hub_id: str) -> tuple[str, dict[str, int]]:
    """The revision to read, and its data files with their sizes in bytes."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        info, revision = (
            api.dataset_info(hub_id, revision=_CONVERTED, files_metadata=True, timeout=15),
            _CONVERTED,
        )
    except RevisionNotFoundError:
        info = api.dataset_info(hub_id, files_metadata=True, timeout=15)
        revision = str(info.sha)
    sizes = {
        one.rfilename: one.size or 0 for one in info.siblings or [] if suffix_of(one.rfilename) in suffixes()
    }
    return revision, {
        path: size for path, size in sizes.items() if PurePosixPath(path).name.lower() != "readme.md"
    }


def _chosen(hub_id: str, sizes: dict[str, int], config: str, *, converted: bool) -> dict[str, bool]:
    """The files to read, and whether each is for validation. Test splits are left on the hub."""
    if converted:
        configs = sorted({PurePosixPath(path).parts[0] for path in sizes})
        if config not in configs and (config or len(configs) > 1):
            raise InvalidData(
                f"{hub_id} has the configurations {', '.join(configs[:12])}; name one: {hub_id}:{configs[0]}."
            )
        sizes = {
            path: size
            for path, size in sizes.items()
            if PurePosixPath(path).parts[0] == (config or configs[0])
        }
    splits = {path: split_of(path) for path in sorted(sizes)}
    chosen = {path: split == "validation" for path, split in splits.items() if split != "test"}
    if all(chosen.values()):
        raise InvalidData(
            f"{hub_id} has no file for training that can be read; expected {', '.join(suffixes())}."
        )
    return chosen


def _download(
    hub_id: str,
    revision: str,
    chosen: dict[str, bool],
    sizes: dict[str, int],
    target: Path,
    report: Report,
    endpoint: str | None,
) -> list[Source]:
    from huggingface_hub import hf_hub_download

    total, done, sources = max(1, sum(sizes[path] for path in chosen)), 0, []
    for path, validation in chosen.items():
        report(Progress(f"Downloading {path} ({done / 1e6:,.0f} of {total / 1e6:,.0f} MB)", done / total))
        local = hf_hub_download(
            hub_id, path, repo_type="dataset", revision=revision, local_dir=target, endpoint=endpoint
        )
        plain = unpacked(Path(local), Path(f"{local}.unpacked"), path)
        sources.append(Source(plain, path, validation))
        done += sizes[path]
    return sources
