"""Models as Ollama tells of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from app.service.serving import ServedModel
from app.web.api.parameters import Body

_THINKING = "think"  # stands in enable_thinking and in <think>


def knows_thinking(template: str) -> bool:
    """Whether a chat template has anything about thoughts."""
    return _THINKING in template


def listed(model: ServedModel) -> Body:
    """In /api/tags."""
    return {
        "name": model.id,
        "model": model.id,
        "modified_at": _modified(model),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": _details(model),
    }


def resident(model: ServedModel) -> Body:
    """In /api/ps. How long it stays nobody knows: another takes its room when it is asked for."""
    told = {name: value for name, value in listed(model).items() if name != "modified_at"}
    return told | {"context_length": model.base.context_length}


def shown(model: ServedModel, template: str) -> Body:
    """By /api/show. template: the chat template, in Jinja, where Ollama has one of Go."""
    architecture = model.base.architecture
    tools = bool(re.search(r"\btools\b", template))
    return {
        "modified_at": _modified(model),
        "license": model.base.licence,
        "template": template,
        "details": _details(model),
        "model_info": {
            "general.architecture": architecture,
            "general.parameter_count": model.base.parameters,
            f"{architecture}.context_length": model.base.context_length,
        },
        "capabilities": ["completion"] + ["tools"] * tools + ["thinking"] * knows_thinking(template),
    }


def _modified(model: ServedModel) -> str:
    return datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z")


def _details(model: ServedModel) -> Body:
    return {
        "parent_model": model.base.name if model.parts else "",
        "format": "safetensors",
        "family": model.base.architecture,
        "families": [model.base.architecture],
        "parameter_size": f"{model.base.parameters / 1e6:,.1f}M",
        "quantization_level": model.base.dtype,
    }
