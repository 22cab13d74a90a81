"""`zhixing translate` and `zhixing summarize`: texts from the command line, files, or a pipe."""

from __future__ import annotations

import codecs
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from zhixing.errors import InputError
from zhixing.progress import say

Run = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run.")]
Texts = Annotated[
    list[str], typer.Argument(metavar="TEXT|FILE", help="Texts, or text files, each taken whole; - reads stdin.")
]
Beams = Annotated[int | None, typer.Option(help="Hypotheses followed at once; 1: greedy; else as the run says.")]
NBest = Annotated[int, typer.Option(help="So many texts for each, best first, with their scores (as JSON).")]
Alignment = Annotated[
    str | None, typer.Option(metavar="FILE.html", help="Write a page of what was read for what was written.")
]
Prefix = Annotated[str, typer.Option(help="What is written for each text begins with this.")]
To = Annotated[str, typer.Option(metavar="LANGUAGE", help="The language to write, of a model that has several: de.")]
Coverage = Annotated[
    float, typer.Option(metavar="BETA", help="Above 0, 0.2 for example: of the beams, one that leaves no part unread.")
]
Temperature = Annotated[float, typer.Option(help="Above 0: sample instead of searching; 1: as the model says.")]
TopP = Annotated[float, typer.Option(help="Sample only the likeliest tokens that make up this share.")]
Seed = Annotated[int, typer.Option(help="Of samples: the same seed gives the same text.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a text.")]
BLOCK = 1 << 16  # bytes read from a pipe at once


def translate_command(
    run: Run,
    texts: Texts,
    to: To = "",
    num_beams: Beams = None,
    n_best: NBest = 1,
    prefix: Prefix = "",
    coverage_penalty: Coverage = 0.0,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    as_json: AsJson = False,
    alignment: Alignment = None,
) -> None:
    """Translate texts. Lines and paragraphs are kept; from a pipe each line is answered by a line as it comes."""
    how = _How(num_beams, n_best, prefix, coverage_penalty, temperature, top_p, seed, to)
    _write(run, texts, how, as_json, alignment, task="translation")


def summarize_command(
    run: Run,
    texts: Texts,
    num_beams: Beams = None,
    n_best: NBest = 1,
    prefix: Prefix = "",
    coverage_penalty: Coverage = 0.0,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    as_json: AsJson = False,
    alignment: Alignment = None,
) -> None:
    """Say texts in fewer words. A file is one text, stdin too."""
    how = _How(num_beams, n_best, prefix, coverage_penalty, temperature, top_p, seed)
    _write(run, texts, how, as_json, alignment, task="summarization")


@dataclass(frozen=True)
class _How:
    """How texts are written: what both commands take."""

    num_beams: int | None
    n_best: int
    prefix: str
    coverage_penalty: float
    temperature: float
    top_p: float
    seed: int
    target_language: str = ""


def _write(run: str, texts: list[str], how: _How, as_json: bool, alignment: str | None, *, task: str) -> None:
    from zhixing.seq2seq import load_seq2seq

    if how.num_beams is not None and how.num_beams < 1:
        raise InputError(f"num_beams = {how.num_beams} cannot be used", mend="the least is 1")
    if how.n_best < 1:
        raise InputError(f"n_best = {how.n_best} cannot be used", mend="the least is 1")
    model = load_seq2seq(run)
    if model.stored.task != task:
        other = "summarize" if model.stored.task == "summarization" else "translate"
        raise InputError(f"this run is for {model.stored.task}", where=run, mend=f"zhixing {other} {run} ...")
    looked: list[tuple[str, str]] = []
    for number, argument in enumerate(texts, 1):
        parts = _lines(sys.stdin.fileno()) if argument == "-" and task == "translation" else [[_text(argument, number)]]
        for part in parts:
            for answer in model(part, **dataclasses.asdict(how)):
                if as_json or how.n_best > 1:
                    typer.echo(json.dumps(dataclasses.asdict(answer), ensure_ascii=False))
                else:
                    typer.echo(answer.text)
                looked.append((answer.source, answer.text))
            sys.stdout.flush()
    if alignment:
        _draw(model, looked, alignment, how.target_language)
    if model.too_long:
        what = {"split": "cut into parts", "truncate": "cut off"}.get(model.on_too_long, "refused")
        say(f"{model.too_long} texts were longer than the model reads and were {what}")


def _draw(model: Any, looked: list[tuple[str, str]], page: str, target_language: str) -> None:
    """A picture for each text, those of several lines line by line."""
    from zhixing.explain.alignment import alignment_page, alignment_picture
    from zhixing.files import atomic_write

    pictures, too_long = [], 0
    whole_texts = model.stored.task == "summarization"
    for whole, written in looked:
        language, read = model.told(whole, target_language)
        lines = (
            [(" ".join(read.split()), written)]
            if whole_texts
            else zip(read.split("\n"), written.split("\n"), strict=False)
        )
        for source, text in lines:
            if (source := source.strip()) and (text := text.strip()):
                try:
                    picture = alignment_picture(*model.alignment(source, text, language))
                except InputError:
                    too_long += 1
                    continue
                pictures.append((source, text, picture))
    if too_long:
        say(f"{too_long} texts are longer than the model reads at once; there is no picture of them")
    atomic_write(Path(page), alignment_page(pictures))
    say(f"look at {page}")


def _text(argument: str, number: int) -> str:
    """The text of an argument: a file's, stdin's, or its own."""
    where = f"text {number}"
    if argument == "-":
        raw, where = sys.stdin.buffer.read(), "stdin"
    elif os.path.isfile(argument):  # noqa: PTH113  # a long text is no file; Path would raise for it
        raw, where = Path(argument).read_bytes(), argument
    else:
        raw = os.fsencode(argument)
    return _decoded(raw, where).removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError("the text is not UTF-8", where=f"{where}, byte {error.start}", mend="convert it") from None


def _lines(descriptor: int) -> Iterator[list[str]]:
    """Lines as they come: those that are there at once are written together."""
    rest: Any = b""
    seen = 0
    while block := os.read(descriptor, BLOCK):
        if not seen:
            rest, block = b"", (rest + block).removeprefix(codecs.BOM_UTF8)
        *whole, rest = (rest + block).split(b"\n")
        if whole:
            yield [_decoded(line.removesuffix(b"\r"), f"stdin, line {seen + n}") for n, line in enumerate(whole, 1)]
            seen += len(whole)
    if rest:
        yield [_decoded(rest, f"stdin, line {seen + 1}")]
