"""Which way a base is computed: the quick one, which is ours, or the general one, which is transformers' own.

Which of the two fits is found by comparing both with transformers' plain forward pass
(core/base_model/agreement.py). Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

QUICK_NAME, GENERAL_NAME = "quick", "general"
WAYS = {
    QUICK_NAME: "the quick way: our attention and caches, with rows packed and layers compiled where it pays",
    GENERAL_NAME: (
        "the general way: transformers' own passes and caches, which its layers need; rows are filled up "
        "instead of packed and nothing is compiled, so training and answers are slower"
    ),
}
"""What each is, in words, and what it costs."""


@dataclass(frozen=True)
class Way:
    """How the passes of a base are computed."""

    quick: bool
    """Our attention and caches: rows packed into blocks, captured steps. Otherwise transformers' own forward
    pass and caches, rows padded.
    """
    attention: str
    """transformers' name of what attends."""
    together: bool = True
    """Whether rows of different lengths share a pass: not where one's numbers would depend on the others."""
    reread_at: int = 0
    """Tokens beyond which a row that grows is computed with another rotary embedding from its beginning, so
    that its cache is made anew; 0 for never.
    """

    experts: str = ""
    """transformers' name of what computes the experts of a mixture; empty where there is nothing to choose.
    """

    @property
    def name(self) -> str:
        """As it is stored and shown."""
        return QUICK_NAME if self.quick else GENERAL_NAME
