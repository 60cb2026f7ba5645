"""How an adapter leaves the house."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import InvalidConfig
from core.options import Config, option

FORMATS = ("safetensors", "peft", "gguf", "gguf-adapter", "ollama")
FLOAT_DTYPES = ("float32", "bfloat16", "float16")
QUANTISED_DTYPES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


@dataclass(frozen=True)
class ExportConfig(Config):
    """How an adapter leaves the house."""

    format: str = option(
        "safetensors",
        "Format",
        "safetensors: merged, for transformers and vLLM. peft: the adapter alone. gguf: merged, for "
        "llama.cpp. "
        "gguf-adapter: the adapter alone, for llama.cpp. ollama: GGUF with a Modelfile.",
        choices=FORMATS,
    )
    dtype: str = option(
        "auto",
        "Weights as",
        "auto: as the base's, in GGUF float16. float32 loses nothing of the adapter; 16 bits round "
        "small changes away, and "
        "the report says how much. The q kinds are for GGUF.",
        choices=("auto", *FLOAT_DTYPES, *QUANTISED_DTYPES),
    )
    shard_gigabytes: float = option(
        0.0,
        "Shard size",
        "Largest safetensors file; 0: as the base's files.",
        unit="GB",
        minimum=0.0,
        maximum=1000.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype in QUANTISED_DTYPES and self.format not in ("gguf", "ollama"):
            raise InvalidConfig(
                f"{self.dtype} is a kind of GGUF weights; {self.format} takes {', '.join(FLOAT_DTYPES)}."
            )
        if self.format in ("peft", "gguf-adapter") and self.dtype not in ("auto", "float32"):
            raise InvalidConfig(f"An adapter's factors stay in float32; leave out dtype for {self.format}.")
