"""Objectives: what a training minimises, and from which columns. Each is one file here; see core/seam.py.

The head that this file describes needs no torch, so the page and the command line can list the objectives.
"""

from __future__ import annotations

from core.options import Config, NoOptions
from core.seam import Seam


class Objective:
    """The head of an objective."""

    name: str
    label: str
    help: str
    order: int = 100
    options: type[Config] = NoOptions
    """Options of this objective alone, beside TrainConfig's; unique among all training options."""


OBJECTIVES: Seam[Objective] = Seam("core.train.objectives", Objective, "objective")
