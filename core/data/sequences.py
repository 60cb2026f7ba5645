"""How rows of a data set become sequences of tokens. Light: what renders them is handed in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from core.errors import InvalidData

if TYPE_CHECKING:
    from core.data.formats import Example
    from core.data.rendering import Rendered, Renderer


class Sequences:
    """Each row's conversation or text, with the tokens that carry loss marked: one sequence, or as many as
    its answers have contexts.

    Whoever derives from it says with `key` what else than the data and the tokenizer decides the result.
    """

    count: int = 1
    """Sequences that every row becomes and that stay together in one block; with 1 a row may become any
    number, each of which stands by itself.
    """
    key: tuple[str | int, ...] = ()
    """Part of the name under which token ids are kept: a name and a version."""

    def __init_subclass__(cls) -> None:
        if not cls.__dict__.get("key"):
            raise TypeError(f"{cls.__name__} must define key, or it would be given another's cached tokens.")

    def render(
        self, renderer: Renderer, examples: Iterable[Example]
    ) -> Iterator[tuple[Rendered, ...] | InvalidData]:
        """The sequences of each example, in order; in place of a row that cannot be used, the reason."""
        yield from renderer.render_many(examples)


ONE_EACH = Sequences()
"""Rows as supervised fine-tuning wants them."""
