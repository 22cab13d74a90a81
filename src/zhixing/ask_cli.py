"""`zhixing ask`: a question to a folder of documents, answered by what stands there, with its place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from zhixing.asking import Answer


def ask_command(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder with .txt and .md files.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What is asked, in the documents' language.")],
    n: Annotated[int, typer.Option("--n", "-n", help="So many passages at most, the best first.")] = 3,
    embedder: Annotated[
        str | None, typer.Option(metavar="RUN", help="Rank by the vectors of a bert too, or of minilm (English).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Find what documents say to a question, quoted word for word with file and line; or say that they do not."""
    from zhixing.asking import ask_docs

    answer = ask_docs(folder, embedder=embedder)(question, n=n)
    typer.echo(json.dumps(_as_dict(answer), ensure_ascii=False) if as_json else _as_text(answer))


def _as_dict(answer: Answer) -> dict[str, object]:
    return {
        "question": answer.question,
        "answered": bool(answer.found),
        "nearest_share": answer.nearest_share,
        "found": [
            {
                "file": found.file,
                "headings": found.headings,
                "share": found.share,
                "quotes": [vars(quote) for quote in found.quotes],
            }
            for found in answer.found
        ],
    }


def _as_text(answer: Answer) -> str:
    """The quotations, each behind its file and line; or how much of the question was found at best."""
    from zhixing.asking import ENOUGH

    if not answer.found:
        return (
            f"The documents do not say. The nearest passage holds {answer.nearest_share:.0%} of the question's words "
            f"by weight; below {ENOUGH:.0%} nothing is quoted. Ask in the documents' own words?"
        )
    parts = []
    for found in answer.found:
        for quote in found.quotes:
            parts.append(" · ".join([f"{found.file}:{quote.first_line}", *found.headings]))
            parts += [f"  {line}" for line in quote.text.split("\n")]
        parts.append("")
    return "\n".join(parts[:-1])
