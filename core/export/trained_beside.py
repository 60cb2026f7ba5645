"""How far the original weights are from those in few bits that an adapter was trained beside."""

from __future__ import annotations

from core.export.duties import Exporting
from core.reporting import Report


def difference_from_trained(what: Exporting, report: Report) -> float:
    """Their relative difference."""
    from core.merge.held import base_difference, held_tensors

    held = held_tensors(what.base_folder, what.skeleton, what.about.trained_on)
    return base_difference(what.base_folder, held, report)
