"""Reading the metadata of a GGUF file once where transformers does it again and again."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gguf
import numpy as np


class QuickReader(gguf.GGUFReader):
    """The package's reader without an object of np.memmap for each string, which is half of its time."""

    @property  # type: ignore[override]
    def data(self) -> np.ndarray[Any, Any]:
        """The file's bytes, mapped."""
        return self._bytes

    @data.setter
    def data(self, mapped: np.ndarray[Any, Any]) -> None:
        self._bytes: np.ndarray[Any, Any] = np.asarray(mapped)


@contextmanager
def reading_once() -> Iterator[None]:
    """While it lasts, whoever asks the gguf package for the same file again gets the same reader, and so for
    the same table of tensor names.

    transformers 5 reads a file anew for the tokenizer, the configuration and the weights, and makes the table
    for each module of the model: that took three quarters of a conversion's time. Neither is changed by it.
    For one thread: the package itself hands out what is kept.
    """
    kept = {
        "GGUFReader": functools.cache(QuickReader),
        "get_tensor_name_map": functools.cache(gguf.get_tensor_name_map),
    }
    before = {name: getattr(gguf, name) for name in kept}
    for name, one in kept.items():
        setattr(gguf, name, one)
    try:
        yield
    finally:
        for name, one in before.items():
            setattr(gguf, name, one)
