"""The way to the first adapter: four steps, each one click, or all of them one."""

from __future__ import annotations

from app.service.datasets import SAMPLE_NAME
from app.service.quickstart import QUICK_OPTIONS
from app.service.workbench import Workbench
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Base, Dataset

TO_CHAT, ALL = 3, 4
"""So many steps are done when there is an adapter to chat with, and when it has been chatted with."""
NEXT = (
    "Get the starter model (93 MB)",
    "Add the sample data",
    "Train the first adapter",
    "Talk to it beside the base",
)
_TEXTS = (
    (
        "A base model",
        "SmolLM2-135M-Instruct, small enough for any machine. Any other model can be added under Models.",
    ),
    ("Data", "62 short conversations in the voice of a sea captain. Your own file goes under Data."),
    ("Training", "Rank 8 on every linear layer, one pass: half a minute to two minutes on two CPU cores."),
    ("Chat", "The base and your adapter answer the same question side by side."),
)


def steps_done(workbench: Workbench) -> int:
    """How many of the four are done: base, data, adapter, and a chat with it."""
    registry = workbench.registry
    if not registry.names(Base):
        return 0
    if not registry.names(Dataset):
        return 1
    if not registry.names(Adapter):
        return 2
    return 4 if workbench.chats.begun() else 3


def start_step(workbench: Workbench, done: int) -> None:
    """Begin the step after so many that are done. Raises what makes it impossible."""
    if done == 0:
        workbench.models.add("starter")
    elif done == 1:
        workbench.datasets.add_sample()
    elif done == 2:
        base, data = workbench.registry.all(Base, limit=1)[0], workbench.registry.all(Dataset, limit=1)[0]
        options = QUICK_OPTIONS if data.name == SAMPLE_NAME else {}
        workbench.training.start(base.name, data.name, TrainingOptions.parse(options))


def journey_html(done: int) -> str:
    """The card that leads through the first adapter."""
    items = []
    for index, (title, text) in enumerate(_TEXTS):
        kind, mark = ("done", "✓") if index < done else ("next" if index == done else "", str(index + 1))
        items.append(
            f"<li class='{kind}'><span class='mark'>{mark}</span>"
            f"<span>{title}<small>{text}</small></span></li>"
        )
    return (
        "<div class='card'><h2>Your first adapter</h2><p class='lead'>Four steps, a few minutes. "
        "The base model stays as it is; what you train is a small adapter beside it.</p>"
        f"<ol class='steps'>{''.join(items)}</ol></div>"
    )
