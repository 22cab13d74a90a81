"""A classifier's folder: what is written is read back, and a folder that somebody made to harm is refused.

Refused means InputError: no other exception, and neither memory nor time for what a file only claims.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from zhixing.errors import InputError
from zhixing.interchange.classifier_directory import StoredClassifier, is_classifier, read_classifier, write_classifier
from zhixing.models.bert import BertClassifier, BertSettings
from zhixing.models.gpt import GPTClassifier, GPTClassifierSettings, GPTSettings
from zhixing.models.lstm import LSTMClassifier, LSTMClassifierSettings
from zhixing.models.textcnn import TextCNNClassifier, TextCNNSettings
from zhixing.tasks.bag import BagTraining, train_bag
from zhixing.tokens.ngrams import NgramSettings, NgramVocabulary
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer
from zhixing.training.checkpoint import read_safetensors, write_safetensors

TEXTS = ["a superb film with a lovely plot", "an awful film and a dull plot", "春眠不觉晓"] * 8
LABELS = ("差", "bad", "quite good")
SINGLE = "single_label_classification"
FAMILIES = ("bag", "textcnn", "lstm", "gpt", "bert")


def stored(family: str) -> StoredClassifier:
    g = torch.Generator().manual_seed(0)
    if family == "bag":
        examples = [(text, (LABELS[i % 3],)) for i, text in enumerate(TEXTS)]
        bag = train_bag(examples, NgramSettings(buckets=50), BagTraining(epochs=1), d_model=4)
        return StoredClassifier(bag.classifier(), bag.vocabulary, bag.labels, SINGLE, 1.5)
    kind = "wordpiece" if family == "bert" else "bpe"
    tokenizer = train_tokenizer(TEXTS, kind, 270)  # type: ignore[arg-type]
    v = tokenizer.vocab_size
    model: nn.Module
    if family == "textcnn":
        model = TextCNNClassifier(TextCNNSettings(v, 3, 8, 16, (2, 3), 4), g)
    elif family == "lstm":
        model = LSTMClassifier(LSTMClassifierSettings(v, 3, 8, 8, 2, 16), g)
    elif family == "gpt":
        model = GPTClassifier(GPTClassifierSettings(GPTSettings(v, "qwen3", 8, 2, 2, 1, 16, 16), 3), g)
    else:
        model = BertClassifier(BertSettings(v, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_len=16, n_labels=3), g)
    return StoredClassifier(model.eval(), tokenizer, LABELS, SINGLE, 1.5)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound folder of each family; read only."""
    folder = tmp_path_factory.mktemp("originals")
    for family in FAMILIES:
        write_classifier(folder / family, stored(family))
    return {family: folder / family for family in FAMILIES}


@pytest.fixture
def copied(originals: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def copy(family: str) -> Path:
        folder = tmp_path / family
        folder.mkdir()
        for path in originals[family].iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    return copy


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_read(family: str, originals: dict[str, Path]) -> None:
    before, after = stored(family), read_classifier(originals[family])
    assert is_classifier(originals[family])
    assert (after.labels, after.problem_type, after.temperature) == (before.labels, SINGLE, 1.5)
    assert after.model.settings == before.model.settings and not after.model.training
    state = after.model.state_dict()
    assert state.keys() == before.model.state_dict().keys()
    for name, tensor in before.model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)
    if isinstance(before.reader, NgramVocabulary):
        assert isinstance(after.reader, NgramVocabulary)
        assert (after.reader.words, after.reader.settings) == (before.reader.words, before.reader.settings)
        for ours, theirs in zip(
            vars(after.reader.features(TEXTS)).values(), vars(before.reader.features(TEXTS)).values(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    else:
        assert isinstance(after.reader, Tokenizer) and isinstance(before.reader, Tokenizer)
        assert after.reader.fingerprint() == before.reader.fingerprint()
        ids = torch.tensor([after.reader.with_ends(after.reader.encode("a dull film"))])
        mask = torch.ones_like(ids, dtype=torch.bool)
        torch.testing.assert_close(after.model(ids, mask), before.model(ids, mask), rtol=0, atol=0)


def read_if_classifier(folder: Path) -> StoredClassifier:
    if not is_classifier(folder):
        raise InputError("it is no classifier")
    return read_classifier(folder)


def complaint(folder: Path) -> str:
    """What is said against a folder; nothing where it is read."""
    try:
        read_classifier(folder)
    except InputError as error:
        return error.message()
    return ""


def refused(folder: Path, says: str = "") -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as refusal:
            read_if_classifier(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20, f"{peak:,} bytes for a folder of a few kilobytes"
    message = refusal.value.message()
    assert says in message and len(message) < 2000, message


def edited(folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    edit(values)
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


JUNK = (None, "x", [], {}, 1.5, True, -1, 0, 1 << 29, 1 << 40, 10**400, float("nan"), float("inf"), [1], {"a": 1})


@pytest.mark.parametrize("family", ["bag", "textcnn", "lstm", "gpt"])
def test_any_setting_of_any_kind(family: str, copied: Callable[[str], Path]) -> None:
    """Each setting as each of these: refused, or (where it is one) the model as it says."""
    folder = copied(family)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    table = config["settings"]
    places = [table, *(value for value in table.values() if isinstance(value, dict))]
    for values in places:
        for key, good in list(values.items()):
            for junk in JUNK:
                values[key] = junk
                (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
                said = complaint(folder)
                assert len(said) < 2000
                assert said or (key in FREE and type(junk) in (bool, int, float)), (key, junk)
            values[key] = good
            del values[key]
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            said = complaint(folder)
            assert not said or any(part in said for part in (key, "by the settings", "outputs")), said
            values[key] = good
        values["unknown"] = 1
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        refused(folder, "unknown")
        del values["unknown"]


# Settings that no shape of a tensor follows from: another value is another model, and no harm.
FREE = {
    "max_len",
    "power",
    "dropout",
    "freeze_embeddings",
    "norm_eps",
    "rope_theta",
    "tie_embeddings",
    "n_heads",
    "n_kv_heads",
}


@pytest.mark.parametrize(
    "key, value",
    [
        ("model_type", ["zhixing_bag"]),
        ("model_type", None),
        ("model_type", "zhixing_rnn"),
        ("settings", None),
        ("settings", [1, 2]),
        ("id2label", {}),
        ("id2label", {"0": "a"}),
        ("id2label", {"0": "a", "2": "b", "3": "c"}),
        ("id2label", {"0": "a", "1": "a", "2": "c"}),
        ("id2label", {"0": "a", "1": 1, "2": "c"}),
        ("id2label", ["a", "b", "c"]),
        ("id2label", {str(i): str(i) for i in range(4)}),
        ("label2id", {"a": 0}),
        ("problem_type", "ranking"),
        ("problem_type", ["regression"]),
        ("problem_type", "regression"),
        ("zhixing", "ours"),
        ("zhixing", {"tokenizer_fingerprint": "another"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["bag", "textcnn"])
def test_any_other_key(family: str, key: str, value: Any, copied: Callable[[str], Path]) -> None:
    if key == "zhixing" and family == "bag":
        return  # it has no tokenizer
    folder = copied(family)

    def edit(config: dict[str, Any]) -> None:
        config[key] = value
        if key == "id2label":
            config.pop("label2id")

    edited(folder, "config.json", edit)
    if key == "problem_type" and value == "regression" and family == "textcnn":
        return  # three numbers
    refused(folder)


def test_settings_that_claim_much(copied: Callable[[str], Path]) -> None:
    for number, (family, key, value) in enumerate(
        [
            ("lstm", "n_layers", (1 << 31) - 1),
            ("lstm", "d_hidden", (1 << 31) - 1),
            ("textcnn", "widths", [1] * 100_000),
            ("textcnn", "widths", [(1 << 20) - 1]),
            ("textcnn", "vocab_size", (1 << 31) - 1),
            ("bag", "d_model", (1 << 31) - 1),
        ]
    ):
        folder = copied(family)
        edited(folder, "config.json", lambda c, key=key, value=value: c["settings"].update({key: value}))  # type: ignore[misc]
        refused(folder)
        folder.rename(folder.with_name(f"done-{number}"))
    for key in ("n_layers", "max_len", "d_model", "d_ff", "vocab_size"):
        folder = copied("gpt")
        edited(folder, "config.json", lambda c, key=key: c["settings"]["gpt"].update({key: (1 << 31) - 1}))  # type: ignore[misc]
        refused(folder)
        folder.rename(folder.with_name(f"done-{key}"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda v: v.update(words=None),
        lambda v: v.update(words="abc"),
        lambda v: v.update(words=v["words"][:-1]),
        lambda v: v["words"].__setitem__(0, 7),
        lambda v: v["words"].__setitem__(0, ""),
        lambda v: v["words"].__setitem__(0, "two words"),
        lambda v: v["words"].__setitem__(0, v["words"][1]),
        lambda v: v["words"].__setitem__(0, "\ud800"),
        lambda v: v.update(words=[[]] * len(v["words"])),
        lambda v: v["counts"].__setitem__(0, 1.5),
        lambda v: v["counts"].__setitem__(0, -1),
        lambda v: v["counts"].__setitem__(0, 10**30),
        lambda v: v.update(counts={}),
        lambda v: v.update(words=v["words"] + ["more"], counts=v["counts"] + [1]),
        lambda v: v.update(settings=None),
        lambda v: v["settings"].update(buckets=1 << 30),
        lambda v: v["settings"].update(buckets="many"),
        lambda v: v["settings"].update(words="perl"),
        lambda v: v["settings"].update(other=1),
        lambda v: v["settings"].update(n=0),
    ],
)
def test_a_vocabulary_that_is_none(edit: Callable[[dict[str, Any]], object], copied: Callable[[str], Path]) -> None:
    folder = copied("bag")
    edited(folder, "vocabulary.json", edit)
    refused(folder)


@pytest.mark.parametrize("value", [0, -1, "1", None, True, float("nan"), float("inf"), [1.0]], ids=str)
def test_a_temperature_that_cannot_be(value: Any, copied: Callable[[str], Path]) -> None:
    folder = copied("textcnn")
    (folder / "calibration.json").write_text(json.dumps({"temperature": value}))
    refused(folder, "temperature")


@pytest.mark.parametrize("family", ["bag", "textcnn", "lstm", "gpt"])
def test_tensors_of_other_shapes_or_names(family: str, copied: Callable[[str], Path]) -> None:
    folder = copied(family)
    sound = read_safetensors(folder / "model.safetensors")
    name, tensor = next(iter(sound.items()))
    for tensors in (
        {**sound, name: tensor[:-1].clone()},
        {**sound, name: tensor[None].clone()},
        {**sound, "more": torch.zeros(3)},
        {other: t for other, t in sound.items() if other != name},
        {**sound, name: tensor.to(torch.int64)},
        {},
    ):
        write_safetensors(folder / "model.safetensors", tensors)
        refused(folder)


@pytest.mark.parametrize("name", ["config.json", "vocabulary.json", "calibration.json", "model.safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 50_000, b"\x80\x04cos\nsystem\n"],
    ids=range(8),
)
def test_files_of_anything(name: str, content: bytes, copied: Callable[[str], Path]) -> None:
    folder = copied("bag")
    (folder / name).write_bytes(content)
    refused(folder)


@pytest.mark.parametrize("family", ["bag", "textcnn", "bert"])
def test_a_pickle_is_not_opened(family: str, copied: Callable[[str], Path]) -> None:
    folder = copied(family)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch harm'\ntR.")
    read_classifier(folder)  # beside the weights it is nothing to us
    (folder / "model.safetensors").unlink()
    refused(folder, "safetensors")


def test_missing_files(copied: Callable[[str], Path]) -> None:
    for family, name in (("bag", "vocabulary.json"), ("textcnn", "tokenizer.json"), ("bag", "model.safetensors")):
        folder = copied(family)
        (folder / name).unlink()
        refused(folder)
        folder.rename(folder.with_name(f"{family}-{name}"))
    assert not is_classifier(Path("nowhere"))
