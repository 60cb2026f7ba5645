"""The peer: PEFT on transformers, as its users run it: bf16 base, autocast, AdamW on the factors."""

from __future__ import annotations

import gc
import time

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tests.benchmarks.shapes import ALPHA, DEVICE, RANK


def with_adapter(model: PreTrainedModel, *, experts: bool = False) -> PeftModel:
    """A fresh adapter on all linear layers, and with `experts` on these, in float32 as PEFT makes it."""
    on = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]} if experts else {}
    shape = {"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear", **on}
    return get_peft_model(model, LoraConfig(**shape, task_type="CAUSAL_LM"))


def train(
    model: PeftModel, ids: torch.Tensor, *, steps: int, warm_up: int, checkpointing: bool = False
) -> float:
    """Tokens a second of plain training steps on these ids [rows, length]."""
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=DEVICE.type == "cuda")
    for step in range(warm_up + steps):
        if step == warm_up:
            wait()
            start = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    wait()
    return ids.numel() * steps / (time.perf_counter() - start)


def wait() -> None:
    """For the device to be done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def limit(device: torch.device, gib: float) -> None:
    """Let this process have no more of a card than so much."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total, device.index or 0)


def forget() -> None:
    """Free what is no longer held, and measure the peak anew."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """Peak memory allocated since forget()."""
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0
