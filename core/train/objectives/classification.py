"""Sequence classification: a head of the adapter's own tells each text's labels, or a number.

The loss is that of transformers' models for sequence classification, a mean over rows: cross-entropy of the
label, binary cross-entropy of each label, or the squared error of the number.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.data.labels import MULTI, PROBLEM_TYPES, SINGLE
from core.data.plain_texts import Texts
from core.errors import InvalidConfig
from core.options import Config, option
from core.train.config import TrainConfig
from core.train.objectives import Metric, Objective

_QUALITY = "Accuracy and macro-F1"


@dataclass(frozen=True)
class ClassificationConfig(Config):
    """What the labels are."""

    problem_type: str = option(
        SINGLE,
        "Problem type",
        "One label for each text, any number of labels, or a number (regression).",
        choices=PROBLEM_TYPES,
    )
    label_separator: str = option(
        ",",
        "Label separator",
        "What stands between the labels of a text that has several; a list (JSON, Python) needs none.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.problem_type == MULTI and not self.label_separator.strip():
            raise InvalidConfig("label_separator is empty; say what stands between the labels of a text.")


class Classification(Objective):
    """The head's loss, a mean over rows."""

    name, label, order = "classification", "Classification", 50
    help = "Learn to tell each text's label, by a head that is trained and kept with the adapter."
    options = ClassificationConfig
    sequences = Texts()
    mean_over = "rows"
    classifies = True
    metrics = (
        Metric("accuracy", "Accuracy", "%", digits=1, lower_is_better=False, chart=_QUALITY),
        Metric("macro_f1", "Macro-F1", "%", digits=1, lower_is_better=False, chart=_QUALITY),
        Metric("mean_error", "Mean absolute error", lower_is_better=True),
        Metric("r2", "R²", lower_is_better=False),
    )

    def check(self, train: TrainConfig) -> None:
        """Rows are neither packed nor split, and there is nobody to answer prompts."""
        if train.packing == "on":
            raise InvalidConfig("Rows to classify are not packed; leave packing at auto, or say off.")
        if train.over_length == "split":
            raise InvalidConfig(
                "over_length = split cannot be used to classify, since a label is told of the whole text; "
                "choose truncate or drop."
            )
        if train.compile == "on":
            raise InvalidConfig("Classification is not compiled; leave compile at auto, or say off.")
        if train.prompts:
            raise InvalidConfig("A classifier writes no answers; leave sample_prompts empty.")


KIND = Classification()
