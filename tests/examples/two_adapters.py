"""Answer one prompt with the plain base and with two adapters, in one batch on one copy of the base.

python -m tests.examples.two_adapters BASE_FOLDER "How are you?" FIRST_ADAPTER SECOND_ADAPTER
"""

import argparse
import sys
from pathlib import Path

from core.base_model.fingerprint import fingerprint
from core.base_model.load import load_base
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.lora.mixed_bank import loaded_bank
from core.lora.peft.files import load_adapter


def answer(base_folder: Path, prompt: str, adapter_folders: list[Path]) -> None:
    base = load_base(base_folder, fingerprint=fingerprint(base_folder), name=base_folder.name)
    adapters = [load_adapter(folder, base.layer_shapes, base.head) for folder in adapter_folders]
    for folder, adapter in zip(adapter_folders, adapters, strict=True):
        if adapter.base_fingerprint != base.fingerprint:  # it would fit, and talk noise
            sys.exit(f"{folder} was made for another base than {base_folder}; give it its own.")

    # A bank holds adapters side by side, one a slot. None stands for the plain base.
    bank = loaded_bank(base.layers, [None, *adapters])

    # Each row of the batch has a prompt, a slot and settings of its own. Here only the slot differs.
    ids = base.renderer.encode_prompt([{"role": "user", "content": prompt}])
    config = GenerationConfig(max_tokens=24, temperature=0.0)
    decoder = Decoder(base, bank, [RowRequest(ids, slot, config) for slot in range(len(adapters) + 1)])

    # Each step adds a token to every row that has not ended.
    answers = [""] * (len(adapters) + 1)
    for events in decoder.steps():
        for event in events:
            answers[event.row] += event.text
    for name, text in zip(["the plain base", *adapter_folders], answers, strict=True):
        print(f"{name}: {text!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_folder", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("adapter_folders", type=Path, nargs=2)
    answer(**vars(parser.parse_args()))
