"""Base models by hub id: safetensors, configuration and tokenizer files only."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

from core.errors import InvalidModel, SourceUnreachable
from core.events import Progress
from core.files.disk_faults import is_disk_fault
from core.files.publish import require_space
from core.offline import require_online
from core.reporting import Report

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_WANTED = (
    ".safetensors",
    ".json",
    ".jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
    "spm.model",
    "sentencepiece.bpe.model",
    "README.md",
)
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")


def fetch_from_hub(hub_id: str, target: Path, report: Report, endpoint: str | None = None) -> str:
    """Download the model `owner/name` into the folder `target`; return the exact revision (a commit hash).

    Raises SourceUnreachable if the hub cannot be reached, InvalidModel if it has no such model or no
    safetensors, OutOfSpace before anything is downloaded.
    """
    if not HUB_ID.match(hub_id):
        raise InvalidModel(
            f"{hub_id} is no hub id; expected owner/name, such as HuggingFaceTB/SmolLM2-360M-Instruct."
        )
    require_online(f"The model {hub_id}")
    report(Progress(f"Asking the hub for {hub_id}"))
    try:
        info = HfApi(endpoint=endpoint).model_info(hub_id, files_metadata=True, timeout=15)
        files = {one.rfilename: one.size or 0 for one in info.siblings or [] if _wanted(one.rfilename)}
        if not any(name.endswith(".safetensors") for name in files):
            raise InvalidModel(
                f"{hub_id} has no safetensors weights on the hub; pickle weights are never downloaded."
            )
        require_space(target, sum(files.values()))
        _download_all(hub_id, str(info.sha), files, target, report, endpoint)
    except GatedRepoError:
        raise InvalidModel(
            f"{hub_id} is gated: accept its terms on the hub, then set HF_TOKEN to a token of yours."
        ) from None
    except RepositoryNotFoundError:
        raise InvalidModel(f"The hub has no model {hub_id}, or it is private; check the spelling.") from None
    except (HTTPError, OSError) as error:
        if is_disk_fault(error):
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise SourceUnreachable(
            f"The model hub could not be reached for {hub_id} ({reason}). "
            "Check the network connection, or add a local folder or GGUF file instead."
        ) from error
    return str(info.sha)


def fetched_revision(folder: Path) -> str:
    """The commit that a folder was fetched at, as huggingface_hub notes it there; empty if it does not."""
    note = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
    if not note.is_file():
        return ""
    commit = note.read_text(encoding="utf-8").partition("\n")[0].strip()
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else ""


def _wanted(name: str) -> bool:
    """Files of the kinds that hold data and never code: at the repository's root, and chat templates."""
    if name.startswith("additional_chat_templates/"):
        return name.count("/") == 1 and name.endswith(".jinja")
    legal = name.upper().startswith(_LEGAL) and Path(name).suffix.lower() in ("", ".txt", ".md")
    return "/" not in name and (legal or name.endswith(_WANTED))


def _download_all(
    hub_id: str, revision: str, files: dict[str, int], target: Path, report: Report, endpoint: str | None
) -> None:
    total, done = max(1, sum(files.values())), 0
    for name, size in files.items():
        report(Progress(f"Downloading {name} ({done / 1e6:,.0f} of {total / 1e6:,.0f} MB)", done / total))
        hf_hub_download(hub_id, name, revision=revision, local_dir=target, endpoint=endpoint)
        done += size
