"""A text from another, from end to end: `zhixing.train` and `zhixing.load` on phrases whose words are translated.

What is trained translates phrases it has not seen, transformers loads the folder as it is and writes the same, and the
command line answers a line by a line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch

import zhixing
from phrases import lay, phrases
from zhixing.cli import main
from zhixing.errors import InputError
from zhixing.files import sha256_file, verify_manifest
from zhixing.run import load as load_language_model
from zhixing.seq2seq import Summarizer, Translator

COMMON = (
    "task.kind=translation", "task.on_too_long=split", "data.source_language=en", "data.target_language=zh", "data.heldout_fraction=0.15",
    "task.validation_fraction=0.1", "data.max_ratio=0", "tokenizer.vocab_size=400", "model.family=marian", "model.d_model=32",
    "model.n_layers=1", "model.n_heads=2", "model.max_len=48", "train.max_tokens_per_batch=600", "train.max_steps=160",
    "train.eval_steps=80", "train.optim=adamw", "train.learning_rate=0.01", "train.warmup_steps=10", "train.bf16=false",
    "train.threads=2", "eval.num_beams=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay(tmp_path_factory.mktemp("data") / "phrases.jsonl", phrases(500))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Translator:
    out = tmp_path_factory.mktemp("runs") / "phrases"
    return cast(Translator, zhixing.train(str(data), *COMMON, out=str(out)))


def test_it_translates_phrases_that_it_has_not_seen(run: Translator) -> None:
    scores = json.loads((run.path / "scores.json").read_text(encoding="utf-8"))
    assert scores["model"]["bleu"]["value"] > 90
    assert scores["baselines"]["copy"]["bleu"]["value"] < 10
    assert scores["model"]["bleu"]["value"] > scores["baselines"]["translation memory"]["bleu"]["value"]
    assert "tok:zh" in scores["model"]["signatures"]["bleu"]


def test_the_run_is_whole_and_answers_again_as_it_did(run: Translator) -> None:
    verify_manifest(run.path)
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md", "report.html",
                 "recipe.toml", "facts.json", "scores.json", "metrics.jsonl", "examples.jsonl"):  # fmt: skip
        assert (run.path / name).stat().st_size > 0, name
    again = cast(Translator, zhixing.load(run.path))
    assert isinstance(again, Translator)
    examples = [json.loads(line) for line in (run.path / "examples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert again.write([e["source"] for e in examples]) == [e["output"] for e in examples]
    assert again.evaluate()["model"]["bleu"]["value"] == pytest.approx(
        json.loads((run.path / "scores.json").read_text(encoding="utf-8"))["model"]["bleu"]["value"]
    )


def test_pairs_to_test_are_none_to_learn_from(run: Translator, data: Path) -> None:
    facts = json.loads((run.path / "facts.json").read_text(encoding="utf-8"))["data"]
    assert 400 < facts["train"]["pairs"] + facts["validation"]["pairs"] + facts["test"]["pairs"] <= 500
    assert facts["test"]["pairs"] >= 20
    learnt = {row["source"] for row in phrases(500)} - {
        json.loads(line)["source"]
        for line in (run.path / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    }
    assert len(learnt) == 500 - facts["test"]["pairs"]


def test_transformers_loads_the_folder_and_writes_the_same(run: Translator) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(run.path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.path)
    assert type(model).__name__ == "MarianMTModel"
    examples = [json.loads(line) for line in (run.path / "examples.jsonl").read_text(encoding="utf-8").splitlines()][
        :20
    ]
    for example in examples:
        ids = tokenizer(example["source"])["input_ids"]
        assert ids == run.tokenizer.with_ends(run.tokenizer.encode(example["source"]))
        with torch.no_grad():
            written = model.generate(
                torch.tensor([ids]), num_beams=3, max_new_tokens=40, early_stopping=True, length_penalty=1.0
            )
        assert tokenizer.decode(written[0], skip_special_tokens=True) == example["output"]


def test_one_alone_is_one_among_many(run: Translator) -> None:
    texts = [row["source"] for row in phrases(40, seed=7)]
    together = run(texts)
    assert [answer.text for answer in together] == [run(text).text for text in texts]


def test_lines_and_paragraphs_are_kept(run: Translator) -> None:
    text = "open the red file\n\nclose a small table"
    parts = [run("open the red file").text, "", run("close a small table").text]
    assert run(text).text == "\n".join(parts)
    assert run("").text == "" and run("  \n ").text.strip() == ""


def test_the_n_best_are_different_and_in_order(run: Translator) -> None:
    answer = run("save the large blue cell", n_best=3)
    texts, scores = zip(*answer.alternatives, strict=True)
    assert answer.text == texts[0] and len(set(texts)) == 3
    assert list(scores) == sorted(scores, reverse=True) and scores[0] == pytest.approx(answer.score)


def test_a_text_longer_than_the_model_reads(run: Translator) -> None:
    long = "open the red file " * 60
    before = run.too_long
    answer = run(long)
    assert run.too_long == before + 1 and len(answer.text) > 40  # cut into parts, all of them translated
    run.on_too_long = "error"
    with pytest.raises(InputError, match="tokens, the model reads"):
        run(long)
    run.on_too_long = "split"
    words = "open " * 50_000
    assert run.num_beams == 3 and run(words, num_beams=1).text


def test_what_is_measured_is_cut_wherever_it_is_too_long(run: Translator) -> None:
    """A cut within a character's bytes: what is left of it has more tokens than what was there."""
    assert len(run.write(["x" * number + "中é" * 60 for number in range(12)])) == 12


def test_a_pipe_is_answered_line_by_line(run: Translator) -> None:
    lines = ["open the red file", "", "close a small table"]
    process = subprocess.Popen(
        [sys.executable, "-m", "zhixing", "translate", str(run.path), "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        for line in lines:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == (run(line).text if line else "") + "\n"
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line in this process; a new one would take seconds to import torch."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        code = main(arguments)
        return Done(code, *capsys.readouterr())

    return run


def test_the_command_line(run: Translator, tmp_path: Path, command: Callable[..., Done]) -> None:
    file = tmp_path / "text.txt"
    file.write_text("open the red file\nclose a small table\n", encoding="utf-8")
    done = command("translate", str(run.path), str(file))
    assert done.returncode == 0 and done.stdout == run("open the red file\nclose a small table").text + "\n"
    best = json.loads(command("translate", str(run.path), "print a blue page", "--n-best", "4").stdout)
    assert len(best["alternatives"]) > 1 and best["text"] == run("print a blue page").text
    assert "bleu" in command("evaluate", str(run.path)).stdout
    wrong = command("summarize", str(run.path), "open the red file")
    assert wrong.returncode == 2 and "zhixing translate" in wrong.stderr
    with pytest.raises(InputError, match="does not go on with one"):
        load_language_model(run.path)


@pytest.mark.slow  # test_kill_resume.py has the loop's
def test_a_run_that_is_killed_goes_on_to_the_same_weights(data: Path, run: Translator, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    arguments = [sys.executable, "-m", "zhixing", "train", str(data), *COMMON, "--out", str(out)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/step-*/MANIFEST.json")) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run([*arguments, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resuming at step" in done.stderr
    assert sha256_file(out / "model.safetensors") == sha256_file(run.path / "model.safetensors")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("model.family=gpt",), "does not read one text and write another"),
        (("model.pointer=true",), "can copy"),
        (("train.per_device_train_batch_size=4",), "max_tokens_per_batch"),
        (("data.max_ratio=0.5",), "never shorter"),
        (("model.max_len=4",), "short enough"),
        (("data.source_language=zh", "data.target_language=en"), "wrong way round"),
        (("data.target_column=chinese",), "chinese"),
        (("model.d_model=33", "model.n_heads=3"), "even number"),
    ],
)
def test_what_cannot_be_is_said(data: Path, tmp_path: Path, settings: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError) as caught:
        zhixing.train(str(data), *COMMON, *settings, out=str(tmp_path / "out"))
    assert says in caught.value.message()


def test_a_family_that_reads_pairs_is_no_language_model(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task\.kind"):
        zhixing.train(str(data), "model.family=marian", out=str(tmp_path / "out"))


def test_a_summarizer(tmp_path: Path, command: Callable[..., Done]) -> None:
    """The last word of a phrase is its summary; a text beyond the model's reach is summarised by parts."""
    rows = [
        {"document": row["source"], "summary": row["source"].split()[-1], "group": row["group"]} for row in phrases(300)
    ]
    source = lay(tmp_path / "texts.jsonl", cast(Any, rows))
    settings = (
        "task.kind=summarization", "data.source_column=document", "data.target_column=summary", "data.source_language=''",
        "data.target_language=''",
    )  # fmt: skip
    run = cast(
        Summarizer, zhixing.train(str(source), *COMMON, *settings, "train.max_steps=120", out=str(tmp_path / "run"))
    )
    scores = json.loads((run.path / "scores.json").read_text(encoding="utf-8"))
    assert scores["model"]["rougeL"]["value"] > 0.95
    assert scores["model"]["rougeL"]["value"] > scores["baselines"]["lead sentence"]["rougeL"]["value"]
    again = cast(Summarizer, zhixing.load(run.path))
    assert again("open the red file").text == "file"
    assert again("close the blue page " * 40).text == "page" and again.too_long == 1
    page, lines = tmp_path / "a.html", "open the red file\nsave a small table"
    assert command("summarize", str(run.path), "save a small table").stdout == "table\n"
    assert command("summarize", str(run.path), lines, "close the page " * 40, "--alignment", str(page)).returncode == 0
    assert page.read_text(encoding="utf-8").count("<svg") == 1, "of both lines at once; none of what is too long"


@pytest.mark.parametrize("family", ["t5", "lstm"])
def test_the_other_families_are_written_and_read(data: Path, tmp_path: Path, family: str) -> None:
    few = ("train.max_steps=30", "train.eval_steps=30", f"model.family={family}")
    run = cast(Translator, zhixing.train(str(data), *COMMON, *few, out=str(tmp_path / family)))
    again = cast(Translator, zhixing.load(run.path))
    texts = [row["source"] for row in phrases(12, seed=3)]
    written = again.write(texts)
    assert written == run.write(texts)
    own, read = run.model.state_dict(), again.model.state_dict()
    assert own.keys() == read.keys() and all(torch.equal(own[name], read[name]) for name in own)
    if family == "t5":
        transformers = pytest.importorskip("transformers")
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(run.path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(run.path)
        assert type(model).__name__ == "T5ForConditionalGeneration"
        for text, own in zip(texts, written, strict=True):
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad():
                found = model.generate(ids, num_beams=3, max_new_tokens=47, early_stopping=True, length_penalty=1.0)
            assert tokenizer.decode(found[0], skip_special_tokens=True).strip() == own


def test_what_was_read_for_what_was_written(run: Translator, tmp_path: Path, command: Callable[..., Done]) -> None:
    source = "open the red file"
    read, written, weights = run.alignment(source, run(source).text)
    assert "".join(read) == source and "".join(written) == run(source).text
    assert weights.shape == (len(written), len(read)) and weights.min() >= 0
    assert (weights.sum(axis=1) <= 1 + 1e-5).all()  # the rest is of the end of the text
    page = tmp_path / "alignment.html"
    done = command("translate", str(run.path), source, "--alignment", str(page))
    assert done.returncode == 0 and page.read_text(encoding="utf-8").count("<svg") == 1
    with pytest.raises(InputError, match="tokens"):
        run.alignment("", "打开")


def test_a_t5_that_fills_in_spans_first(data: Path, tmp_path: Path) -> None:
    few = ("train.max_steps=8", "train.eval_steps=8", "model.family=t5", "task.pretrain_steps=12")
    run = cast(Translator, zhixing.train(str(data), *COMMON, *few, out=str(tmp_path / "t5")))
    lines = (run.path / "pretraining" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [entry["eval_loss"] for line in lines if "eval_loss" in (entry := json.loads(line))]
    assert losses[-1] < losses[0]
    assert run.model.settings.vocab_size == run.tokenizer.vocab_size + 100
    assert cast(Translator, zhixing.load(run.path)).write(["open the red file"]) == run.write(["open the red file"])
