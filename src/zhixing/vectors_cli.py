"""`zhixing vectors`: word vectors from the command line; each command calls one function of word_vectors.py."""

from __future__ import annotations

import json
import math
import shlex
from typing import Annotated, Any

import typer

from zhixing.errors import InputError
from zhixing.progress import say

vectors_app = typer.Typer(
    help="Word vectors: train them, look for similar words, measure them, take them elsewhere.", no_args_is_help=True
)

Vectors = Annotated[
    str, typer.Argument(metavar="DIR", help="A folder of vectors, a file of word2vec, GloVe or fastText, glove-6b-50d.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, one object a line.")]
Count = Annotated[int, typer.Option("--n", "-n", help="So many words.")]


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(_finite(value), ensure_ascii=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@vectors_app.command("train")
def vectors_train(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file, a folder, or the name of a data set.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="The folder to make.")],
    algorithm: Annotated[str, typer.Option(help="skipgram, cbow, glove or fasttext.")] = "skipgram",
    units: Annotated[str, typer.Option(help="words, or for Chinese: characters or rjieba.")] = "words",
    dimension: Annotated[int, typer.Option(help="Numbers of a vector.")] = 100,
    window: Annotated[int | None, typer.Option(help="Words to each side; else 5, of glove 10.")] = None,
    negative: Annotated[int | None, typer.Option(help="Words of noise; else 5.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Times through the text; else 5, of glove 15.")] = None,
    min_count: Annotated[int, typer.Option(help="A word seen less often has no vector.")] = 5,
    subsample: Annotated[float | None, typer.Option(help="Leave frequent words out; 0: none; else 0.001.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At the start; else the algorithm's own.")] = None,
    min_n: Annotated[int | None, typer.Option(help="fasttext: characters of an n-gram, at least; else 3.")] = None,
    max_n: Annotated[int | None, typer.Option(help="fasttext: at most; 0: no n-grams; else 6.")] = None,
    buckets: Annotated[int | None, typer.Option(help="fasttext: rows for n-grams; else 2000000.")] = None,
    threads: Annotated[int | None, typer.Option(help="Else one for each core.")] = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="The same vectors each time.")] = False,
    seed: Annotated[int, typer.Option(help="Where the random numbers begin.")] = 0,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Words are what stands between blanks; a line is a sentence.")
    ] = False,
    text_column: Annotated[str, typer.Option(help="The column of tables.")] = "text",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
) -> None:
    """Learn word vectors from text. Prints the folder."""
    from zhixing.word_vectors import train_vectors

    train_vectors(
        source, out=out, resume=resume, as_is=as_is, text_column=text_column,
        algorithm=algorithm, units=units,  # type: ignore[arg-type]  # refused there
        dimension=dimension, window=window, negative=negative, epochs=epochs, min_count=min_count,
        subsample=subsample, learning_rate=learning_rate, min_n=min_n, max_n=max_n, buckets=buckets,
        threads=threads, deterministic=deterministic, seed=seed,
    )  # fmt: skip
    typer.echo(out)


@vectors_app.command("similar")
def vectors_similar(
    folder: Vectors,
    words: Annotated[list[str], typer.Argument(metavar="WORD")],
    n: Count = 10,
    as_json: AsJson = False,
) -> None:
    """The words nearest to a word, with their cosines."""
    from zhixing.word_vectors import load_vectors

    vectors = load_vectors(folder)
    for word in words:
        if word not in vectors and vectors.find(word) is not None:
            say(f"{word!r} was not seen in training: its vector comes from its n-grams")
        found = vectors.similar(word, n)
        if as_json:
            _print_json({"word": word, "similar": dict(found)})
            continue
        if len(words) > 1:
            say(f"--- {word}")
        _print_words(found)


@vectors_app.command("analogy")
def vectors_analogy(
    folder: Vectors,
    a: Annotated[str, typer.Argument(metavar="A")],
    b: Annotated[str, typer.Argument(metavar="B")],
    c: Annotated[str, typer.Argument(metavar="C")],
    n: Count = 10,
    method: Annotated[str, typer.Option(help="add or mul.")] = "add",
    as_json: AsJson = False,
) -> None:
    """A is to B as C is to ...? For example: man king woman."""
    from zhixing.word_vectors import load_vectors

    found = load_vectors(folder).analogy(a, b, c, n, method)  # type: ignore[arg-type]  # refused there
    if as_json:
        _print_json({"a": a, "b": b, "c": c, "answers": dict(found)})
        return
    _print_words(found)


def _print_words(found: list[tuple[str, float]]) -> None:
    for word, score in found:
        typer.echo(f"{score:.4f}\t{word}")


@vectors_app.command("evaluate")
def vectors_evaluate(
    folder: Vectors,
    on: Annotated[
        list[str] | None,
        typer.Option(help="wordsim, simlex, analogies or a file; may be given more than once; else all three."),
    ] = None,
    among: Annotated[int | None, typer.Option(help="Analogies: answers are among so many frequent words.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure word vectors: similarity as people see it (Spearman), and analogies."""
    from zhixing.word_vectors import TESTS, evaluate_vectors, load_vectors

    for name, score in evaluate_vectors(load_vectors(folder), on or TESTS, among=among).items():
        if isinstance(score, list):
            if as_json:
                parts = {part.name: _analogy_facts(part) for part in score}
                _print_json({"test": name, **parts.pop("total"), "sections": parts})
                continue
            for part in score:
                label = name if part.name == "total" else f"  {part.name}"
                typer.echo(
                    f"{label:<30} {part.accuracy:8.1%}   {part.correct:,} of {part.n:,}; {part.missing:,} more have an"
                    " unseen word"
                )
        elif as_json:
            facts = {"spearman": score.spearman, "low": score.low, "high": score.high, "n": score.n}
            _print_json({"test": name, **facts, "n_pairs": score.n_pairs, "missing": len(score.missing)})
        else:
            typer.echo(
                f"{name:<30} {score.spearman:8.3f}   95 % within {score.low:.3f} .. {score.high:.3f}; {score.n} of"
                f" {score.n_pairs} pairs"
            )


def _analogy_facts(score: Any) -> dict[str, Any]:
    return {"accuracy": score.accuracy, "correct": score.correct, "n": score.n, "missing": score.missing}


@vectors_app.command("weat")
def vectors_weat(
    folder: Vectors,
    sets: Annotated[
        list[str] | None,
        typer.Option(help="flowers-insects, names-career, math-arts or a .toml file with x, y, a, b; else all three."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What the vectors have picked up: is X nearer to A, and Y to B? (WEAT)"""
    from zhixing.word_vectors import associations, load_vectors

    found = associations(load_vectors(folder), sets or ())
    for name, score in found.items():
        if isinstance(score, InputError):
            say(f"{name}: {score.message()}")
        elif as_json:
            facts = {"effect_size": score.effect_size, "p_value": score.p_value, "sizes": list(score.sizes)}
            _print_json({"test": name, **facts, "missing": list(score.missing)})
        else:
            typer.echo(
                f"{name:<20} effect size {score.effect_size:+.2f}   p = {score.p_value:.4f}   words of x, y, a, b:"
                f" {', '.join(map(str, score.sizes))}; {len(score.missing)} unseen"
            )
    if all(isinstance(score, InputError) for score in found.values()):
        raise InputError("none of the tests can be measured", mend="give sets of words that these vectors know")


@vectors_app.command("export")
def vectors_export(
    folder: Vectors,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The file to make.")],
    to: Annotated[str, typer.Option(help="word2vec, word2vec-text, glove, fasttext-vec or fasttext-bin.")] = "word2vec",
) -> None:
    """Write vectors for another tool. Prints the file."""
    from zhixing.word_vectors import export_vectors

    export_vectors(folder, out, to=to)  # type: ignore[arg-type]  # refused there
    typer.echo(out)


@vectors_app.command("import")
def vectors_import(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file of word2vec, GloVe or fastText.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder to make.")],
    limit: Annotated[int | None, typer.Option(help="Only so many words, the most frequent.")] = None,
) -> None:
    """Read another tool's vectors. Prints the folder."""
    from zhixing.word_vectors import import_vectors

    import_vectors(file, out, limit=limit)
    typer.echo(out)


@vectors_app.command("map")
def vectors_map(
    folder: Vectors,
    out: Annotated[str, typer.Argument(metavar="OUT.svg", help="The picture to make.")],
    words: Annotated[
        list[str] | None,
        typer.Option(help='"king queen", or with a name "royals: king queen"; given again: another colour.'),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Without --words: so many of the most frequent.")] = 200,
) -> None:
    """Draw words as a map: near words mean alike. Prints the picture's name."""
    from zhixing.word_vectors import load_vectors, map_vectors

    count = map_vectors(load_vectors(folder), out, words or (), most=n)
    say(f"{count} words; open {shlex.quote(out)} in a browser")
    typer.echo(out)
