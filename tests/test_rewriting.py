"""Documents that are cut and put together, begun as asked, chosen by coverage and sampled: by a model that learnt nothing.

What a random model writes is no translation, but how it is asked, in which parts and in which company, is the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from phrases import WORDS, phrases
from test_marian import make
from zhixing import seq2seq
from zhixing.cli import app
from zhixing.errors import InputError
from zhixing.interchange.seq2seq_directory import StoredSeq2Seq, write_seq2seq
from zhixing.seq2seq import Summarizer, Translator
from zhixing.tasks.generation import source_ids
from zhixing.tasks.rewriting import coverage, fit_sources, write_each
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer

SENTENCES = [s.capitalize() + "." for phrase in phrases(14, seed=3) if len(s := phrase["source"]) < 40]
DOCUMENT = f"{SENTENCES[0]} {SENTENCES[1]}\n\n  {SENTENCES[2]}\n{SENTENCES[3]} {SENTENCES[4]} {SENTENCES[5]}\n"
LONG = " ".join(word for phrase in phrases(5, seed=5) for word in phrase["source"].split())
ROOM = 47  # tokens of a source, its end left out


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that learnt nothing ends late: texts of twelve tokens do."""
    monkeypatch.setattr(seq2seq, "MOST_NEW_TOKENS", 12)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = train_tokenizer([*WORDS, *map(str.capitalize, WORDS), *WORDS.values(), " ."], "char", 200)
    made.end_texts()
    return made


@pytest.fixture(scope="module")
def stored(tokenizer: Tokenizer) -> StoredSeq2Seq:
    model = make(seed=7, vocab_size=tokenizer.vocab_size, start_id=tokenizer.pad_id, n_layers=1, n_encoder_layers=1)
    attention = model.decoder[0].cross_attention
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "norm" in name:
                parameter.fill_(float(name.endswith("weight")))
        for part in (attention.q, attention.out):  # so that the source matters
            part.weight.mul_(2)
        model.logits_bias[tokenizer.eos_id] += 1  # so that some texts end
        model.logits_bias[[tokenizer.pad_id, tokenizer.unk_id or 0]] -= 20
    return StoredSeq2Seq(model, tokenizer, "translation", "en", "de")


@pytest.fixture(scope="module")
def translator(stored: StoredSeq2Seq) -> Translator:
    return Translator(Path("nowhere"), stored, num_beams=3)


@pytest.fixture(scope="module")
def summarizer(stored: StoredSeq2Seq) -> Summarizer:
    return Summarizer(Path("nowhere"), dataclasses.replace(stored, task="summarization"), num_beams=3)


def test_a_document_keeps_its_lines_and_paragraphs(translator: Translator) -> None:
    lines = translator(DOCUMENT).text.split("\n")
    assert [bool(line) for line in lines] == [True, False, True, True, False]
    alone = translator(SENTENCES[:6])
    one, two, three, four, five, six = (answer.text for answer in alone)
    assert lines == [f"{one} {two}", "", three, f"{four} {five} {six}", ""]
    assert len({one, two, three, four, five, six}) > 3, "all the same: the test shows nothing"
    assert translator(DOCUMENT).score == pytest.approx(sum(answer.score or 0 for answer in alone) / 6, abs=1e-5)
    chinese = Translator(Path("nowhere"), dataclasses.replace(translator.stored, target_language="zh-CN"), num_beams=3)
    assert chinese(DOCUMENT).text.split("\n")[0] == one + two
    assert [translator(text).text for text in ("", "\n \n")] == ["", "\n\n"]


WAYS: list[dict[str, Any]] = [
    {},
    {"num_beams": 1},
    {"prefix": "打开 a", "n_best": 2},
    {"coverage_penalty": 0.5},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "n_best": 3, "no_repeat_ngram_size": 2},
    {"temperature": 0.9, "top_p": 0.9, "seed": 4, "n_best": 2},
]


@pytest.mark.parametrize("how", WAYS)
def test_a_text_is_written_alone_as_in_company(
    translator: Translator, summarizer: Summarizer, how: dict[str, Any]
) -> None:
    texts = [DOCUMENT, SENTENCES[6], LONG]
    for run in (translator, summarizer):
        for alone, answer in zip([run(text, **how) for text in texts], run(texts, **how), strict=True):
            assert answer.text == alone.text
            assert answer.score == (None if alone.score is None else pytest.approx(alone.score, abs=1e-4))
            assert [text for text, _ in answer.alternatives] == [text for text, _ in alone.alternatives]


def test_the_parts_of_a_long_text_hold_all_of_it(tokenizer: Tokenizer) -> None:
    for text in (LONG, LONG.replace(" ", ""), "打开" * 60, "a" * 48, "a " * 30):
        ((*parts,),), longer = fit_sources(tokenizer, [text], ROOM + 1, "split")
        assert longer == 1 and len(parts) > 1
        assert "".join(parts).replace(" ", "") == text.replace(" ", "")
        assert all(0 < len(tokenizer.encode(part)) <= ROOM for part in parts)
        if " " in text:
            words = [part.split() for part in parts]
            assert list(itertools.chain.from_iterable(words)) == text.split(), (
                "words are not cut where there are blanks"
            )
        (cut,), _ = fit_sources(tokenizer, [text], ROOM + 1, "truncate")
        assert len(cut) == 1 and text.startswith(cut[0])
    assert fit_sources(tokenizer, ["a" * ROOM], ROOM + 1, "error") == ([["a" * ROOM]], 0)
    with pytest.raises(InputError, match="48 tokens, the model reads 47"):
        fit_sources(tokenizer, ["a", "a" * 48], ROOM + 1, "error")


def test_alternatives_are_sorted_and_distinct(translator: Translator, summarizer: Summarizer) -> None:
    ways = (
        {},
        {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 1.0},
        {"coverage_penalty": 0.3},
        {"temperature": 1.0},
    )
    for run, how in itertools.product((translator, summarizer), ways):
        for answer in run(SENTENCES[:4], n_best=6, **how):
            texts, scores = zip(*answer.alternatives, strict=True)
            assert 3 <= len(texts) == len(set(texts)) <= 6
            assert list(scores) == sorted(scores, reverse=True)
            assert (answer.text, answer.score) == (texts[0], scores[0])
    assert translator(DOCUMENT, n_best=3).alternatives == (), "of several sentences there are none"


def test_what_is_written_begins_with_the_prefix(translator: Translator, summarizer: Summarizer) -> None:
    for how in ({"num_beams": 1}, {"temperature": 0.8, "n_best": 3}, {"n_best": 3, "coverage_penalty": 0.2}):
        for run in (translator, summarizer):
            for answer in run([SENTENCES[0], LONG], prefix=" 保存 the ", **how):
                for text in (answer.text, *(text for text, _ in answer.alternatives)):
                    assert text.startswith("保存 the")
    begun = translator(DOCUMENT, prefix="保存").text
    assert begun.startswith(translator(SENTENCES[0], prefix="保存").text)
    assert begun.split("\n")[1:] == translator(DOCUMENT).text.split("\n")[1:], "other sentences are free"
    assert translator(SENTENCES[0], prefix=" ") == translator(SENTENCES[0])


def test_coverage_by_hand() -> None:
    weights = torch.tensor([[[1.0, 0.0, 9.0], [0.5, 0.5, 9.0], [9.0, 9.0, 9.0]]])
    found = coverage(weights, torch.tensor([2]), torch.tensor([2]))
    assert float(found) == pytest.approx(torch.tensor(0.5).log().item())
    unread = coverage(torch.tensor([[[1.0, 0.0]]]), torch.tensor([1]), torch.tensor([2]))
    assert -100 < float(unread) < -80


@pytest.mark.parametrize("penalty", [0.2, 5.0])
def test_coverage_chooses_among_what_the_search_found(
    stored: StoredSeq2Seq, translator: Translator, penalty: float
) -> None:
    model, tokenizer = stored.model, stored.tokenizer
    settings = translator.settings(num_beams=5, n_best=5)
    plain = write_each(model, tokenizer, SENTENCES, settings)
    assert write_each(model, tokenizer, SENTENCES, settings, coverage_penalty=0) == plain
    chosen = write_each(model, tokenizer, SENTENCES, dataclasses.replace(settings, n=1), coverage_penalty=penalty)
    changed = 0
    for source, hypotheses, (best,) in zip(source_ids(tokenizer, SENTENCES), plain, chosen, strict=True):
        scores = []
        for h in hypotheses:
            ids = [model.settings.start_id, *h.ids][: len(h.ids) + (h.finish_reason == "stop")]
            with torch.no_grad():
                (a,) = model.attention_weights(torch.tensor([ids]), torch.tensor([source]), torch.tensor([len(source)]))
            assert h.score is not None
            scores.append(h.score + penalty * float(a.sum(0).clamp(max=1).log().sum()))
        place = max(range(5), key=scores.__getitem__)
        assert best.ids == hypotheses[place].ids
        assert best.score == pytest.approx(scores[place], abs=1e-3)
        changed += place != 0
    assert changed > 0, "nothing was chosen otherwise: the test shows nothing"


def test_samples_follow_their_seed(translator: Translator) -> None:
    first = translator(SENTENCES[:4], temperature=1.0, seed=1)
    assert first == translator(SENTENCES[:4], temperature=1.0, seed=1)
    assert first != translator(SENTENCES[:4], temperature=1.0, seed=2)
    assert all(answer.score is None for answer in first)
    greedy = translator(SENTENCES[:4], num_beams=1)
    assert [a.text for a in translator(SENTENCES[:4], temperature=1.0, top_k=1)] == [a.text for a in greedy]


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"temperature": 0.8, "num_beams": 4}, "temperature = 0.8"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_p": 0.5}, "top_p = 0.5"),
        ({"top_k": 3}, "top_k = 3"),
        ({"temperature": 0.8, "top_p": 2.0}, "top_p = 2.0"),
        ({"prefix": "é"}, "prefix = 'é'"),
        ({"prefix": "a" * 48}, "prefix = 'aaa"),
        ({"coverage_penalty": -1.0}, "coverage_penalty = -1.0"),
        ({"coverage_penalty": float("inf")}, "coverage_penalty = inf"),
        ({"coverage_penalty": 0.2, "num_beams": 1}, "coverage_penalty = 0.2"),
        ({"coverage_penalty": 0.2, "temperature": 0.5}, "coverage_penalty = 0.2"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size = -1"),
        ({"num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beam_groups = 2"),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups = 2"),
    ],
)
def test_what_cannot_be_used_is_said(translator: Translator, how: dict[str, Any], named: str) -> None:
    for text in (SENTENCES[0], ""):
        with pytest.raises(InputError) as caught:
            translator(text, **how)
        assert caught.value.what.startswith(named) and caught.value.what.endswith("cannot be used")
        assert caught.value.why


def test_the_command_line_asks_for_the_same(stored: StoredSeq2Seq, translator: Translator, tmp_path: Path) -> None:
    write_seq2seq(tmp_path / "run", stored, num_beams=3, length_penalty=1.0)

    def answer(*options: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, ["translate", str(tmp_path / "run"), SENTENCES[0], "--json", *options])
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    for options, how in (
        (("--prefix", "打开", "--coverage-penalty", "0.5", "--num-beams", "3"), {"prefix": "打开", "coverage_penalty": 0.5, "num_beams": 3}),
        (("--temperature", "1", "--top-p", "0.8", "--seed", "5"), {"temperature": 1.0, "top_p": 0.8, "seed": 5}),
    ):  # fmt: skip
        assert answer(*options)["text"] == translator(SENTENCES[0], **how).text
