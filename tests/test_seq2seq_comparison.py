"""Two translators or summarizers side by side: the scores are those of each alone, the draws are the same for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phrases import lay, phrases
from zhixing import cli
from zhixing.errors import InputError
from zhixing.evaluation.intervals import draw_counts
from zhixing.evaluation.rouge import rouge_l, score_summaries
from zhixing.evaluation.seq2seq_comparison import (
    compare_summarizers,
    compare_translators,
    seq2seq_comparison_text,
    seq2seq_verdict,
)
from zhixing.evaluation.translation import score_translations
from zhixing.interchange.seq2seq_directory import StoredSeq2Seq, Task, write_seq2seq
from zhixing.models.marian import Marian, MarianSettings
from zhixing.seq2seq import load_seq2seq
from zhixing.seq2seq_beside import compare_seq2seq
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer

ROWS = phrases(60)
SOURCES, REFERENCES = [row["source"] for row in ROWS], [row["target"] for row in ROWS]
GOOD = [text if n % 6 else text[:2] for n, text in enumerate(REFERENCES)]  # right but for every sixth
BAD = [text if n % 3 == 0 else text[: len(text) // 2] for n, text in enumerate(REFERENCES)]


def test_the_scores_are_those_of_each_alone() -> None:
    found = compare_translators(GOOD, BAD, REFERENCES, language="zh", sources=SOURCES, seed=3)
    for said, scores in ((GOOD, found.first), (BAD, found.second)):
        alone = score_translations(said, REFERENCES, language="zh", sources=SOURCES, with_ter=False, seed=3)
        assert (scores["bleu"], scores["chrf"], scores["length_ratio"]) == (alone.bleu, alone.chrf, alone.length_ratio)
    for name, difference in found.difference.items():
        assert difference.value == pytest.approx(found.second[name].value - found.first[name].value)
    assert set(found.p) == {"bleu", "chrf"}
    assert "tok:zh" in found.signatures["bleu"] and found.n == 60


def test_summaries_by_rouge_with_the_same_draws() -> None:
    found = compare_summarizers(GOOD, BAD, REFERENCES, sources=SOURCES, seed=3, resamples=200)
    for said, scores in ((GOOD, found.first), (BAD, found.second)):
        alone = score_summaries(said, REFERENCES, seed=3, resamples=200)
        for name, score in (("rougeL", alone.rougeL), ("rouge1", alone.rouge1), ("rouge2", alone.rouge2)):
            assert scores[name].value == pytest.approx(score.value)
            assert (scores[name].low, scores[name].high) == pytest.approx((score.low, score.high))
    a, b = (np.array([rouge_l(t, r).f1 for t, r in zip(said, REFERENCES, strict=True)]) for said in (GOOD, BAD))
    draws = np.concatenate(list(draw_counts(np.ones(60, int), 3, 200))) @ (b - a) / 60
    assert found.p["rougeL"] == (draws >= 0).mean()
    low, high = np.quantile(draws, [0.025, 0.975])
    assert (found.difference["rougeL"].low, found.difference["rougeL"].high) == pytest.approx((low, high))


@pytest.mark.parametrize("compare", ["translations", "summaries"])
def test_the_texts_that_differ_most_come_first(compare: str) -> None:
    if compare == "translations":
        found = compare_translators(GOOD, BAD, REFERENCES, language="zh", sources=SOURCES)
    else:
        found = compare_summarizers(GOOD, BAD, REFERENCES, sources=SOURCES)
    apart = [abs(d.first_score - d.second_score) for d in found.differing]
    assert apart == sorted(apart, reverse=True) and apart[0] > 0
    assert {d.row for d in found.differing} == {n for n in range(60) if GOOD[n] != BAD[n]}
    for d in found.differing:
        assert (d.source, d.reference) == (SOURCES[d.row], REFERENCES[d.row])
        assert (d.first, d.second) == (GOOD[d.row], BAD[d.row])
        assert (d.first_score > d.second_score) == (d.row % 6 != 0)
    assert [d["row"] for d in found.to_dict(2)["differing"]] == [d.row for d in found.differing[:2]]


def test_a_verdict_in_words() -> None:
    better = compare_translators(GOOD, BAD, REFERENCES, language="zh", sources=SOURCES, names=("good", "bad"))
    assert seq2seq_verdict(better).startswith("good is better, and chance is an unlikely reason (BLEU -")
    turned = compare_translators(BAD, GOOD, REFERENCES, language="zh", sources=SOURCES, names=("bad", "good"))
    assert seq2seq_verdict(turned).startswith("good is better, and chance is an unlikely reason (BLEU +")
    assert turned.p == better.p
    near = [text[:2] if n in (6, 12) else text for n, text in enumerate(GOOD)]
    moved = [near[n] if n % 2 else text for n, text in enumerate(GOOD)]
    chance = compare_summarizers([*GOOD[:-1], "打开"], ["打开", *GOOD[1:]], REFERENCES, sources=SOURCES)
    assert seq2seq_verdict(chance).startswith("The difference may well be chance (ROUGE-L ")
    same = compare_translators(GOOD, moved, REFERENCES, language="zh", sources=SOURCES)
    assert seq2seq_verdict(same) == "Both write the same for every text."
    assert same.differing == () and same.p == {"bleu": 1.0, "chrf": 1.0}
    one = compare_translators(GOOD[:1], BAD[:1], REFERENCES[:1], language="zh", sources=SOURCES[:1])
    assert seq2seq_verdict(one).startswith("The difference may well be chance")  # one text says nothing of another
    json.dumps(one.to_dict(), allow_nan=False)


def test_a_terminal_shows_it_and_obeys_no_text() -> None:
    bad = [*BAD[:-1], "\x1b[31m红\n色"]
    found = compare_translators(GOOD, bad, REFERENCES, language="zh", sources=SOURCES, names=("one", "other"))
    text = seq2seq_comparison_text(found, colour=False, most=60)
    assert "\x1b" not in text and "␛[31m红 色" in text
    assert text.startswith("one and other on the same 60 texts")
    assert "second - first, 95 % interval" in text and "bleu: nrefs:1" in text
    lines = text.splitlines()
    at = lines.index("where they differ most, by chrF of the text alone")
    assert [line.split()[0] for line in lines[at + 2 : at + 6]] == ["source", "reference", "one", "other"]
    assert "more that they write differently" not in text
    few = seq2seq_comparison_text(found, colour=False, most=3)
    assert f"and {len(found.differing) - 3} more that they write differently" in few
    assert "\033[1m" in seq2seq_comparison_text(found, colour=True)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = train_tokenizer([*SOURCES, *REFERENCES], "bpe", 300)
    made.end_texts()
    return made


@pytest.fixture(scope="module")
def lay_run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Any:
    """Makes a folder as a training leaves it, of a model with random weights."""

    def make(
        name: str, seed: int, task: Task = "translation", languages: tuple[str, str] = ("en", "zh"), test: Any = None
    ) -> str:
        sizes = {"d_model": 16, "n_encoder_layers": 1, "n_layers": 1, "n_heads": 2, "d_ff": 16, "max_len": 40}
        model = Marian(MarianSettings(tokenizer.vocab_size, start_id=tokenizer.pad_id, **sizes))  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3, generator=generator)
            model.logits_bias[tokenizer.eos_id] = 2.0
        folder = tmp_path_factory.mktemp("runs") / name
        write_seq2seq(folder, StoredSeq2Seq(model.eval(), tokenizer, task, *languages), num_beams=2)
        (folder / "data").mkdir()
        lay(folder / "data" / "test.jsonl", test or ROWS[:12])
        return str(folder)

    return make


def test_two_runs_from_the_command_line(
    lay_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    first, second = lay_run("one", 0), lay_run("other", 1)
    assert cli.main(["compare", first, second]) == 0
    said = capsys.readouterr().out
    assert said.startswith("one and other on the same 12 texts")
    assert "tok:zh" in said
    assert cli.main(["compare", first, second, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 12 and found["method"] == "paired bootstrap (Koehn 2004)"
    pairs = {row["source"]: row["target"] for row in ROWS[:12]}
    outputs = [load_seq2seq(run).write(list(pairs)) for run in (first, second)]
    alone = score_translations(outputs[1], list(pairs.values()), language="zh", sources=list(pairs), with_ter=False)
    assert found["scores"]["chrf"]["second"] == alone.chrf.to_dict()
    assert {d["first"] for d in found["differing"]} <= set(outputs[0])
    data = lay(tmp_path / "new.jsonl", ROWS[30:])
    assert cli.main(["compare", first, second, str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 30


def test_the_same_run_twice(lay_run: Any) -> None:
    run = lay_run("one", 0)
    found = compare_seq2seq(load_seq2seq(run), load_seq2seq(run))
    assert list(found) == [""]
    assert found[""].differing == () and found[""].difference["bleu"].value == 0
    assert found[""].first_name == run  # the folders' names are the same: the paths tell them apart


def test_summarizers(lay_run: Any) -> None:
    runs = [load_seq2seq(lay_run(name, seed, "summarization", ("", "zh"))) for name, seed in (("a", 0), ("b", 1))]
    found = compare_seq2seq(runs[0], runs[1])[""]
    assert list(found.difference) == list(found.p) == ["rougeL", "rouge1", "rouge2"]
    assert found.signatures == {} and (found.first_name, found.second_name) == ("a", "b")


def test_several_directions_each_by_itself(lay_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    there = [{**row, "source_language": "en", "target_language": "zh"} for row in ROWS[:6]]
    back = [{"source": row["target"], "target": row["source"], "source_language": "zh", "target_language": "en"}
            for row in ROWS[6:14]]  # fmt: skip
    runs = []
    for name, seed in (("one", 0), ("other", 1)):
        folder = Path(lay_run(name, seed, languages=("", ""), test=[*there, *back]))
        speaks = train_tokenizer([*SOURCES, *REFERENCES], "bpe", 300)
        speaks.end_texts()
        speaks.add_languages(["en", "zh"])
        stored = load_seq2seq(folder).stored
        old = stored.model.settings
        model = Marian(MarianSettings(speaks.vocab_size, start_id=speaks.pad_id, d_model=16, n_encoder_layers=1, n_layers=1,
                                      n_heads=2, d_ff=16, max_len=old.max_len), torch.Generator().manual_seed(seed))  # fmt: skip
        write_seq2seq(folder, StoredSeq2Seq(model.eval(), speaks), num_beams=2)
        runs.append(str(folder))
    assert cli.main(["compare", *runs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["directions"]
    assert {name: (one["n"], "tok:zh" in one["signatures"]["bleu"]) for name, one in found.items()} == {
        "en>zh": (6, True), "zh>en": (8, False),
    }  # fmt: skip
    assert cli.main(["compare", *runs]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if ">" in line[:4]] == ["en>zh", "zh>en"]


def test_what_cannot_be_compared(lay_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = lay_run("one", 0)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    for second, what in (
        (lay_run("sums", 1, "summarization"), "one is for translation, the other for summarization"),
        (lay_run("german", 1, languages=("en", "de")), "different languages"),
        (lay_run("others", 1, test=ROWS[6:20]), "12 and 14 pairs, 6 in both"),
        (str(tmp_path), "does not read one text and write another"),
    ):
        assert cli.main(["compare", first, second]) == cli.USER_ERROR
        said = capsys.readouterr()
        assert what in said.err and not said.out, said.err
    others = lay_run("others", 1, test=ROWS[6:20])
    with pytest.raises(InputError, match="different test parts") as refused:
        compare_seq2seq(load_seq2seq(first), load_seq2seq(others))
    assert refused.value.mend.endswith(f"zhixing compare {first} {others} DATA")
    bare = Path(lay_run("bare", 1))
    (bare / "data" / "test.jsonl").unlink()
    with pytest.raises(InputError, match="no test pairs"):
        compare_seq2seq(load_seq2seq(first), load_seq2seq(bare))
