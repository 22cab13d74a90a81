"""Fine-tuning: rates by layer, layers that stay as they are, adapters beside their base, a bag that is resumed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import zhixing
import zhixing.classifier
from zhixing.classifier import Classifier, depths_of, freeze_below
from zhixing.cli import main
from zhixing.errors import InputError
from zhixing.files import sha256_file
from zhixing.interchange.adapter_directory import import_adapter
from zhixing.models.bert import BertClassifier, BertSettings
from zhixing.models.gpt import GPT, GPTClassifier, GPTClassifierSettings, GPTSettings
from zhixing.recipe import TrainSettings
from zhixing.training.optimizers import Muon, layer_rates, make_optimizers

SETTINGS = (
    "task.kind=classification", "data.heldout_fraction=0.2", "task.validation_fraction=0.15", "train.bf16=false",
    "train.threads=2", "model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.max_len=32",
    "train.max_steps=30", "train.eval_steps=10", "train.save_steps=10", "train.optim=adamw",
    "train.learning_rate=0.01", "train.warmup_steps=5", "model.dropout=0.0",
)  # fmt: skip
BERT = (*SETTINGS, "model.family=bert", "tokenizer.kind=wordpiece", "tokenizer.vocab_size=200",
        "tokenizer.lowercase=true")  # fmt: skip
BAG = (*SETTINGS, "model.family=bag", "bag.buckets=1000", "bag.epochs=3")
ASKED = ["the plot was lovely", "the scene felt awful"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    words, moods = ("the", "film", "plot", "scene", "was", "felt"), {"positive": "lovely", "negative": "awful"}
    path = tmp_path_factory.mktemp("data") / "moods.jsonl"
    rows = []
    for i in range(160):
        label = ("negative", "positive")[i % 2]
        text = " ".join([*draw.choices(words, k=5), moods[label], str(i)])
        rows.append(json.dumps({"text": text, "label": label}) + "\n")
    path.write_text("".join(rows))
    return path


def train(data: Path, out: Path, *settings: str, resume: bool = False) -> Classifier:
    return cast(Classifier, zhixing.train(str(data), *settings, out=str(out), resume=resume))


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return train(data, tmp_path_factory.mktemp("base") / "bert", *BERT, "train.max_steps=5")


def small(family: str) -> BertClassifier | GPTClassifier:
    generator = torch.Generator().manual_seed(0)
    if family == "bert":
        return BertClassifier(BertSettings(50, "bert", 16, 2, 2, 32, 16, n_labels=2), generator)
    layout: Any = family
    return GPTClassifier(GPTClassifierSettings(GPTSettings(50, layout, 16, 2, 2, 2, 32, 16), 2), generator)


# ---- rates and freezing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "qwen3", "gpt2"])
@pytest.mark.parametrize("optim", ["adamw", "adam", "sgd", "muon"])
def test_rates_are_as_the_formula(family: str, optim: Any) -> None:
    """Of two blocks: head 1, upper block d, lower d^2, embeddings d^3."""
    model = small(family)
    settings = TrainSettings(optim=optim, learning_rate=0.1, adam_learning_rate=0.01, layer_decay=0.5)
    optimizers = make_optimizers(model, settings, rates=layer_rates(depths_of(model), 0.5))
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, float] = {}
    for member in optimizers.members.values():
        peak = 0.01 if optim == "muon" and not isinstance(member, Muon) else 0.1
        for group in member.param_groups:
            assert len(group["params"]) > 0
            found |= {names[p]: group["lr"] / peak for p in group["params"]}
    assert found.keys() == set(names.values())
    for name, share in found.items():
        if ".blocks." in name:
            power = 2 if ".blocks.0." in name else 1
        else:
            power = 3 if any(part in name for part in ("embedding", "positions", "types")) else 0
        assert share == pytest.approx(0.5**power), name
    optimizers.set_factor(0.25)
    assert {g["lr"] for o in optimizers.members.values() for g in o.param_groups} >= {0.1 * 0.25 * 0.5}


def test_muon_in_groups_steps_as_in_one() -> None:
    """Joined matrices are still split at their own sizes where the groups change their places."""
    before = {name: p.detach().clone() for name, p in small("qwen3").named_parameters()}
    steps = []
    for rates in (None, 0.5):
        model = small("qwen3")
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        depths = depths_of(model)
        make_optimizers(model, TrainSettings(), rates=layer_rates(depths, rates) if rates else None).step()
        steps.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    for name in before:
        if name.endswith(("qkv.weight", "gate_up.weight")):
            share = 0.25 if ".blocks.0." in name else 0.5
            torch.testing.assert_close(steps[1][name], share * steps[0][name], atol=1e-6, rtol=1e-4)


def test_without_shares_the_groups_are_as_they_were() -> None:
    optimizers = make_optimizers(small("bert"), TrainSettings(optim="adamw"))
    assert len(optimizers.members["adamw"].param_groups) == 2


@pytest.mark.parametrize("family", ["bert", "qwen3", "gpt2"])
def test_no_gradient_for_what_is_frozen(family: str) -> None:
    model = small(family)
    freeze_below(model, depths_of(model), 2)  # embeddings and the lower block
    inner: Any = model.encoder if isinstance(model, BertClassifier) else model.gpt
    seen = []
    for block in inner.blocks:
        block.register_forward_hook(lambda module, given, out: seen.append(out.requires_grad))
    logits = model(torch.arange(10).view(2, 5), torch.ones(2, 5, dtype=torch.bool))
    assert seen == [False, True], "nothing is kept for a way back through the lower block"
    torch.autograd.backward(logits.sum())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (depths_of(model)[name] < 2), name
    with pytest.raises(InputError, match="freeze_layers is 4"):
        freeze_below(model, depths_of(model), 4)


def test_frozen_layers_stay_bit_for_bit_and_a_resume_keeps_all(base: Classifier, data: Path, tmp_path: Path) -> None:
    more = (f"task.start={base.path}", "model.freeze_layers=2", "train.layer_decay=0.5", "train.weight_decay=0.1")
    run = train(data, tmp_path / "run", *BERT, *more)
    depths = depths_of(run.model)
    assert set(depths.values()) == {0, 1, 2, 3}
    for name, parameter in run.model.named_parameters():
        if depths[name] < 3 and "pooler" not in name:
            same = torch.equal(parameter, base.model.get_parameter(name))
            assert same == (depths[name] < 2), name
    again = tmp_path / "again"
    shutil.copytree(run.path, again)
    shutil.rmtree(sorted((again / "checkpoints").glob("step-*"))[-1])
    (again / "config.json").unlink()
    (again / "model.safetensors").unlink()
    train(data, again, *BERT, *more, resume=True)
    assert sha256_file(again / "model.safetensors") == sha256_file(run.path / "model.safetensors")
    with pytest.raises(InputError, match=r"layer_decay = 0\.5, now it is 0\.9"):
        train(data, again, *BERT, *more, "train.layer_decay=0.9", resume=True)


def test_the_recipe_says_how_long_texts_may_be_and_what_is_dropped_not_the_model_that_is_started_from(
    base: Classifier, data: Path, tmp_path: Path
) -> None:
    from zhixing.interchange.model_directory import write_model_directory

    shorter = ("model.max_len=12", "model.dropout=0.25", "model.freeze_layers=1")
    run = train(data, tmp_path / "bert", *BERT, f"task.start={base.path}", *shorter)
    assert (run.model.settings.max_len, run.model.settings.dropout) == (12, 0.25)
    given = base.model.get_parameter("encoder.positions.weight")
    assert len(given) == 32 and torch.equal(run.model.get_parameter("encoder.positions.weight"), given[:12])
    loaded = cast(Classifier, zhixing.load(run.path))
    np.testing.assert_allclose(loaded.probabilities(ASKED), run.probabilities(ASKED), atol=1e-6)

    assert base.tokenizer is not None
    start = tmp_path / "gpt2"
    gpt = GPT(GPTSettings(base.tokenizer.vocab_size, "gpt2", 32, 2, 2, 2, 128, 64), torch.Generator().manual_seed(0))
    write_model_directory(start, gpt, base.tokenizer)
    short = train(data, tmp_path / "gpt", *SETTINGS, "model.family=gpt", f"task.start={start}", *shorter)
    assert short.model.settings.max_len == 12
    positions = short.model.get_parameter("gpt.positions.weight")
    assert torch.equal(positions, gpt.get_parameter("positions.weight")[:12])
    longer = train(data, tmp_path / "longer", *BERT, f"task.start={base.path}", "model.max_len=400")
    assert longer.model.settings.max_len == 32, "it can be no longer than what is started from"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (("model.family=textcnn", "model.freeze_layers=1"), "model.freeze_layers"),
        (("model.family=bag", "train.layer_decay=0.9"), "train.layer_decay"),
        (("model.family=gpt", "task.kind=language", "train.layer_decay=0.9"), "train.layer_decay"),
        (("model.family=bert", "train.layer_decay=0.0"), "train.layer_decay"),
        (("model.family=bert", "train.layer_decay=1.5"), "train.layer_decay"),
        (("model.family=bert", "model.freeze_layers=-1"), "model.freeze_layers"),
        ((*BERT, "model.freeze_layers=4"), "model.freeze_layers is 4"),
    ],
)
def test_what_cannot_be_is_refused(settings: tuple[str, ...], match: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        train(data, tmp_path / "run", *SETTINGS, *settings)


# ---- adapters -------------------------------------------------------------------------------------------------------


def test_an_adapter_of_bert_leaves_and_comes_back(
    base: Classifier, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(data, tmp_path / "lora", *BERT, f"task.start={base.path}", "model.lora_rank=2")
    assert main(["export", str(run.path), str(tmp_path / "out"), "--to", "peft"]) == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "zhixing.json", "MANIFEST.json"}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["task_type"], config["base_model_name_or_path"]) == (2, "SEQ_CLS", str(base.path))
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    back = cast(Classifier, zhixing.load(tmp_path / "back"))
    assert back.labels == run.labels and back.stored.temperature == run.stored.temperature
    np.testing.assert_allclose(back.probabilities(ASKED), run.probabilities(ASKED), atol=1e-5)
    moved = tmp_path / "moved"
    shutil.copytree(base.path, moved)
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "second"), "--base", str(moved)]) == 0
    capsys.readouterr()
    for wrong, message in (
        (["import", str(tmp_path / "out"), str(tmp_path / "second")], "exists"),
        (["import", str(tmp_path / "out"), str(tmp_path / "third"), "--base", "nowhere"], "is not here"),
        (["import", str(base.path), str(tmp_path / "third"), "--base", str(moved)], "no adapter for the base"),
        (["export", str(base.path), str(tmp_path / "third"), "--to", "peft"], "has no adapter"),
        (["export", "nowhere", str(tmp_path / "third"), "--to", "peft"], "no run"),
        (["export", str(run.path), str(tmp_path / "out"), "--to", "peft"], "exists"),
    ):
        assert main(wrong) == 2, wrong
        assert message in capsys.readouterr().err
    shutil.copytree(run.path, tmp_path / "other")
    shutil.copy(base.path / "model.safetensors", tmp_path / "other" / "model.safetensors")
    (tmp_path / "other" / "MANIFEST.json").unlink()
    assert main(["export", str(tmp_path / "other"), str(tmp_path / "third"), "--to", "peft"]) == 2
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("layout", ["qwen3", "gpt2"])
def test_an_adapter_of_a_gpt(layout: Any, tiny_run: Any, data: Path, tmp_path: Path) -> None:
    start = tiny_run.path
    if layout == "gpt2":
        from zhixing.interchange.model_directory import write_model_directory

        start = tmp_path / "gpt2"
        settings = GPTSettings(tiny_run.tokenizer.vocab_size, "gpt2", 32, 2, 2, 2, 128, 64)
        write_model_directory(start, GPT(settings, torch.Generator().manual_seed(0)), tiny_run.tokenizer)
    gpt = (*SETTINGS, "model.family=gpt", f"task.start={start}", "model.lora_rank=2")
    run = train(data, tmp_path / "lora", *gpt)
    import_adapter(run.path / "adapter", tmp_path / "back")
    back = cast(Classifier, zhixing.load(tmp_path / "back"))
    np.testing.assert_allclose(back.probabilities(ASKED), run.probabilities(ASKED), atol=1e-5)
    names = json.loads((run.path / "adapter" / "adapter_config.json").read_text())
    assert names["modules_to_save"] == ["score"] and names["fan_in_fan_out"] == (layout == "gpt2")


# ---- a bag that is resumed ------------------------------------------------------------------------------------------


def test_a_bag_that_was_cut_off_comes_to_the_same_bytes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = train(data, tmp_path / "straight", *BAG)
    calls = []
    real = zhixing.classifier.train_bag

    def cut_off(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # the temperature is found, the bag of all texts is not
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(zhixing.classifier, "train_bag", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "cut", *BAG)
    assert not (tmp_path / "cut" / "config.json").exists()
    train(data, tmp_path / "cut", *BAG, resume=True)
    assert "trained again from its start, to the same bytes" in capsys.readouterr().err
    for name in ("model.safetensors", "vocabulary.json", "calibration.json", "config.json", "recipe.toml"):
        assert (tmp_path / "cut" / name).read_bytes() == (straight.path / name).read_bytes(), name
    before = len(calls)
    again = train(data, tmp_path / "cut", *BAG, resume=True)
    assert len(calls) == before and "nothing is trained again" in capsys.readouterr().err
    np.testing.assert_array_equal(again.probabilities(ASKED), straight.probabilities(ASKED))
    with pytest.raises(InputError, match="epochs"):
        train(data, tmp_path / "cut", *BAG, "bag.epochs=4", resume=True)
    with (tmp_path / "cut" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    train(data, tmp_path / "cut", *BAG, resume=True)
    assert len(calls) == before + 2 and "damaged since" in capsys.readouterr().err
