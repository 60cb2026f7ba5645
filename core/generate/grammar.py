"""Answers that are held to a form: JSON of a schema, or text that matches a pattern.

Before each token it is worked out which ones can come next, and the others get no chance. llguidance does so
from the grammar and the bytes of the tokenizer's tokens (https://github.com/guidance-ai/llguidance), in less
than a millisecond for most grammars.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import NoReturn
from weakref import WeakKeyDictionary

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from core.errors import InvalidInput
from core.generate.config import GenerationConfig
from core.generate.schema_limits import require_bounded, without_what_asks_for_nothing
from core.panics import tokenizer_faults
from core.sending import sent

_BETWEEN = r" |\n[ \t]{0,32}"
"""White space of JSON. Without a bound a small model may go on with line breaks for ever."""
_TAIL = 12  # tokens at the end of a prompt, or of an answer, in which the tags of thinking are looked for
_THOUGHT_BEGINS, _THOUGHT_ENDS = "<think>", "</think>"

_tokenizers: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, ...], LLTokenizer]] = (
    WeakKeyDictionary()
)


def require_possible(config: GenerationConfig) -> None:
    """Raise InvalidInput where no answer can be held to what these settings ask for: keywords of JSON schema
    that are not supported, or a pattern that is none.
    """
    grammar = _grammar(config)
    if not grammar:
        return
    is_wrong, said = LLMatcher.validate_grammar_with_warnings(grammar)
    if said:
        _refuse(config, said[0], wrong=is_wrong)


def form_of(
    config: GenerationConfig, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], ends: Collection[int]
) -> Form | None:
    """What an answer to this prompt is held to, which ends with one of these tokens; None if to nothing.

    Raises InvalidInput, as require_possible().
    """
    grammar = _grammar(config)
    if not grammar:
        return None
    form = Form(grammar, tokenizer, prompt, ends)
    if form.fault:
        _refuse(config, form.fault, wrong=True)
    return form


class Form:
    """What one answer is held to, and how far it has come."""

    def __init__(
        self, grammar: str, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], ends: Collection[int]
    ) -> None:
        """A prompt that ends in the middle of a thought has it thought to its end first, freely."""
        self._tokenizer, self._ends = tokenizer, frozenset(ends)
        self._matcher = LLMatcher(_ll_tokenizer(tokenizer, ends), grammar, log_level=0)
        self._tail = list(prompt[-_TAIL:])
        before, begins, _ = self._said().rpartition(_THOUGHT_BEGINS)
        self._thinks = bool(begins) and self._said()[len(before) :].strip() == _THOUGHT_BEGINS

    @property
    def fault(self) -> str:
        """Why the answer cannot be held to it any further; empty if it can."""
        return _in_words(self._matcher.get_error()) if self._matcher.is_error() else ""

    def allowed(self, vocabulary: int) -> np.ndarray | None:
        """bool [vocabulary]: which tokens may come next, the end among them where the answer is whole; None
        where any may. In a thought all but the end: the answer is still to come.
        """
        if self._thinks and not self._ends:
            return None
        if self._thinks:
            free = np.ones(vocabulary, dtype=bool)
            free[[one for one in self._ends if one < vocabulary]] = False
            return free
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self.fault:
            return None  # take() says it
        found = np.zeros(vocabulary, dtype=bool)
        known = np.unpackbits(bits, bitorder="little")[:vocabulary]
        found[: len(known)] = known
        found[[one for one in self._ends if one < vocabulary]] = self._matcher.is_accepting()
        return found

    def take(self, token: int) -> bool:
        """Go on with this token. Whether the answer is whole, and nothing can follow.

        Raises InvalidInput where it cannot be held to the form any further.
        """
        if self._thinks:
            self._tail = [*self._tail[1 - _TAIL :], token]
            self._thinks = _THOUGHT_ENDS not in self._said().rpartition(_THOUGHT_BEGINS)[2]
            return False
        if token not in self._ends:
            self._matcher.consume_token(token)
        if self.fault:
            raise InvalidInput(f"The answer cannot be held to its form any further: {self.fault}")
        return bool(self._matcher.is_stopped())

    def _said(self) -> str:
        return str(self._tokenizer.decode(self._tail))


def held(forms: Sequence[Form | None], logits: Tensor) -> Tensor:
    """Logits [rows, vocabulary] in which what a row's form does not allow is −∞; the same where none is held
    to one.
    """
    width = logits.shape[1]
    allowed = {at: one for at, form in enumerate(forms) if form and (one := form.allowed(width)) is not None}
    if not allowed:
        return logits
    rows = sent(list(allowed), logits.device)
    kept = torch.from_numpy(np.stack(list(allowed.values()))).to(logits.device)
    found = logits.clone()
    found[rows] = found[rows].masked_fill(~kept, float("-inf"))
    return found


def _grammar(config: GenerationConfig) -> str:
    try:
        return _written(config)
    except (ValueError, RecursionError) as error:  # half a surrogate pair, a number of hundreds of digits
        _refuse(config, str(error), wrong=True)


def _written(config: GenerationConfig) -> str:
    if config.json_schema:
        schema = without_what_asks_for_nothing(json.loads(config.json_schema))
        require_bounded(schema)
        return str(LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _BETWEEN}))
    return str(LLMatcher.grammar_from_regex(config.pattern)) if config.pattern else ""


def _in_words(fault: str) -> str:
    """What llguidance says, without its state behind it, and by what it means."""
    said = fault.partition("<state>")[0].strip()
    return "nothing matches what it asks for next" if said == "NoExtensionBias" else said


def _refuse(config: GenerationConfig, why: str, *, wrong: bool) -> NoReturn:
    what = "this JSON schema" if config.json_schema else f"the pattern {config.pattern!r:.80}"
    how = "cannot be held to" if wrong else "could only be held in part to"
    first, *others = why.strip().splitlines()
    said = f"{first} {others[-1].strip()}" if others else first  # between them a picture of the place
    raise InvalidInput(f"An answer {how} {what}: {said[:300]}")


def _ll_tokenizer(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> LLTokenizer:
    """Made once: of a large vocabulary it takes a second."""
    made, key = _tokenizers.setdefault(tokenizer, {}), tuple(sorted(ends))
    if key not in made:
        assert isinstance(tokenizer, PreTrainedTokenizerFast)  # the base's renderer takes no other
        with tokenizer_faults(InvalidInput, "holding answers to a form"):
            try:
                made[key] = from_tokenizer(tokenizer, eos_token=list(key) or None)
            except ValueError as error:  # it knows byte-level tokens, and those with a fallback to bytes
                raise InvalidInput(
                    f"Answers of this base cannot be held to a form: which bytes its tokens stand for cannot "
                    f"be told from its tokenizer ({str(error)[:120]}). Ask without, or use another base."
                ) from None
    return made[key]
