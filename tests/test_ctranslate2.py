"""An export to CTranslate2 writes what we write, for both families and all their kinds, or there is no export."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from phrases import lay, phrases
from zhixing import cli
from zhixing.decoding.beam import beam_search
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.files import verify_manifest
from zhixing.interchange import ctranslate2_directory
from zhixing.interchange.ctranslate2_directory import export_ctranslate2, tokens_of, usage
from zhixing.interchange.seq2seq_directory import Generation, Seq2Seq, StoredSeq2Seq, write_seq2seq
from zhixing.models.lstm_translator import LSTMTranslator, LSTMTranslatorSettings
from zhixing.models.marian import Marian, MarianSettings
from zhixing.models.t5 import T5, T5Settings
from zhixing.seq2seq import Translator, load_seq2seq
from zhixing.seq2seq_beside import export_seq2seq
from zhixing.tokens.sentencepiece import read_sentencepiece
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer

ctranslate2: Any = pytest.importorskip("ctranslate2")

ROWS = phrases(60)
SIZES: dict[str, Any] = {"d_model": 32, "n_encoder_layers": 2, "n_layers": 1, "n_heads": 4, "d_ff": 48, "max_len": 48}
KINDS = [
    pytest.param(Marian, {}, id="marian"),
    pytest.param(Marian, {"activation": "gelu", "scale_embedding": False, "norm_eps": 0.01}, id="marian-gelu"),
    pytest.param(Marian, {"activation": "relu", "n_layers": 2}, id="marian-relu"),
    pytest.param(T5, {"d_kv": 8}, id="t5-v1.1"),
    pytest.param(T5, {"feed_forward": "relu", "tie_embeddings": True, "d_kv": 5, "n_buckets": 12}, id="t5-v1.0"),
    pytest.param(T5, {"d_kv": 8, "n_buckets": 8, "max_distance": 6, "norm_eps": 0.1, "n_layers": 2}, id="t5-near"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = train_tokenizer([side for row in ROWS for side in (row["source"], row["target"])], "bpe", 300)
    made.end_texts()
    return made


def make(family: Any, tokenizer: Tokenizer, more: int = 0, **settings: Any) -> Seq2Seq:
    """A model whose next token depends on both sides; its vocabulary is `more` larger than the tokenizer's."""
    kind = MarianSettings if family is Marian else T5Settings
    given = {"vocab_size": tokenizer.vocab_size + more, "start_id": tokenizer.pad_id, **SIZES, **settings}
    model: Any = family(kind(**given))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            middle, width = (1.0, 0.2) if "norm" in name and not name.endswith("bias") else (0.0, 0.3)
            parameter.normal_(middle, 1.0 if name.startswith("positions") else width, generator=generator)
        if family is Marian:
            model.logits_bias.normal_(0, 0.5, generator=generator)
            model.logits_bias[tokenizer.eos_id] = 1.0
    made: Seq2Seq = model.eval()
    return made


def searched(tokenizer: Tokenizer, **settings: Any) -> DecodingSettings:
    """As a run asks for it."""
    usual = {"max_new_tokens": 47, "num_beams": 4, "early_stopping": True, "eos_ids": (tokenizer.target.eos_id,)}
    return DecodingSettings(**{**usual, **settings})


def sources(tokenizer: Tokenizer, count: int = 12) -> list[list[int]]:
    return [tokenizer.with_ends(tokenizer.encode(row["source"])) for row in ROWS[:count]]


@pytest.mark.parametrize(("family", "settings"), KINDS)
def test_it_writes_the_same(family: Any, settings: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path) -> None:
    stored = StoredSeq2Seq(make(family, tokenizer, more=3 if family is T5 else 0, **settings), tokenizer)
    report = export_ctranslate2(stored, tmp_path / "out", sources(tokenizer), searched(tokenizer, length_penalty=0.7))
    assert (report.n_texts, report.ties, report.num_beams) == (12, 0, 4)
    assert report.largest_difference < 1e-4
    assert report.n_parameters == sum(p.numel() for p in stored.model.parameters())
    verify_manifest(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.bin", "config.json", "shared_vocabulary.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_it_writes_depends_on_the_source(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Else the test above would compare nothing."""
    stored = StoredSeq2Seq(make(Marian, tokenizer), tokenizer)
    export_ctranslate2(stored, tmp_path / "out", sources(tokenizer), searched(tokenizer))
    translator = ctranslate2.Translator(str(tmp_path / "out"))
    read = tokens_of(tokenizer, stored.model.source_vocab_size)
    answers = translator.translate_batch([[read[i] for i in row] for row in sources(tokenizer)], max_decoding_length=40)
    assert len({tuple(answer.hypotheses[0]) for answer in answers}) > 8


@pytest.mark.parametrize("family", [Marian, T5])
def test_a_token_that_is_never_written(family: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What generation_config.json forbids is a bias there."""
    model, n = make(family, tokenizer), tokenizer.vocab_size
    free = beam_search(model, sources(tokenizer), searched(tokenizer, num_beams=1))
    often = next(i for best in free for i in best[0].ids)
    settings = searched(tokenizer, bad_words_ids=((often,), (n - 1,)))
    report = export_ctranslate2(StoredSeq2Seq(model, tokenizer), tmp_path / "out", sources(tokenizer), settings)
    assert report.ties == 0  # and so that token is in none
    assert all(often not in best[0].ids for best in beam_search(model, sources(tokenizer), settings))


def test_an_unused_id_gets_a_name_of_its_own(tokenizer: Tokenizer) -> None:
    n = tokenizer.vocab_size
    tokens = tokens_of(tokenizer, n + 2)
    assert tokens[:n] == tokenizer.vocabulary() and len(set(tokens)) == n + 2
    assert [tokenizer.token_id(token) for token in tokens[:n]] == list(range(n))
    assert tokens[n:] == [f"<unused_{n}>", f"<unused_{n + 1}>"]


# ---- a whole run, from the command line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Translator:
    """A folder as a training leaves it, with test pairs."""
    folder = tmp_path_factory.mktemp("runs") / "translator"
    stored = StoredSeq2Seq(make(Marian, tokenizer), tokenizer, "translation", "en", "zh")
    write_seq2seq(folder, stored, num_beams=3, length_penalty=1.5)
    (folder / "data").mkdir()
    lay(folder / "data" / "test.jsonl", ROWS[:40])
    found = load_seq2seq(folder)
    assert isinstance(found, Translator)
    return found


def test_the_command_that_is_printed_writes_what_we_write(
    run: Translator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "it's for others"  # a name that a shell would tear apart
    assert cli.main(["export", str(run.path), str(out), "--to", "ctranslate2"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "the same for 20 texts, greedily and with 3 beams, token by token" in said.err
    assert "texts of the test part" in said.err
    words = shlex.split(said.err[said.err.index("next:") :])
    assert words[1:3] == ["python", "-c"] and len(words) == 4
    assert "beam_size=3, length_penalty=1.5, min_decoding_length=0, max_decoding_length=47" in words[3]
    answer = subprocess.run(
        [sys.executable, "-c", words[3]], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert answer.stdout.strip() == run.write([ROWS[0]["source"]])[0].strip()
    assert answer.stdout.strip()


def test_nothing_is_left_of_an_export_that_says_something_else(
    run: Translator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CTranslate2 is told that the activation is another one."""
    monkeypatch.setitem(ctranslate2_directory.ACTIVATIONS, "silu", "RELU")
    with pytest.raises(RuntimeError, match="CTranslate2 writes greedily for text 1"):
        export_seq2seq(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_score_that_differs_is_noticed(run: Translator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens, less sure by a hundredth: it is refused as well."""
    real = ctranslate2_directory.marian_spec

    def smaller(specs: Any, state: Any, s: MarianSettings, positions: torch.Tensor) -> Any:
        spec = real(specs, state, s, positions)
        spec.decoder.projection.weight = state["embedding.weight"] * 0.999
        spec.decoder.projection.bias = state["logits_bias"] * 0.999
        return spec

    monkeypatch.setattr(ctranslate2_directory, "marian_spec", smaller)
    with pytest.raises(RuntimeError, match="the same with another score"):
        export_seq2seq(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tie_is_no_difference(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens that the model cannot tell apart: CTranslate2, nudged by less than the tolerance, writes the other."""
    model, twins = make(Marian, tokenizer), [tokenizer.vocab_size - 2, tokenizer.vocab_size - 1]
    assert isinstance(model, Marian)
    with torch.no_grad():
        model.embedding.weight[twins[1]] = model.embedding.weight[twins[0]]
        model.logits_bias[twins] = model.logits_bias.max() + 8.0  # so that one of them is written
    written = {
        i for best in beam_search(model, sources(tokenizer), searched(tokenizer, num_beams=1)) for i in best[0].ids
    }
    (ours,) = written & set(twins)
    real = ctranslate2_directory.marian_spec

    def nudged(specs: Any, state: Any, s: MarianSettings, positions: torch.Tensor) -> Any:
        spec = real(specs, state, s, positions)
        spec.decoder.projection.bias = state["logits_bias"].clone()
        spec.decoder.projection.bias[sum(twins) - ours] += 2e-5
        return spec

    monkeypatch.setattr(ctranslate2_directory, "marian_spec", nudged)
    report = export_ctranslate2(
        StoredSeq2Seq(model, tokenizer), tmp_path / "out", sources(tokenizer), searched(tokenizer, num_beams=1)
    )
    assert report.ties == 12
    assert "but for 12 ties" in report.summary()


@pytest.mark.parametrize("apart", [False, True], ids=["one-table", "two-tables"])
def test_opus_mt(apart: bool, tmp_path: Path) -> None:
    """Pieces of SentencePiece with a table of their own: the files and the command are those of that library."""
    spm: Any = pytest.importorskip("sentencepiece")
    folder = tmp_path / "opus"
    folder.mkdir()
    tables = []
    for side in ("source", "target"):
        texts = [row[side if apart else "source"] for row in ROWS]
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=str(folder / side),
            vocab_size=50,
            model_type="bpe",
            minloglevel=9,
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
        (folder / f"{side}.vocab").unlink()
        pieces = read_sentencepiece(folder / f"{side}.spm").pieces
        tables.append([*("</s>", "<unk>"), *(p for p in pieces if p not in ("<s>", "</s>", "<unk>")), "<pad>"])
    for name, tokens in zip(("vocab", "target_vocab"), tables[: 1 + apart], strict=False):
        table = {token: n for n, token in enumerate(tokens)}
        (folder / f"{name}.json").write_text(json.dumps(table), encoding="utf-8")
    config = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": apart}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    read = Tokenizer.load(folder)
    of_each = {"source_vocab_size": read.vocab_size} if apart else {}
    settings = {"vocab_size": read.target.vocab_size, "start_id": read.target.pad_id, **of_each}
    forbidden = Generation(bad_words_ids=((read.target.pad_id,),), forced_eos_token_id=read.target.eos_id)
    model = make(Marian, read.target, **settings)
    write_seq2seq(folder, StoredSeq2Seq(model, read, "translation", "en", "zh", forbidden), num_beams=2)
    loaded = load_seq2seq(folder)
    report = export_seq2seq(loaded, tmp_path / "out")
    assert (report.n_texts, report.ties) == (8, 0)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"source.spm", "target.spm", "vocab.json"} <= names
    assert ("target_vocabulary.json" in names) == apart and ("shared_vocabulary.json" in names) != apart
    text = ROWS[0]["source"]
    how = dataclasses.replace(loaded.settings(), forced_eos_token_id=None)
    code = usage(tmp_path / "out", loaded.stored, how, text)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    ours = beam_search(loaded.model, [read.with_ends(read.encode(text))], how)[0][0]
    assert len(ours.ids) > 3
    assert answer.stdout.strip() == read.target.decode(ours.ids).strip()


def test_languages_are_told_by_their_tags(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speaks = train_tokenizer([row["source"] for row in ROWS], "bpe", 290)
    speaks.end_texts()
    speaks.add_languages(["de", "zh"])
    folder = tmp_path / "many"
    write_seq2seq(folder, StoredSeq2Seq(make(Marian, speaks), speaks), num_beams=2)
    report = export_seq2seq(load_seq2seq(folder), tmp_path / "out")
    assert report.n_texts == 16  # eight fixed texts for each language
    assert ">>de<<" in capsys.readouterr().err


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_said(
    run: Translator,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = LSTMTranslatorSettings(tokenizer.vocab_size, d_model=16, n_encoder_layers=1, n_layers=1, max_len=20)
    lstm = StoredSeq2Seq(LSTMTranslator(settings).eval(), tokenizer)
    with pytest.raises(InputError, match="lstm"):
        export_ctranslate2(lstm, tmp_path / "out", sources(tokenizer), searched(tokenizer))
    stored = StoredSeq2Seq(make(Marian, tokenizer), tokenizer)
    for how in ({"forced_bos_token_id": 5}, {"bad_words_ids": ((3, 4),)}):
        with pytest.raises(InputError, match=r"generation_config\.json"):
            export_ctranslate2(stored, tmp_path / "out", sources(tokenizer), searched(tokenizer, **how))
    with pytest.raises(InputError, match="exists"):
        export_seq2seq(run, run.path)
    where = str(run.path)
    for arguments, what in (
        ([where, "out", "--to", "ctranslate2", "--max-shard-size", "1MB"], "one file"),
        ([where, "out", "--to", "transformers"], "a folder of transformers already"),
        ([where, "out", "--to", "onnx"], "ctranslate2"),
        ([str(tmp_path / "nowhere"), "out", "--to", "ctranslate2"], "there is no run"),
    ):
        assert cli.main(["export", *arguments]) == cli.USER_ERROR
        assert re.search(what, capsys.readouterr().err), arguments
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed") as refused:
        export_seq2seq(run, tmp_path / "out")
    assert refused.value.mend == "pip install 'zhixing[ctranslate2]'"
    assert list(tmp_path.iterdir()) == []


def test_a_report_says_what_was_checked() -> None:
    report = ctranslate2_directory.CTranslate2Report(Path("out"), "4.8.5", 10, 32, 4, 0, 1.5e-6)
    said = "CTranslate2 4.8.5 writes the same for 32 texts, greedily and with 4 beams, token by token"
    assert report.summary() == f"{said}; scores differ by 1.5e-06 at most"
    assert " but for 2 ties;" in dataclasses.replace(report, ties=2).summary()
