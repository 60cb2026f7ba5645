"""What a run that is still training answers to its sample prompts."""

from __future__ import annotations

import uuid
from collections.abc import Generator

from core.adapter_source import AdapterSource
from core.base_model.source import BaseSource
from core.data.chat_options import ChatOptions
from core.engine import AnswerRequest, Engine
from core.generate.config import GenerationConfig
from core.lora.adapter import AdapterWeights
from core.train.config import TrainConfig


def sample_answers(
    engine: Engine,
    source: BaseSource,
    weights: AdapterWeights,
    name: str,
    train: TrainConfig,
    chat: ChatOptions,
) -> Generator[None, None, list[str]]:
    """Greedy answers to all prompts in one batch, a pause after each token; chat: as in the run's data.

    Its value is the answers, in order.
    """
    now = AdapterSource(
        name,
        lambda: source.folder,
        uuid.uuid4().hex,
        source.fingerprint,
        source.name,
        weights,
        whole=bool(weights.whole),
    )
    config = GenerationConfig(max_tokens=train.sample_tokens, temperature=0.0).on_top_of(chat)
    asked = [AnswerRequest([{"role": "user", "content": prompt}], now, config) for prompt in train.prompts]
    texts = [""] * len(asked)
    decoder = engine.answer(source, asked)
    try:
        for events in decoder.steps():
            for event in events:
                texts[event.row] += event.text
            yield None
    finally:
        decoder.cancel()  # whoever closes this early must not leave the base in use
    return texts
