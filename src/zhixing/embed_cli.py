"""`zhixing embed`: sentence embeddings from the command line."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from zhixing.errors import InputError
from zhixing.progress import say


def embed_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a bert or distilbert; or minilm.")],
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="Texts; or files, a text a line or row; - reads stdin.")
    ],
    too_long: Annotated[str, typer.Option(help="Texts longer than the model: truncate, split or error.")] = "truncate",
    text_column: Annotated[str, typer.Option(help="The column of tables.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Objects with the text too, one a line.")] = False,
) -> None:
    """Turn texts into vectors, near ones for texts that mean alike. Prints a JSON list a line."""
    from zhixing.embeddings import embed_texts, lines_of, texts_of

    found: list[str] = []
    for argument in texts:
        if argument == "-":
            try:
                found += lines_of(sys.stdin.buffer.read())
            except UnicodeDecodeError as error:
                raise InputError(
                    "the texts are not UTF-8", where=f"stdin, byte {error.start}", mend="convert them"
                ) from None
        elif os.path.isfile(argument):  # noqa: PTH113  # a long text is no file; Path would raise for it
            found += texts_of(argument, text_column)
        else:
            found.append(argument)
    if not found:
        raise InputError("there is no text", mend="give one, or a file with one a line")
    embedded = embed_texts(run, found, too_long=too_long)  # type: ignore[arg-type]  # refused there
    for text, vector in zip(found, embedded.vectors.tolist(), strict=True):
        rounded = [float(f"{number:.8g}") for number in vector]  # as fp32 has it, without the noise behind
        typer.echo(json.dumps({"text": text, "embedding": rounded} if as_json else rounded, ensure_ascii=False))
    if embedded.n_long:
        what = "cut off" if too_long == "truncate" else "split, and their parts averaged"
        say(f"{embedded.n_long} of {len(found)} texts were longer than the model: {what}")
