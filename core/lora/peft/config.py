"""adapter_config.json: read strictly, because it comes from strangers, and written as PEFT reads it.

Every key has to be known, since the effect of one that is not would be lost without a word. What belongs to
one kind of adapter, that kind checks and writes; the rest is here. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import InvalidAdapter
from core.lora.config import ALL_BIASES, TARGETED_BIASES
from core.lora.kinds import ADAPTER_KINDS, AdapterKind
from core.lora.peft.config_checks import CONFIG_NAME, MODULE_NAME, check_switch
from core.lora.peft.expert_files import KEY, naming_parameters
from core.lora.peft.targeting import check_targeting, naming
from core.lora.wholes import BIAS_ON_B, WEIGHT, is_bias_of_base, module_of

if TYPE_CHECKING:
    from core.lora.adapter import AdapterWeights

_MAX_CONFIG_BYTES = 256 * 1024
_MAX_TEXT = 1000

# Keys with a meaning for every kind, or that describe and change nothing.
UNDERSTOOD = {
    "peft_type",
    "target_modules",
    "layers_to_transform",
    "layers_pattern",
    "exclude_modules",
    "bias",
    "lora_bias",
    "ensure_weight_tying",
}
OPTIONAL_PARTS = ("eva_config", "corda_config", "loftq_config", "lora_ga_config", "velora_config")
"""How a start was found or gradients were computed; init_lora_weights says whether the base was changed."""
DESCRIPTIVE = {
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "megatron_core",
    "qalora_group_size",
    *OPTIONAL_PARTS,
}
CLASSIFIES = "SEQ_CLS"
"""The task_type of an adapter that classifies texts."""
_SCORING = ("classifier", "score")
"""What PEFT itself takes for the head of such an adapter, and names in its files."""
_MOST_MODULES = 20
_SOFT_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT")
# As supports_lora_conversion of PEFT 0.21 says it; what has a merge without it follows.
_CONVERTIBLE = ("LOHA", "LOKR", "VERA", "VBLORA", "FOURIERFT", "RANDLORA", "C3A", "GRALORA", "DELORA")
_MERGEABLE = ("IA3", "OFT", "BOFT", "HRA", "SHIRA", "ROAD", "LN_TUNING", "TRAINABLE_TOKENS")
_CLASS = ("base_model_class", "parent_library")


def peft_config(
    adapter: AdapterWeights, modules: Collection[str] = (), experts: Collection[str] = ()
) -> dict[str, Any]:
    """The content of adapter_config.json; `modules` are the linear layers of its base, by path, `experts` the
    fused parameters of its experts.
    """
    kind = ADAPTER_KINDS.get(adapter.kind)
    return {
        "peft_type": kind.peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_name,
        "revision": adapter.base_revision or None,
        "inference_mode": True,
        **kind.peft_settings(adapter),
        **({} if kind.whole else _naming(adapter, modules)),
        **_classifying(adapter),
        **_with_wholes(adapter),
        **({KEY: naming_parameters(adapter.experts, experts)} if adapter.experts else {}),
    }


def _naming(adapter: AdapterWeights, modules: Collection[str]) -> dict[str, Any]:
    """Which modules it targets; `modules` are the linear layers of its base, if these are known."""
    held = {path: one for path, one in adapter.layers.items() if path not in adapter.experts}
    return naming(held, {*modules, *held, *_beside(adapter)} if modules else ())


def _beside(adapter: AdapterWeights) -> list[str]:
    """Modules of a head, which a short name must not mean beside the layers."""
    return [path.removesuffix(".weight") for path in adapter.head if path.endswith(".weight")]


def _classifying(adapter: AdapterWeights) -> dict[str, Any]:
    """What says that an adapter classifies, by a head of its own."""
    if adapter.labels is None:
        return {}
    return {"task_type": CLASSIFIES, "modules_to_save": sorted({*adapter.head_modules, *_SCORING})}


def _with_wholes(adapter: AdapterWeights) -> dict[str, Any]:
    """What says that an adapter has whole parameters beside its factors."""
    names = list(adapter.wholes)
    saved = {module_of(name) for name in names if name.endswith(WEIGHT)}
    biases = {module_of(name) for name in names if is_bias_of_base(name)} - saved
    found: dict[str, Any] = {}
    if saved:
        found["modules_to_save"] = sorted(path.rpartition(".")[2] for path in saved)
    if adapter.is_tied:
        found["ensure_weight_tying"] = True
    if biases:
        found["bias"] = TARGETED_BIASES if biases <= set(adapter.layers) else ALL_BIASES
    if any(name.endswith(BIAS_ON_B) for name in names):
        found["lora_bias"] = True
    return found


def read_config(path: Path) -> dict[str, Any]:
    """Parse adapter_config.json against the known keys and ranges.

    Raises InvalidAdapter naming the key at fault.
    """
    return checked(raw_config(path))


def raw_config(path: Path) -> dict[str, Any]:
    """What a configuration holds, unchecked. Raises InvalidAdapter if that is no JSON object."""
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise InvalidAdapter(
            f"{path.name} is {path.stat().st_size:,} bytes long; at most {_MAX_CONFIG_BYTES:,} are accepted."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise InvalidAdapter(f"{path.name} is not UTF-8 text; save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(f"{path.name} is not valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise InvalidAdapter(f"{path.name} holds no JSON object.")
    return config


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration, if every key is known and in range; else raises InvalidAdapter."""
    kind = kind_of(config)
    for key, value in config.items():
        if key == "modules_to_save" and (value or config.get("task_type") == CLASSIFIES):
            _check_modules(value, config)
        else:
            _check_key(key, value, kind)
    _check_wholes(config, kind)
    kind.check_peft(config)
    _check_descriptions(config)
    check_targeting(config)
    return config


def kind_of(config: Mapping[str, Any]) -> AdapterKind:
    """The kind that a configuration describes. Raises InvalidAdapter if it is none of those there are."""
    found = [kind for kind in ADAPTER_KINDS.all().values() if kind.recognises(config)]
    if not found:
        given = repr(config.get("peft_type"))[:40]
        known = " or ".join(sorted({kind.peft_type for kind in ADAPTER_KINDS.all().values()}))
        raise InvalidAdapter(
            f"{CONFIG_NAME} describes a {given} adapter; only {known} can be used."
            f"{_what_to_do(config.get('peft_type'))}"
        )
    return found[-1]


def _what_to_do(peft_type: object) -> str:
    """About a kind of PEFT's that is none of ours."""
    if peft_type in _SOFT_PROMPTS:
        return " It is a soft prompt, which changes no weights: no LoRA stands for it."
    if peft_type in _CONVERTIBLE:
        return " PEFT's convert_to_lora makes a LoRA of it."
    if peft_type in _MERGEABLE:
        return " Merge it into its base with PEFT (merge_and_unload), and add the result as a base."
    return ""


def _check_key(key: str, value: object, kind: AdapterKind) -> None:
    if key in UNDERSTOOD or key in DESCRIPTIVE or key in kind.peft_keys or not value:
        return
    why = kind.peft_refused.get(
        key, f"the setting {key!r} is not known here, so its effect would be lost without a word"
    )
    raise InvalidAdapter(f"{CONFIG_NAME}: {why}.")


def _check_wholes(config: Mapping[str, Any], kind: AdapterKind) -> None:
    """What says which parameters were trained whole."""
    known = ("none", *kind.peft_biases)
    bias = config.get("bias", "none")
    if bias not in known:
        raise InvalidAdapter(
            f"{CONFIG_NAME}: bias is {str(bias)[:40]!r}; {kind.label} takes {' or '.join(known)}."
        )
    for key in ("lora_bias", "ensure_weight_tying"):
        check_switch(config, key)
    if config.get("lora_bias") and not kind.takes_bias_on_b:
        raise InvalidAdapter(f"{CONFIG_NAME}: {kind.label} with a bias on B (lora_bias) cannot be used.")
    if config.get("task_type") == CLASSIFIES and (bias != "none" or config.get("lora_bias")):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: biases that were trained beside a head that classifies cannot be used here. "
            "Train it with bias: none and without lora_bias."
        )


def _check_modules(value: object, config: Mapping[str, Any]) -> None:
    """The modules of a classifier's head, or those that were trained whole, by their paths."""
    names = value if isinstance(value, list) else []
    if not 0 < len(names) <= _MOST_MODULES or not all(
        isinstance(name, str) and MODULE_NAME.match(name) for name in names
    ):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: modules_to_save is {str(value)[:60]}; it names modules, such as "
            f"{'classifier' if config.get('task_type') == CLASSIFIES else 'embed_tokens'}, in a list."
        )


def _check_descriptions(config: Mapping[str, Any]) -> None:
    """Keys that change nothing still come from a stranger, and are shown or written again."""
    for key in ("base_model_name_or_path", "revision", "task_type", "peft_version"):
        value = config.get(key)
        if value is not None and not (isinstance(value, str) and len(value) <= _MAX_TEXT):
            raise InvalidAdapter(f"{CONFIG_NAME}: {key} must be a text of at most {_MAX_TEXT:,} characters.")
    if not isinstance(config.get("inference_mode", True), bool):
        raise InvalidAdapter(f"{CONFIG_NAME}: inference_mode must be true or false.")
    if config.get("megatron_core") not in (None, "megatron.core"):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: megatron_core names {str(config['megatron_core'])[:40]!r}; adapters of "
            "Megatron are not used."
        )
    group = config.get("qalora_group_size", 16)
    if type(group) is not int or not 1 <= group <= 65536:
        raise InvalidAdapter(
            f"{CONFIG_NAME}: qalora_group_size is {str(group)[:40]!r}; expected a whole number from 1 "
            "to 65,536."
        )
    for key in OPTIONAL_PARTS:
        if not isinstance(config.get(key) or {}, dict):
            raise InvalidAdapter(f"{CONFIG_NAME}: {key} must be an object or null.")
    mapping = config.get("auto_mapping")
    if mapping is not None and not _is_auto_mapping(mapping):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: auto_mapping names a class outside of transformers, which is never loaded."
        )


def _is_auto_mapping(mapping: object) -> bool:
    """As PEFT writes it: a class of transformers and its module, or of PEFT; Unsloth adds a mark."""
    if not isinstance(mapping, dict) or not set(mapping) <= {*_CLASS, "unsloth_fixed"}:
        return False
    named = [mapping.get(key) for key in _CLASS]
    return all(isinstance(one, str) and MODULE_NAME.match(one) for one in named) and (
        str(mapping["parent_library"]).split(".")[0] in ("transformers", "peft")
    )
