"""`zhixing.train` and `zhixing.load`, whatever a recipe or folder is of: text, labels, pairs or conversations."""

from __future__ import annotations

from pathlib import Path

from zhixing.classifier import Classifier, compare_runs, load_classifier, train_classifier
from zhixing.dialogue import Chat, load_dialogue, train_dialogue
from zhixing.errors import InputError
from zhixing.evaluation.comparison import Comparison
from zhixing.evaluation.seq2seq_comparison import Seq2SeqComparison
from zhixing.interchange.adapter_directory import export_adapter, import_adapter, is_adapter
from zhixing.interchange.chat_directory import is_chat
from zhixing.interchange.classifier_directory import is_classifier
from zhixing.interchange.gguf_file import export_gguf
from zhixing.interchange.seq2seq_directory import is_seq2seq
from zhixing.preference import train_preference
from zhixing.progress import say
from zhixing.recipe import PAIR_TASKS
from zhixing.run import Run, asked_recipe, export_run, import_run, load, started, train
from zhixing.seq2seq import Summarizer, Translator, load_seq2seq, train_seq2seq
from zhixing.seq2seq_beside import compare_seq2seq, export_seq2seq

EXPORTS = ("transformers", "peft", "ctranslate2", "gguf")

AnyRun = Run | Classifier | Translator | Summarizer | Chat


def train_any(source: str, *overrides: str, out: str | None = None, resume: bool = False) -> AnyRun:
    """Train what `source` says: a recipe's name or file, or a file or folder of text (a language model).

    Overrides are ``table.key=value``; task.kind=classification makes a classifier of labelled texts,
    task.kind=translation (summarization) a model of pairs, task.kind=dialogue one that replies, task.kind=preference
    one that replies rather as people prefer. `out` is the folder to make (runs/NAME if not given); with `resume` the
    run in it goes on. InputError says what to mend.
    """
    recipe = asked_recipe(source, list(overrides))
    if recipe.task.kind == "language":
        return train(source, *overrides, out=out, resume=resume)
    with started(source, out, resume) as (run_dir, parallel):
        if recipe.task.kind in PAIR_TASKS:
            return train_seq2seq(recipe, run_dir, resume, parallel)
        if recipe.task.kind == "dialogue":
            return train_dialogue(recipe, run_dir, resume, parallel)
        if recipe.task.kind == "preference":
            return train_preference(recipe, run_dir, resume, parallel)
        return train_classifier(recipe, run_dir, resume, parallel)


def import_any(source: str, out: str, base: str = "") -> None:
    """Read a transformers folder, or an adapter of PEFT with its base (by default the one it names), into a run."""
    if is_adapter(Path(source)):
        import_adapter(Path(source), Path(out), Path(base) if base else None)
        return
    if base:
        raise InputError("there is no adapter for the base", where=source, mend="leave out --base")
    import_run(source, out)


def export_any(
    run: str, out: str, to: str = "transformers", max_shard_size: str | None = None, dtype: str | None = None
) -> None:
    """Write a model for another tool: `transformers`; `peft`, the adapter of a run that was trained with LoRA;
    `ctranslate2`, a translator or summarizer; `gguf`, a gpt as one file for llama.cpp, f32 or of this dtype."""
    if to not in EXPORTS:
        raise InputError(f"there is no export to {to!r}", mend=f"those known are {', '.join(EXPORTS)}")
    if dtype and to != "gguf":
        raise InputError("a dtype is for --to gguf", mend="leave out --dtype")
    if to == "gguf":
        if max_shard_size:
            raise InputError("a gguf is one file", mend="leave out --max-shard-size")
        report = export_gguf(Path(run), Path(out), dtype or "f32")
        say(report.summary())
        say(f"next:  {report.usage()}")
        return
    if to == "ctranslate2":
        if max_shard_size:
            raise InputError("CTranslate2's weights are one file", mend="leave out --max-shard-size")
        export_seq2seq(load_seq2seq(run), Path(out))
        return
    if to == "peft":
        if not Path(run).is_dir():
            raise InputError(f"there is no run {run!r}", mend="give the folder that `zhixing train` printed")
        export_adapter(Path(run), Path(out))
        return
    if is_seq2seq(Path(run)):
        why = "AutoModelForSeq2SeqLM loads it as it is (but for an lstm)"
        raise InputError("this run is a folder of transformers already", where=run, why=why, mend="copy it")
    export_run(load(run), out, max_shard_size=max_shard_size)


def compare_any(
    first: str, second: str, data: str | None = None
) -> Comparison | Seq2SeqComparison | dict[str, Seq2SeqComparison]:
    """Two classifiers, translators or summarizers on the same texts, by default the test part of the first.

    Of translators with pairs of several directions, each direction by itself: {"en>zh": ...}.
    """
    write = [is_seq2seq(Path(run)) for run in (first, second)]
    if not any(write):
        return compare_runs(first, second, data)
    if not all(write):
        what = "this run does not read one text and write another"
        raise InputError(what, where=(first, second)[write.index(False)], mend="compare two runs of one task")
    found = compare_seq2seq(load_seq2seq(first), load_seq2seq(second), data)
    return found.get("", found)


def load_any(path: str | Path) -> AnyRun:
    """A trained run of any kind, or a model folder of transformers in a layout we know."""
    if is_chat(Path(path)):
        return load_dialogue(path)
    if is_seq2seq(Path(path)):
        return load_seq2seq(path)
    return load_classifier(path) if is_classifier(Path(path)) else load(path)
