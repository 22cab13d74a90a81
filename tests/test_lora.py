"""LoRA: it begins at nothing, trains only itself, can be merged, and fits PEFT's files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zhixing.errors import InputError
from zhixing.interchange.peft_adapter import module_names, read_adapter, shortest_targets, write_adapter
from zhixing.interchange.transformers_layout import to_layout
from zhixing.models.bert import BertClassifier, BertSettings
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.lora import (
    LoRALinear,
    LoRASettings,
    add_lora,
    load_lora_state,
    lora_layers,
    lora_state,
    merge,
    remove_lora,
    unmerge,
)

VOCAB = 31
GPT_SIZES: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 24, "n_layers": 2, "n_heads": 4, "d_ff": 40, "max_len": 16}
BERT_SIZES: dict[str, Any] = GPT_SIZES | {"dropout": 0.0, "n_labels": 3}
MODELS: dict[str, Callable[[], GPT | BertClassifier]] = {
    "qwen3": lambda: GPT(GPTSettings(layout="qwen3", n_kv_heads=2, **GPT_SIZES)),
    "llama": lambda: GPT(GPTSettings(layout="llama", **GPT_SIZES)),
    "gpt2": lambda: GPT(GPTSettings(layout="gpt2", **GPT_SIZES)),
    "bert": lambda: BertClassifier(BertSettings(layout="bert", **BERT_SIZES)),
    "distilbert": lambda: BertClassifier(BertSettings(layout="distilbert", **BERT_SIZES)),
}
IDS = torch.randint(VOCAB, (3, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=MODELS, name="model")
def fixture_model(request: pytest.FixtureRequest) -> GPT | BertClassifier:
    model = MODELS[request.param]().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2, generator=generator)
    return model


def shake(model: torch.nn.Module) -> None:
    """B away from 0."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            for b in layer.b.values():
                b.normal_(0, 0.2, generator=generator)


def trained(model: GPT | BertClassifier) -> tuple[str, ...]:
    return () if isinstance(model, GPT) else ("classifier",)


@torch.no_grad()
def out(model: GPT | BertClassifier) -> Tensor:
    result: Tensor = model(IDS)
    return result


def test_it_begins_as_the_model_was_and_trains_only_itself(model: GPT | BertClassifier) -> None:
    before, frozen = out(model), {name: p.clone() for name, p in model.named_parameters()}
    names = add_lora(model, LoRASettings(rank=4, trained=trained(model)), torch.Generator().manual_seed(0))
    assert torch.equal(out(model), before)
    assert len(names) == len(set(names)) > 6
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS).square().sum().backward()
        optimizer.step()
    assert (out(model) - before).abs().max() > 0.01
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert n_trainable == sum(t.numel() for t in lora_state(model).values())
    remove_lora(model)
    after = dict(model.named_parameters())
    assert after.keys() == frozen.keys()
    changed = {name for name in frozen if not torch.equal(after[name], frozen[name])}
    assert changed == {f"{module}.{kind}" for module in trained(model) for kind in ("weight", "bias")}
    assert all(p.requires_grad for p in after.values())


def test_merged_is_the_same_and_unmerged_as_before(model: GPT | BertClassifier) -> None:
    add_lora(model, LoRASettings(rank=4, alpha=6))
    shake(model)
    before = out(model)
    plain = copy.deepcopy(model)
    merge(plain)
    merge(plain)  # once is enough
    torch.testing.assert_close(out(plain), before, atol=2e-4, rtol=1e-4)
    unmerge(plain)
    torch.testing.assert_close(out(plain), before, atol=2e-4, rtol=1e-4)
    for (_, a), (_, b) in zip(lora_layers(model), lora_layers(plain), strict=True):
        torch.testing.assert_close(a.base.weight, b.base.weight, atol=1e-6, rtol=1e-5)
    merge(model)
    remove_lora(model)
    torch.testing.assert_close(out(model), before, atol=2e-4, rtol=1e-4)
    to_layout(model.state_dict(), model.settings)  # an ordinary model again, that can be written


def test_one_layer_by_hand() -> None:
    base = torch.nn.Linear(3, 5)
    layer = LoRALinear(base, {"q": (0, 2), "v": (4, 5)}, LoRASettings(rank=2, alpha=6.0))
    shake(torch.nn.ModuleList([layer]))
    x = torch.randn(4, 3)
    expected = base(x)
    expected[:, :2] += 3 * x @ layer.a["q"].T @ layer.b["q"].T
    expected[:, 4:] += 3 * x @ layer.a["v"].T @ layer.b["v"].T
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(torch.nn.functional.linear(x, base.weight + layer.correction(), base.bias), expected)
    assert not layer.correction()[2:4].any()


def test_targets_choose_layers_and_their_parts() -> None:
    gpt = MODELS["qwen3"]()
    names = add_lora(gpt, LoRASettings(targets=("attention.q", "attention.v", "feed_forward.gate")))
    assert names == [
        f"blocks.{i}.{part}" for i in (0, 1) for part in ("attention.q", "attention.v", "feed_forward.gate")
    ]
    shapes = {name: tuple(t.shape) for name, t in lora_state(gpt).items()}
    assert shapes["blocks.1.attention.v.a"] == (8, 24) and shapes["blocks.1.attention.v.b"] == (12, 8)
    assert add_lora(MODELS["gpt2"](), LoRASettings(targets=("qkv",))) == [
        "blocks.0.attention.qkv",
        "blocks.1.attention.qkv",
    ]
    assert len(add_lora(MODELS["qwen3"](), LoRASettings(targets=("blocks.1.attention",)))) == 4
    for settings, match in (
        (LoRASettings(targets=("attention", "nonsense")), "nonsense"),
        (LoRASettings(trained=("head",)), "head"),
        (LoRASettings(rank=0), "rank"),
        (LoRASettings(trained=("blocks.0",)), "trained whole"),
    ):
        with pytest.raises(InputError, match=match):
            add_lora(MODELS["qwen3"](), settings)
    with pytest.raises(InputError, match="already"):
        add_lora(gpt, LoRASettings())


def test_dropout_is_of_training_only() -> None:
    model = MODELS["bert"]()
    add_lora(model, LoRASettings(dropout=0.5))
    shake(model)
    assert torch.equal(model.eval()(IDS), model(IDS))
    assert not torch.equal(model.train()(IDS), model(IDS))


def test_adapters_go_to_a_file_and_back(model: GPT | BertClassifier, tmp_path: Path) -> None:
    plain = copy.deepcopy(model)
    settings = LoRASettings(rank=4, alpha=6, trained=trained(model))
    add_lora(model, settings)
    shake(model)
    if isinstance(model, BertClassifier):
        model.classifier.weight.data += 1
    write_adapter(tmp_path, model, settings, "somewhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    again = read_adapter(tmp_path, plain)
    whole = ("classifier", "pre_classifier") if model.settings.layout == "distilbert" else settings.trained
    assert (again.rank, again.alpha, again.trained) == (4, 6, whole)
    assert torch.equal(out(plain), out(model))
    state = lora_state(model)
    read = lora_state(plain)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    load_lora_state(plain, {name: torch.zeros_like(t) for name, t in read.items()})
    assert not torch.equal(out(plain), out(model))


def test_names_are_those_of_peft(tmp_path: Path) -> None:
    """Written down from what PEFT 0.21 saves for models of these classes."""
    expected = {
        "qwen3": "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight",
        "llama": "base_model.model.model.layers.1.mlp.gate_proj.lora_B.weight",
        "gpt2": "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight",
        "bert": "base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.weight",
        "distilbert": "base_model.model.distilbert.transformer.layer.1.ffn.lin2.lora_B.weight",
    }
    for layout, name in expected.items():
        model = MODELS[layout]()
        settings = LoRASettings(trained=trained(model))
        add_lora(model, settings)
        write_adapter(tmp_path / layout, model, settings)
        stored = load_file(tmp_path / layout / "adapter_model.safetensors")
        assert name in stored
        config = json.loads((tmp_path / layout / "adapter_config.json").read_text())
        assert config["fan_in_fan_out"] == (layout == "gpt2")
        if layout in ("bert", "distilbert"):
            assert "base_model.model.classifier.weight" in stored
            assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["classifier"]


def test_targets_are_short_where_that_says_enough() -> None:
    modules = list(module_names(GPTSettings(layout="gpt2", **GPT_SIZES)).values())
    assert shortest_targets([m for m in modules if m.endswith("c_attn")], modules) == ["c_attn"]
    assert shortest_targets([m for m in modules if m.endswith("attn.c_proj")], modules) == ["attn.c_proj"]
    one = [m for m in modules if m == "transformer.h.1.attn.c_attn"]
    assert shortest_targets(one, modules) == ["1.attn.c_attn"]
    bert = list(module_names(BertSettings(head="classifier", **BERT_SIZES)).values())
    down = [m for m in bert if m.endswith(".output.dense") and "attention" not in m]
    assert shortest_targets(down, bert) == ["0.output.dense", "1.output.dense"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"something_new": 3}, "something_new"),
        ({"r": 5}, "shape"),
        ({"r": 0}, "r = 0"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
    ],
)
def test_adapters_that_we_do_not_compute(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    model = MODELS["qwen3"]()
    add_lora(model, LoRASettings(rank=4))
    write_adapter(tmp_path, model, LoRASettings(rank=4))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"something_off": None} | change))
    with pytest.raises(InputError, match=match):
        read_adapter(tmp_path, MODELS["qwen3"]())


def test_adapters_of_another_model_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no"):
        read_adapter(tmp_path, MODELS["qwen3"]())
    model = MODELS["qwen3"]()
    add_lora(model, LoRASettings())
    write_adapter(tmp_path, model, LoRASettings())
    with pytest.raises(InputError, match="no place"):
        read_adapter(tmp_path, MODELS["gpt2"]())
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(dict(list(tensors.items())[1:]), file)
    with pytest.raises(InputError, match="only one of them"):
        read_adapter(tmp_path, MODELS["qwen3"]())
    file.write_bytes(b"no tensors")
    with pytest.raises(InputError, match="damaged"):
        read_adapter(tmp_path, MODELS["qwen3"]())


def test_a_merged_gpt_decodes_through_its_fast_form() -> None:
    model = MODELS["qwen3"]().eval()
    assert isinstance(model, GPT)
    add_lora(model, LoRASettings())
    shake(model)
    expected = model.logits(out(model)[:, -1])
    merge(model)
    remove_lora(model)
    decoder: Any = model.for_decoding()
    state = decoder.new_state(3)
    hidden = None
    for column in range(IDS.shape[1]):
        hidden = decoder.step(IDS[:, column : column + 1], torch.ones(3, dtype=torch.int64), state)
    assert hidden is not None
    torch.testing.assert_close(decoder.logits(hidden[:, -1]), expected, atol=1e-3, rtol=1e-3)
