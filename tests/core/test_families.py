"""Families of models that transformers builds: as transformers and PEFT compute it, or refused with a
sentence.
"""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from peft.utils.transformers_weight_conversion import _MOE_TARGET_MODULE_MAPPING
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING
from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN

from core.base_model.describe import describe
from core.base_model.skeleton import skeleton
from core.base_model.soundness import require_sound
from core.data.formats import Example
from core.errors import InvalidInput, InvalidModel
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.lora.bank import AdapterBank
from core.lora.mixed_bank import loaded_bank
from core.lora.peft.files import save_adapter
from core.merge.merge import merge_into_base
from core.reporting import silent
from core.train.batches import MicroBatch, Shape
from core.train.group_objective import GroupObjective
from core.train.memory import ExecutionPlan, Tier
from core.train.objectives.supervised import KIND
from core.train.step import MicroBatchStep
from tests.conftest import _save
from tests.core.families import (
    GENERAL,
    PAGE,
    PICTURES,
    QUICK,
    REFUSED,
    SLOW_EYES,
    SPEEDS,
    TINY,
    TRAINABLE,
    long_rope,
    page,
    tiny_model,
)
from tests.core.helpers import load, peft_loss, plain_model, random_adapter, token_rows

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
ROWS = [
    Example(0, (), _LETTERS * 3 + "the end"),
    Example(1, (), "hello world how are you"),
    Example(2, (), "a row of another length, and not so short"),
]
ADAPTERS = len(ROWS)
WRITTEN = 6
CLOSE = 1e-4  # of the norm of what is compared
_BARE = re.compile(r"\b[A-Z]\w*(Error|Exception)\b|Unexpected|Traceback")


@pytest.fixture
def saved(tokenizer, tmp_path):
    """Makes the folder of a tiny model of a family with random numbers."""

    def make(family, **values):
        if family not in CONFIG_MAPPING:
            pytest.skip(f"this transformers has no {family}")
        return _save(tiny_model(family, **values), tokenizer, tmp_path / family)

    return make


def _added(folder):
    """As a job adds it."""
    require_sound(folder)
    describe(folder)
    return skeleton(folder)


class Compared:
    """A base with three adapters, and the same in PEFT on transformers' own model."""

    def __init__(self, folder, tmp_path):
        self.base = load(folder)
        self.adapters = [self._adapter(seed) for seed in range(ADAPTERS)]
        for number, adapter in enumerate(self.adapters):
            (tmp_path / str(number)).mkdir()
            save_adapter(tmp_path / str(number), adapter)
        self.peft = PeftModel.from_pretrained(plain_model(folder), tmp_path / "0", adapter_name="0")
        for number in range(1, ADAPTERS):
            self.peft.load_adapter(tmp_path / str(number), adapter_name=str(number))
        self.peft.eval()
        self.rows = token_rows(self.base, ROWS, 128)
        self.ids = [torch.tensor(self.rows[at][0]).long() for at in range(len(ROWS))]

    def _adapter(self, seed):
        """On all layers but those that PEFT takes for experts by their names, and looks for elsewhere."""
        made = random_adapter(self.base, rank=2, seed=seed, size=0.15)
        family = _MODEL_TO_CONVERSION_PATTERN.get(self.base.model.config.model_type)
        taken = {f".{name}" for name in _MOE_TARGET_MODULE_MAPPING.get(family, ())}
        layers = {path: one for path, one in made.layers.items() if not path.endswith(tuple(taken))}
        return replace(made, layers=layers)

    def with_adapter(self, number):
        self.peft.set_adapter(str(number))
        return self.peft


def _require_close(found, wanted):
    assert float((found - wanted).norm() / wanted.norm().clamp_min(1e-12)) <= CLOSE


def _losses_and_gradients_are_pefts(both):
    """Three runs at once, each with the same three rows; the last one's gradients."""
    base, last = both.base, ADAPTERS - 1
    bank = AdapterBank(base.layers, list(both.adapters[0].layers), ADAPTERS, 2, trainable=True)
    for slot, adapter in enumerate(both.adapters):
        bank.load(slot, adapter)
    part = MicroBatch(both.rows, [(0,), (1,), (2,)], 1.0)
    shape = Shape(ADAPTERS, 3, 128, packed=False, supervised=384, segments=9, fixed=not base.way.quick)
    goal = GroupObjective(KIND, [KIND.options()] * ADAPTERS)
    step = MicroBatchStep(base, bank, ExecutionPlan(Tier.KEEP, False), goal)
    figures = step.train(step.collate([part] * ADAPTERS, shape))
    batches = [part] if base.way.together else [part.piece(at, 1) for at in range(3)]
    wanted = []
    for number in range(ADAPTERS):
        model = both.with_adapter(number)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f"lora_A.{last}." in name or f"lora_B.{last}." in name)
        with torch.set_grad_enabled(number == last):
            wanted.append(sum(peft_loss(model, one) for one in batches))
    _require_close(figures[:, 0], torch.stack(wanted).detach())
    wanted[last].backward()
    theirs = dict(both.peft.named_parameters())
    names = [
        (factors, letter, f"base_model.model.{path}.lora_{letter}.{last}.weight")
        for path, factors in bank.factors.items()
        for letter in "AB"
    ]
    reached = [(getattr(one, letter).grad[last], theirs[name].grad) for one, letter, name in names]
    _require_close(
        torch.cat([ours.flatten() for ours, _ in reached]),
        torch.cat([(torch.zeros_like(a) if b is None else b).flatten() for a, b in reached]),
    )


@torch.no_grad()
def _logits_are_pefts(both):
    ids = torch.randint(3, 300, (ADAPTERS, 20), generator=torch.Generator().manual_seed(5))
    with loaded_bank(both.base.layers, both.adapters).use():
        found = both.base.model(input_ids=ids, use_cache=False).logits
    for number in range(ADAPTERS):
        _require_close(found[number], both.with_adapter(number)(input_ids=ids[number : number + 1]).logits[0])


@torch.no_grad()
def _answers_are_transformers(both):
    """Three prompts of different lengths, each answered with its own adapter, greedily."""
    prompts = [ids[:length].tolist() for ids, length in zip(both.ids, (21, 5, 12), strict=True)]
    config = GenerationConfig(temperature=0.0, max_tokens=WRITTEN)
    bank = loaded_bank(both.base.layers, both.adapters)
    requests = [RowRequest(ids, slot, config) for slot, ids in enumerate(prompts)]
    decoder = Decoder(both.base, bank, requests, ends=())
    rows = list(decoder._rows)
    for _ in decoder.steps():
        pass
    settings = {"max_new_tokens": WRITTEN, "min_new_tokens": WRITTEN, "do_sample": False}
    settings["use_cache"] = not both.base.way.reread_at  # where transformers keeps what no longer holds
    for number, (ids, row) in enumerate(zip(prompts, rows, strict=True)):
        model = both.with_adapter(number)
        model.generation_config.eos_token_id = None
        wanted = model.generate(input_ids=torch.tensor([ids]), **settings)[0, len(ids) :]
        assert row.ids == wanted.tolist()


@torch.no_grad()
def _a_merge_is_base_and_adapter(both, folder, layers, merged):
    merged.mkdir()
    shutil.copy(folder / "config.json", merged)
    merge_into_base(folder, both.adapters[0], layers.transposed, merged, silent, {})
    with loaded_bank(both.base.layers, both.adapters[:1]).use():
        wanted = both.base.model(input_ids=both.ids[1][None], use_cache=False).logits
    _require_close(plain_model(merged)(input_ids=both.ids[1][None]).logits, wanted)


def _is_as_transformers(folder, tmp_path):
    layers, both = _added(folder), Compared(folder, tmp_path)
    _losses_and_gradients_are_pefts(both)
    _logits_are_pefts(both)
    _answers_are_transformers(both)
    _a_merge_is_base_and_adapter(both, folder, layers, tmp_path / f"{folder.name} merged")
    return both.base


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # GPT BigCode's
@pytest.mark.parametrize("family", {**QUICK, **GENERAL})
def test_a_family_is_computed_as_transformers_computes_it(saved, tmp_path, family):
    base = _is_as_transformers(saved(family, **{**QUICK, **GENERAL}[family]), tmp_path)
    assert base.way.name == ("quick" if family in QUICK else "general")


@pytest.mark.parametrize("family", PICTURES)
def test_a_model_that_reads_pictures_trains_and_answers_on_text_alone(saved, tmp_path, family):
    folder = saved(family, **PICTURES[family])
    base = _is_as_transformers(folder, tmp_path)
    assert base.way.name == ("general" if family in SLOW_EYES else "quick")
    assert not any("vision" in path or "visual" in path for path in [*base.layers, *base.wholes.shapes])
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / f"{family} merged" / "model.safetensors")
    changed = {name for name, one in before.items() if not torch.equal(after[name], one)}
    assert before.keys() == after.keys()
    assert not any(re.search("vision|visual|connector|projector|merger|mlp1", name) for name in changed)
    assert len(changed) >= len(base.layers) - 1


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_is_computed_otherwise_is_refused_when_it_is_added(saved, family):
    folder = saved(family, **REFUSED[family])
    with pytest.raises(InvalidModel) as refused:
        _added(folder)
    assert not _BARE.search(str(refused.value))
    assert len(str(refused.value)) > 60
    with pytest.raises(InvalidInput):
        load(folder)


@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_a_rotary_embedding_that_changes_with_the_batch_goes_the_general_way(saved, tmp_path, family):
    """Rows on both sides of the border, and an answer that crosses it."""
    base = _is_as_transformers(saved(family, **long_rope(15)), tmp_path)
    assert (base.way.name, base.way.together, base.way.reread_at) == ("general", False, 15)


def test_a_rotary_embedding_that_no_row_can_change_goes_the_quick_way(saved, tmp_path):
    assert _is_as_transformers(
        saved("phi3", **long_rope(TINY["max_position_embeddings"])), tmp_path
    ).way.quick


ROPES = {
    "dynamic": {"factor": 2.0},
    "linear": {"factor": 2.0},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
}


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_embeddings_are_computed_on_both_sides_of_the_first_context(saved, tmp_path, kind):
    """With more rows in the embedding than the tokenizer has tokens."""
    rope = {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 32} | ROPES[kind]
    assert _is_as_transformers(saved("llama", rope_parameters=rope, vocab_size=330), tmp_path).way.quick


def test_the_written_table_is_what_was_found():
    if absent := (TRAINABLE | REFUSED).keys() - set(CONFIG_MAPPING):
        pytest.skip(f"this transformers has no {', '.join(sorted(absent))}")
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.core.families"
    assert len({**QUICK, **GENERAL}) >= 55
    assert json.loads(SPEEDS.read_text()).keys() == TRAINABLE.keys(), "run python -m tests.core.family_speeds"
