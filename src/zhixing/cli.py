"""The command line: each command parses its arguments and calls one function that Python users call too.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 2 something the user can mend, one message and
no traceback; 130 interrupted; 141 the reader of our output left; 1 a bug of ours, with its traceback. Nothing heavy
is imported before a command needs it, so that `zhixing --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from zhixing.ask_cli import ask_command
from zhixing.chat_cli import chat_command
from zhixing.embed_cli import embed_command
from zhixing.errors import InputError
from zhixing.progress import quantity, say
from zhixing.seq2seq_cli import summarize_command, translate_command
from zhixing.serve_cli import serve_command
from zhixing.vectors_cli import vectors_app

OK, BUG, USER_ERROR, INTERRUPTED, READER_LEFT = 0, 1, 2, 130, 141

# click's UsageError, wherever this version of typer keeps it: an unknown option, a missing or an impossible argument.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

# What the machine may refuse at any moment; the user can mend it. (A file that is missing is no such thing: who opens
# it must have looked, so that is a bug.)
REFUSALS = {
    errno.EACCES: "give yourself the right to it, or take another place",
    errno.EPERM: "give yourself the right to it, or take another place",
    errno.EROFS: "take a place that can be written to",
    errno.ENOSPC: "free some space on the disk, then run it again (with --resume where it was training)",
    errno.EDQUOT: "free some space on the disk, then run it again (with --resume where it was training)",
    errno.EFBIG: "free some space on the disk, then run it again (with --resume where it was training)",
    errno.ENOTDIR: "check the path",
    errno.EEXIST: "take another path",
    errno.EISDIR: "check the path",
    errno.ENAMETOOLONG: "take a shorter path",
    errno.ELOOP: "mend the circle of symbolic links",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}

app = typer.Typer(
    name="zhixing",
    help="知行: from raw text to a language model that writes, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Named data sets: list them, look at one, fetch one.", no_args_is_help=True)
tokenizer_app = typer.Typer(help="Train a tokenizer, or see what one does to a text.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(vectors_app, name="vectors")
app.command("embed")(embed_command)
app.command("translate")(translate_command)
app.command("summarize")(summarize_command)
app.command("chat")(chat_command)
app.command("ask")(ask_command)
app.command("serve")(serve_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. `argv` is without the program's name; None: the process's own."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show 知 still shows the rest
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `zhixing generate ... | head`
        _discard_stdout()
        return READER_LEFT


def _run(arguments: list[str]) -> int:
    try:
        with typer.main.get_command(app).make_context("zhixing", arguments) as context:
            context.command.invoke(context)
        return OK
    except typer.Exit as end:  # --help and --version
        return end.exit_code
    except UsageError as error:
        error.show(sys.stderr)  # type: ignore[attr-defined]
        return USER_ERROR
    except InputError as error:
        return _refuse(error)
    except SystemExit as end:  # a training that was told to stop has saved, and says how to go on
        return end.code if isinstance(end.code, int) else OK
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in REFUSALS:
            return _bug()
        return _refuse(
            InputError(
                f"the machine refused: {os.strerror(error.errno)}",
                where=os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "",
                mend=REFUSALS[error.errno],
            )
        )
    except MemoryError:
        return _refuse(InputError("there is not enough memory", mend="take a smaller model, batch or text"))
    except Exception:
        return _bug()


def _refuse(error: InputError) -> int:
    say(f"{_red('error:')} {error.message()}")
    return USER_ERROR


def _bug() -> int:
    traceback.print_exc()
    say(f"{_red('this is a bug in zhixing')}; please report it with the lines above and what `zhixing doctor` prints")
    return BUG


def _red(text: str) -> str:
    return f"\033[1;31m{text}\033[0m" if _colours(sys.stderr) else text


def _colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _discard_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain about the closed pipe."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # a stdout that is no file: nothing will be flushed
        pass


def _first_process() -> bool:
    """Under torchrun only the first process prints results."""
    return os.environ.get("RANK", "0") == "0"


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def _text_of(argument: str, number: int) -> str:
    """A prompt from the command line as text; "-" is the whole of stdin, less its last line end."""
    where = "stdin" if argument == "-" else f"prompt {number}"
    raw = sys.stdin.buffer.read() if argument == "-" else os.fsencode(argument)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            "the prompt is not UTF-8", where=f"{where}, byte {error.start}", mend="convert it, for example with iconv"
        ) from None
    return text.removesuffix("\n").removesuffix("\r") if argument == "-" else text


def _version(wanted: bool) -> None:
    if wanted:
        from zhixing import __version__

        typer.echo(f"zhixing {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """知行: from raw text to a language model that writes, on your own machine."""


RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run.")]
Examples = Annotated[
    str | None, typer.Option(metavar="FILE", help="Labelled examples: a language model learns from them in context.")
]
Labels = Annotated[str, typer.Option(metavar="A,B", help="With --examples: only these labels.")]
PerLabel = Annotated[int, typer.Option(min=0, help="With --examples: so many of each label; 0: as many as fit.")]
PatternOption = Annotated[
    str, typer.Option("--pattern", help="With --examples: how one is written, with {text} and {label}.")
]
ExampleSeed = Annotated[int, typer.Option(min=0, help="With --examples: another seed draws and orders others.")]


def _only_with_examples(examples: str | None, *options: object) -> None:
    if not examples and any(options):
        raise typer.BadParameter("--labels, --per-label, --pattern and --seed go with --examples")


def _listed(labels: str) -> list[str]:
    return [label.strip() for label in labels.split(",") if label.strip()]


@app.command()
def train(
    source: Annotated[
        str, typer.Argument(metavar="RECIPE_OR_FOLDER", help="A recipe's name or file, or a file or folder of text.")
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Settings, e.g. train.max_steps=200.")
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="RUN", help="The folder to make; else runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out where it stopped.")] = False,
) -> None:
    """Train a model on text: a recipe, or any file or folder. Prints the run's folder."""
    from zhixing.entry import train_any

    run = train_any(source, *(settings or []), out=out, resume=resume)
    if _first_process():
        typer.echo(str(run.path))


@app.command()
def generate(
    run: RunFolder,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="What to continue; - reads stdin.")],
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it comes (one prompt).")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 200,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token; 1: as the model says.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens that make up this share.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Only tokens at least this likely beside the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: tokens already seen are less likely.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given more than once.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="So many continuations of each prompt.")] = 1,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    num_beams: Annotated[int, typer.Option(help="Above 1: beam search.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Beam search: above 0 favours longer texts.")] = 1.0,
    logprobs: Annotated[
        int | None, typer.Option(help="As JSON: the log-probability of each token, and of so many others.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line and continuation.")] = False,
) -> None:
    """Have a model go on writing. Prints what comes after the prompt."""
    texts = [_text_of(prompt, number) for number, prompt in enumerate(prompts, 1)]
    if stream and (len(texts) > 1 or n > 1 or num_beams > 1 or as_json or logprobs is not None):
        raise typer.BadParameter("--stream takes one prompt and no --n, --num-beams, --json or --logprobs")
    from zhixing.run import load

    loaded = load(run)
    if stream:
        for piece in loaded.stream(
            texts[0], max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, stop=stop or [], seed=seed,
        ):  # fmt: skip
            typer.echo(piece, nl=False)
            sys.stdout.flush()
        typer.echo()
        return
    answers = loaded.complete(
        texts, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, stop=stop or [], n=n, seed=seed, num_beams=num_beams,
        length_penalty=length_penalty, logprobs=logprobs,
    )  # fmt: skip
    several = len(texts) * n > 1
    for text, completions in zip(texts, answers, strict=True):
        for number, completion in enumerate(completions, 1):
            if as_json or logprobs is not None:
                _print_json(dataclasses.asdict(completion))
                continue
            if several:
                say(f"--- {text!r}" + (f", {number} of {n}" if n > 1 else ""))
            typer.echo(completion.text)


@app.command()
def evaluate(
    run: RunFolder,
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="Text; else the run's own held-out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    examples: Examples = None,
    labels: Labels = "",
    per_label: PerLabel = 0,
    pattern: PatternOption = "",
    seed: ExampleSeed = 0,
) -> None:
    """Measure a model: on text, labelled texts (a classifier, or one in context), pairs of texts or conversations."""
    from zhixing.classifier import Classifier
    from zhixing.entry import load_any
    from zhixing.run import Run

    _only_with_examples(examples, labels, per_label, pattern, seed)
    loaded: Any
    if examples:
        from zhixing.context_classifier import in_context

        if data is None:
            raise InputError("there are no texts to measure on", mend="zhixing evaluate RUN DATA --examples FILE")
        loaded = in_context(run, examples, labels=_listed(labels), per_label=per_label, pattern=pattern, seed=seed)
    else:
        loaded = load_any(run)
    if examples or isinstance(loaded, Classifier):
        from zhixing.evaluation.classification_report import text_summary

        result, found = loaded.evaluate(data)
        if as_json:
            _print_json({**found.to_dict(), "data": result.facts["data"]})
        else:
            typer.echo(text_summary(result, scores=found))
        return
    scores = loaded.evaluate(data)
    if not isinstance(loaded, Run):
        from zhixing import dialogue, seq2seq

        told = dialogue.scores_text if isinstance(loaded, dialogue.Chat) else seq2seq.scores_text
        if as_json:
            _print_json(scores)
        else:
            typer.echo(told(scores))
        return
    if as_json:
        _print_json(scores.to_dict())
        return
    rows = (("loss", scores.loss), ("perplexity", scores.perplexity), ("bits per byte", scores.bits_per_byte),
            ("accuracy", scores.accuracy))  # fmt: skip
    for name, score in rows:
        typer.echo(f"{name:<14} {score.value:10.4f}   95 % within {score.low:.4f} .. {score.high:.4f}")
    say(f"over {scores.n_targets:,} tokens, {scores.n_bytes:,} bytes, {scores.loss.n:,} sequences")


@app.command()
def show(run: RunFolder) -> None:
    """What a run is and how it went."""
    from zhixing.entry import load_any

    typer.echo(load_any(run).show())


Texts = Annotated[
    list[str], typer.Argument(metavar="TEXT|FILE", help="Texts, or files with a text a line (or jsonl); - reads stdin.")
]


def _texts_of(arguments: list[str]) -> list[str]:
    """The texts that arguments stand for: a file's lines (of jsonl: the column text), or the argument itself."""
    texts: list[str] = []
    for number, argument in enumerate(arguments, 1):
        path = Path(argument)
        if argument != "-" and os.path.isfile(argument):  # noqa: PTH113  Path.is_file() raises where a name is too long for a file
            from zhixing.text.readers import read_texts

            found = read_texts(path)
            if not found:
                raise InputError("the file holds no text", where=argument, mend="put a text on each line")
            texts += found
        elif argument == "-":
            texts += [line for line in _text_of("-", number).replace("\r\n", "\n").split("\n") if line.strip()]
        else:
            texts.append(_text_of(argument, number))
    if not texts:
        raise InputError("there is no text to classify", mend="give a text, a file with a text a line, or - for stdin")
    return texts


@app.command()
def classify(
    run: RunFolder,
    texts: Texts,
    explain: Annotated[bool, typer.Option("--explain", help="Show the words that speak for and against.")] = False,
    examples: Examples = None,
    labels: Labels = "",
    per_label: PerLabel = 0,
    pattern: PatternOption = "",
    seed: ExampleSeed = 0,
) -> None:
    """Say what texts are: a classifier, or a language model by --examples. One JSON object a line."""
    from zhixing.classifier import load_classifier

    _only_with_examples(examples, labels, per_label, pattern, seed)
    classifier: Any
    if examples:
        from zhixing.context_classifier import in_context

        if explain:
            raise typer.BadParameter("--explain is for classifiers, not for --examples")
        classifier = in_context(run, examples, labels=_listed(labels), per_label=per_label, pattern=pattern, seed=seed)
    else:
        classifier = load_classifier(run)
    found = _texts_of(texts)
    for text, answer in zip(found, classifier(found), strict=True):
        _print_json({"text": text, **answer.to_dict()})
        if explain:
            from zhixing.explain.terminal import terminal

            say(terminal(classifier.explain(text)))
    if classifier.too_long:
        how = "truncate" if examples else classifier.on_too_long
        say(f"{classifier.too_long} texts were longer than the model reads ({how})")


@app.command()
def sentiment(run: RunFolder, texts: Texts) -> None:
    """Say how texts feel, from -1 (negative) to 1 (positive). One JSON object a line."""
    from zhixing.classifier import Sentiment, load_classifier

    found = _texts_of(texts)
    for text, score in zip(found, Sentiment(load_classifier(run))(found), strict=True):
        _print_json({"text": text, **dataclasses.asdict(score)})


@app.command("explain")
def explain_(
    run: RunFolder,
    texts: Texts,
    method: Annotated[
        str, typer.Option(help="auto, integrated_gradients, contributions (bag) or rollout (bert).")
    ] = "auto",
    label: Annotated[str | None, typer.Option(help="Explain this label; else the likeliest.")] = None,
    nearest: Annotated[int, typer.Option(help="So many training texts that are like it.")] = 3,
    page: Annotated[str | None, typer.Option(metavar="FILE.html", help="Write a page too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show why a classifier gave its answer: the words that count, and the nearest training texts."""
    from zhixing.classifier import load_classifier
    from zhixing.explain.terminal import terminal

    classifier = load_classifier(run)
    method_: Any = method
    explanations = [classifier.explain(text, method=method_, nearest=nearest, label=label) for text in _texts_of(texts)]
    for explanation in explanations:
        if as_json:
            _print_json(explanation.to_dict())
        else:
            typer.echo(terminal(explanation))
    if page:
        from zhixing.explain.page import page as render_page
        from zhixing.files import atomic_write

        atomic_write(Path(page), render_page(explanations))
        say(f"look at {page}")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A classifier, a translator or a summarizer.")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="Another one.")],
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Labelled texts, or pairs; else the first run's own test part.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Set two runs of one task side by side on the same texts: the difference with its interval, and a test of it."""
    from zhixing.entry import compare_any
    from zhixing.evaluation.comparison import Comparison, comparison_text
    from zhixing.evaluation.seq2seq_comparison import seq2seq_comparison_text

    found = compare_any(first, second, data)
    if isinstance(found, dict):
        if as_json:
            _print_json({"directions": {direction: one.to_dict() for direction, one in found.items()}})
        for direction, one in found.items():
            if not as_json:
                typer.echo(f"{direction}\n{seq2seq_comparison_text(one)}\n")
    elif as_json:
        _print_json(found.to_dict())
    else:
        typer.echo(comparison_text(found) if isinstance(found, Comparison) else seq2seq_comparison_text(found))


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A transformers model folder, or an adapter of PEFT.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder to make.")],
    base: Annotated[str, typer.Option(metavar="FOLDER", help="The adapter's base; else the one it names.")] = "",
) -> None:
    """Read a gpt2, llama or qwen3 folder of transformers as a run, or a LoRA adapter added to its base."""
    from zhixing.entry import import_any

    import_any(source, out, base)
    typer.echo(out)


@app.command()
def export(
    run: RunFolder,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder to make; for gguf, the file.")],
    to: Annotated[
        str,
        typer.Option(
            help="transformers; peft: a run's LoRA adapter; ctranslate2: a translator or summarizer; gguf: a gpt."
        ),
    ] = "transformers",
    max_shard_size: Annotated[str | None, typer.Option(help="Split the weights, e.g. 100MB.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of a gguf: f32 (the default), bf16 or q8_0.")] = None,
) -> None:
    """Write a model for another tool, and check that it says the same there."""
    from zhixing.entry import export_any

    export_any(run, out, to, max_shard_size, dtype)
    typer.echo(out)


@app.command()
def doctor() -> None:
    """What this machine has, and what zhixing will make of it."""
    from zhixing.doctor import diagnose, render

    typer.echo(render(diagnose()))


@app.command()
def demo() -> None:
    """Train on the shipped novels for three minutes, then have the model write."""
    from zhixing.run import demo as run_demo

    run_demo()


@data_app.command("list")
def data_list() -> None:
    """The named data sets: language, size, licence, and whether each is here already."""
    from zhixing.text.catalogue import is_here, list_datasets

    for entry in list_datasets():
        # a model has no characters; what counts there is what is fetched
        size = f"{quantity(entry.characters)} characters" if entry.characters else quantity(entry.bytes, "B")
        here = "here" if is_here(entry.name) else "to fetch"
        row = (
            f"{entry.name:<18}",
            f"{','.join(entry.languages):<6}",
            f"{size:>18}",
            f"{here:<9}",
            entry.licence,
            entry.title,
        )
        typer.echo("  ".join(row))


@data_app.command("show")
def data_show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Where a data set comes from, its licence and its columns."""
    from zhixing.text.catalogue import show_dataset

    for key, value in dataclasses.asdict(show_dataset(name)).items():
        if value not in ("", 0, []):
            typer.echo(f"{key:<16} {', '.join(map(str, value)) if isinstance(value, list) else value}")


@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Fetch a data set, verify it and keep it. Prints where it lies."""
    from zhixing.text.catalogue import fetch_dataset

    typer.echo(str(fetch_dataset(name)))


@tokenizer_app.command("train")
def tokenizer_train(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file, a folder, or the name of a data set.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="The folder to make.")],
    kind: Annotated[str, typer.Option(help="bpe, char or word.")] = "bpe",
    vocab_size: Annotated[int | None, typer.Option(help="Else it grows with the text.")] = None,
) -> None:
    """Train a tokenizer on text, and report what it does. Prints its folder."""
    from zhixing.run import tokenizer_report_command, train_tokenizer_command

    train_tokenizer_command(source, out, kind, vocab_size)
    say(tokenizer_report_command(out, [source]))
    typer.echo(out)


@tokenizer_app.command("report")
def tokenizer_report(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A run, a tokenizer folder or a tokenizer.json.")],
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Files, folders or names of data sets.")],
) -> None:
    """Bytes a token, coverage, English beside Chinese."""
    from zhixing.run import tokenizer_report_command

    typer.echo(tokenizer_report_command(path, sources))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one.")] = None,
) -> None:
    """List the recipes that ship with the package, or print one to start your own from."""
    from zhixing.recipe import load_recipe, recipe_names

    folder = resources.files("zhixing") / "recipes"
    if name is not None:
        load_recipe(name)  # an unknown name is refused there
        text = (folder / f"{name}.toml" if name in recipe_names() else Path(name)).read_text(encoding="utf-8")
        typer.echo(text, nl=False)
        return
    for known in recipe_names():
        first = (folder / f"{known}.toml").read_text(encoding="utf-8").splitlines()[0]
        typer.echo(f"{known:14} {first.lstrip('# ')}")
