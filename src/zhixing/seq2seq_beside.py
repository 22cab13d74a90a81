"""A translator or a summarizer beside another one, and in another tool: what needs a run whole, and more than that run.

`compare_seq2seq` has two runs write the same texts; `export_seq2seq` gives one to CTranslate2.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from zhixing.errors import InputError
from zhixing.evaluation.seq2seq_comparison import Seq2SeqComparison, compare_summarizers, compare_translators
from zhixing.interchange.ctranslate2_directory import CTranslate2Report, export_ctranslate2, usage
from zhixing.interchange.import_export import PROMPTS
from zhixing.progress import say
from zhixing.seq2seq import Summarizer, Translator
from zhixing.text.pairs import Pairs

CHECKED_TEXTS = 32  # that an export must write as we do
LANGUAGES_CHECKED = 4  # of a model that writes more, where it has no test part
SHOWN = 60  # characters of a text in a command


def compare_seq2seq(
    first: Translator | Summarizer, second: Translator | Summarizer, data: str | None = None
) -> dict[str, Seq2SeqComparison]:
    """The comparison of each direction of the pairs; {"": ...} where they have only one.

    InputError: unlike tasks or languages; without `data`, other test parts: what tests one the other may have learnt.
    """
    tasks = first.stored.task, second.stored.task
    if tasks[0] != tasks[1]:
        raise InputError(
            "the two models answer different questions",
            why=f"one is for {tasks[0]}, the other for {tasks[1]}",
            mend="compare two models of the same task",
        )
    languages = [(run.stored.source_language, run.stored.target_language) for run in (first, second)]
    if any(a and b and a != b for a, b in zip(*languages, strict=True)):
        raise InputError(
            "the two models are for different languages",
            why=" and ".join(f"one reads {source or '?'} and writes {target or '?'}" for source, target in languages),
            mend="compare two models of the same direction",
        )
    pairs = first.read(data)
    if data is None:
        _check_same_test(first, second, pairs)
    names = first.path.name, second.path.name
    if names[0] == names[1]:
        names = str(first.path), str(second.path)
    outputs = first.write_pairs(pairs), second.write_pairs(pairs)
    found = {}
    for direction, numbers in pairs.directions().items():
        sources, references = [pairs[n].source for n in numbers], [pairs[n].target for n in numbers]
        a, b = ([written[n] for n in numbers] for written in outputs)
        if tasks[0] == "summarization":
            found[direction] = compare_summarizers(a, b, references, sources=sources, names=names)
        else:
            language = pairs[numbers[0]].target_language or languages[0][1] or languages[1][1] or "en"
            found[direction] = compare_translators(a, b, references, language=language, sources=sources, names=names)
    return found


def _check_same_test(first: Translator | Summarizer, second: Translator | Summarizer, pairs: Pairs) -> None:
    """InputError unless the second run has the first one's test part."""
    mine, other = ([(p.source, p.target, p.direction) for p in part] for part in (pairs, second.read(None)))
    if mine != other:
        shared = len(set(mine) & set(other))
        why = f"{len(mine):,} and {len(other):,} pairs, {shared:,} in both: what tests one the other may have learnt"
        raise InputError(
            "the two runs have different test parts",
            why=why,
            mend=f"name pairs that are new to both: zhixing compare {first.path} {second.path} DATA",
        )


def export_seq2seq(run: Translator | Summarizer, out: Path) -> CTranslate2Report:
    """Write a run for CTranslate2, checked with texts of its own test part or else with fixed ones; says how to use it.

    InputError and RuntimeError as in `export_ctranslate2`.
    """
    if run.stored.task == "dialogue":
        raise InputError("translators and summarizers are exported to CTranslate2, and this one replies")
    tags, settings = run.tokenizer.tags, run.settings()
    if tested := (run.path / "data" / "test.jsonl").exists():
        pairs = run.read(None)
        texts = [(pair.source, pair.target_language) for pair in pairs][:: -(-len(pairs) // CHECKED_TEXTS)]
    else:
        languages = [""] if run.stored.target_language or not tags else list(tags)[:LANGUAGES_CHECKED]
        texts = [(text, language) for language in languages for text in PROMPTS]
    sources = []
    for text, language in texts:
        reader = run.tokenizer.for_language(language if language in tags else "")
        sources.append(reader.with_ends(reader.encode(text)[: run.model.longest_source - len(reader.with_ends([]))]))
    report = export_ctranslate2(run.stored, out, sources, settings)
    say(f"{report.summary()} ({'texts of the test part' if tested else 'fixed texts'})")
    text, language = texts[0]
    code = usage(out, run.stored, settings, text[:SHOWN], f">>{language}<<" if language in tags else "")
    say(f"next:  python -c {shlex.quote(code)}")
    return report
