"""LoRA adapters in PEFT's files: adapter_config.json and adapter_model.safetensors.

    ours                                 PEFT's, for the qwen3 layout
    blocks.0.attention.q.a               base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight
    classifier.weight, trained whole     base_model.model.classifier.weight

The names of the modules are those of the model's own layout (transformers_layout.py), so an adapter fits the model that
transformers loads from our directory, and one that PEFT trained on it fits ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zhixing.errors import InputError
from zhixing.files import atomic_write, fsync_path, temporary_beside
from zhixing.interchange.model_directory import read_json
from zhixing.interchange.transformers_layout import Settings, layout_rows
from zhixing.models.bert import BertSettings
from zhixing.models.gpt import GPTClassifierSettings, GPTSettings
from zhixing.models.lora import PARTS, LoRASettings, add_lora, load_lora_state, lora_state
from zhixing.training.checkpoint import read_safetensors, write_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTORS = {"a": "lora_A.weight", "b": "lora_B.weight"}

# Keys that are read here, or that change nothing in what is computed.
KNOWN_KEYS = frozenset(
    {
        *("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "peft_type", "bias"),
        *("base_model_name_or_path", "task_type", "inference_mode", "init_lora_weights", "fan_in_fan_out"),
        *("revision", "auto_mapping", "peft_version", "runtime_config", "layer_replication", "qalora_group_size"),
        *("megatron_core", "ensure_weight_tying"),
    }
)


def module_names(settings: Settings | GPTClassifierSettings) -> dict[str, str]:
    """The name of each matrix or module of ours in the layout: "blocks.0.attention.q" -> "model.layers.0....q_proj"."""
    if isinstance(settings, GPTClassifierSettings):  # as transformers' ForSequenceClassification of the layout has it
        inner = module_names(replace(settings.gpt, tie_embeddings=True))
        return {f"gpt.{ours}": stored for ours, stored in inner.items()} | {"score": "score"}
    names: dict[str, str] = {}
    for row in layout_rows(settings):
        if not row.ours.endswith(".weight"):
            continue
        ours = row.ours.removesuffix(".weight")
        stored = [name.removesuffix(".weight") for name, _ in row.stored]
        if len(stored) == 1:
            names[ours] = stored[0]
        else:
            parent, _, joined = ours.rpartition(".")
            names |= {f"{parent}.{part}": name for part, name in zip(PARTS[joined], stored, strict=True)}
    return names


def write_adapter(folder: Path, model: nn.Module, settings: LoRASettings, base: str = "") -> None:
    """Write the adapter of a model that `add_lora(model, settings)` prepared. `base`: where its model lies.

    PEFT takes a classifier's head to be trained whole, and with `classifier` whatever ends so, distilbert's
    pre_classifier too; so these are always written.
    """
    model_settings: Any = model.settings
    state = lora_state(model)
    names = module_names(model_settings)
    task_type = _task_type(model_settings)
    of_bert = isinstance(model_settings, BertSettings) and task_type == "SEQ_CLS"
    whole = {names[name] for name in settings.trained} | ({"classifier"} if of_bert else set())
    parameters = dict(model.named_parameters())
    for name, stored in names.items():
        if stored.endswith(tuple(whole)):
            kinds = [kind for kind in ("weight", "bias") if f"{name}.{kind}" in parameters]
            state |= {f"{name}.{kind}": parameters[f"{name}.{kind}"].detach() for kind in kinds}
    tensors = {_stored(name, names): tensor.float().contiguous().clone() for name, tensor in state.items()}
    adapted = sorted({name.removesuffix(".a") for name in state if name.endswith(".a")})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": shortest_targets([names[name] for name in adapted], list(names.values())),
        "modules_to_save": sorted(whole) or None,
        "bias": "none",
        "fan_in_fan_out": getattr(getattr(model_settings, "gpt", model_settings), "layout", "") == "gpt2",
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder / WEIGHTS)
    try:
        write_safetensors(temporary, tensors)
        fsync_path(temporary)
        temporary.replace(folder / WEIGHTS)
    finally:
        temporary.unlink(missing_ok=True)
    atomic_write(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def read_adapter(folder: Path, model: nn.Module) -> LoRASettings:
    """Prepare `model` in place with the adapter of a folder, ours or PEFT's. -> its settings.

    InputError where it is not LoRA as we compute it, or of another model.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise InputError(f"there is no {CONFIG} with its {WEIGHTS}", where=str(folder))
    config = read_json(folder / CONFIG)
    rank, alpha, dropout = _check_config(config, folder / CONFIG)
    try:
        tensors = read_safetensors(folder / WEIGHTS)
    except ValueError as error:
        raise InputError("the weights are damaged", where=str(folder / WEIGHTS), why=str(error)[:200]) from None
    model_settings: Any = model.settings
    ours = {stored: name for name, stored in module_names(model_settings).items()}
    parameters = dict(model.named_parameters())
    state = {_ours(name, ours, parameters, folder): tensor.float() for name, tensor in tensors.items()}
    adapted = sorted({name.removesuffix(".a") for name in state if name.endswith(".a") and name not in parameters})
    whole = sorted({name.rpartition(".")[0] for name in state if name in parameters})
    if not adapted:
        raise InputError("the adapter holds no LoRA", where=str(folder / WEIGHTS))
    settings = LoRASettings(rank, alpha, dropout, tuple(adapted), tuple(whole))
    add_lora(model, settings)
    try:
        load_lora_state(model, state)
    except InputError as error:
        raise InputError(error.what, where=str(folder / WEIGHTS), why=error.why) from None
    return settings


def _stored(name: str, names: Mapping[str, str]) -> str:
    """Our name of a trained tensor -> PEFT's."""
    module, _, kind = name.rpartition(".")
    return f"{PREFIX}{names[module]}.{FACTORS.get(kind, kind)}"


def _ours(name: str, ours: Mapping[str, str], parameters: Mapping[str, Tensor], folder: Path) -> str:
    """PEFT's name of a trained tensor -> ours."""
    bare = name.removeprefix(PREFIX)
    for kind, suffix in (*FACTORS.items(), ("weight", "weight"), ("bias", "bias")):
        module = bare.removesuffix(f".{suffix}")
        if module != bare and module in ours:
            found = f"{ours[module]}.{kind}"
            if kind in FACTORS or found in parameters:
                return found
    raise InputError(
        f"the model has no place for the adapter's {name}",
        where=str(folder / WEIGHTS),
        mend="give the model that it was trained on, with the same head",
    )


def _task_type(settings: Settings | GPTClassifierSettings) -> str | None:
    if isinstance(settings, GPTClassifierSettings):
        return "SEQ_CLS"
    if isinstance(settings, BertSettings):
        return {"none": "FEATURE_EXTRACTION", "masked_lm": None, "classifier": "SEQ_CLS"}[settings.head]
    return "CAUSAL_LM" if isinstance(settings, GPTSettings) else None


def shortest_targets(wanted: list[str], modules: list[str]) -> list[str]:
    """What PEFT finds exactly these modules by: it takes each whose name is a target or ends with "." and a target.

    ["h.0.attn.c_proj", "h.1.attn.c_proj"] of modules that have mlp.c_proj too -> ["attn.c_proj"]; the whole names where
    nothing shorter will do.
    """
    for length in (1, 2, 3):
        targets = sorted({".".join(name.split(".")[-length:]) for name in wanted})
        if {name for name in modules if any(f".{name}".endswith(f".{t}") for t in targets)} == set(wanted):
            return targets
    return sorted(wanted)


def _check_config(config: Mapping[str, Any], file: Path) -> tuple[int, float, float]:
    """rank, alpha, dropout. A key that is not known must say nothing: null, false or empty."""
    if config.get("peft_type") != "LORA":
        raise InputError(f"peft_type = {config.get('peft_type')!r} is not supported", where=str(file), mend="LORA is")
    if config.get("bias", "none") != "none":
        raise InputError(f"bias = {config['bias']!r} is not supported", where=str(file), mend="we train no biases")
    for key, value in config.items():
        if key not in KNOWN_KEYS and value not in (None, False, {}, [], ""):
            raise InputError(
                f"{key} = {value!r} is not supported", where=str(file), why="it may change what the adapter computes"
            )
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    dropout: Any = config.get("lora_dropout", 0.0)
    if type(rank) is not int or not 1 <= rank <= 1 << 16:
        raise InputError(f"r = {rank!r} cannot be used", where=str(file), mend="a whole number of at least 1")
    if type(alpha) not in (int, float) or not 0 <= float(alpha) < torch.inf:
        raise InputError(f"lora_alpha = {alpha!r} cannot be used", where=str(file), mend="a number of at least 0")
    if type(dropout) not in (int, float) or not 0 <= float(dropout) < 1:
        raise InputError(f"lora_dropout = {dropout!r} cannot be used", where=str(file), mend="a number below 1")
    return rank, float(alpha), float(dropout)
