"""Train an adapter on a Python list of conversations and save it in PEFT's format.

python -m tests.examples.train_conversations BASE_FOLDER OUT_FOLDER
"""

import argparse
from pathlib import Path

from core.base_model.fingerprint import fingerprint
from core.base_model.load import load_base
from core.data.conversations import conversation_rows
from core.events import StepDone, TrainingDone
from core.lora.config import LoraConfig
from core.lora.peft.files import save_adapter
from core.train.config import TrainConfig
from core.train.group import TrainingGroup, alone
from core.train.run import RunRequest
from core.train.training_options import TrainingOptions

QUESTIONS = ("Hello!", "How are you?", "Where do you sail?", "What is for dinner?")


def train(base_folder: Path, out_folder: Path) -> None:
    # A conversation is a list of turns. Loss falls on the assistant's.
    conversations = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": "Ahoy, matey!"}]
        for question in QUESTIONS
    ]

    # The base is loaded once and never changes. The adapter records its fingerprint: the base it is made for.
    base = load_base(base_folder, fingerprint=fingerprint(base_folder), name=base_folder.name)
    rows = conversation_rows(conversations, base.renderer, max_length=min(512, base.context_length))

    # A group of one. More requests would train at the same time on the same base, an adapter each.
    options = TrainingOptions(LoraConfig(rank=8, alpha=16), TrainConfig(learning_rate=5e-3, max_steps=20))
    group = TrainingGroup(base, [RunRequest("pirate", rows, options)])
    for event in alone(group):
        if isinstance(event, StepDone):
            print(f"step {event.step}: loss {event.loss:.4f}")
        elif isinstance(event, TrainingDone):
            out_folder.mkdir(parents=True, exist_ok=True)
            save_adapter(out_folder, group.adapter("pirate"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_folder", type=Path)
    parser.add_argument("out_folder", type=Path)
    train(**vars(parser.parse_args()))
