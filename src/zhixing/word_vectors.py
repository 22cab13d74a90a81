"""Word vectors, from a text to answers: `train_vectors`, `load_vectors`, `evaluate_vectors` and their kin.

`zhixing vectors` calls these and nothing else. A folder of vectors holds what other tools read, and how it came to be:

    vectors.bin    word2vec's binary form; gensim: KeyedVectors.load_word2vec_format("vectors.bin", binary=True)
    fasttext.bin   instead of it where there are vectors of n-grams: fastText's own model
    vocab.txt      a word and its count a line, as word2vec.c saves it
    settings.json README.md MANIFEST.json

While the training lasts, OUT.unfinished holds its states; OUT appears when it is whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zhixing.errors import InputError
from zhixing.files import MANIFEST, atomic_dir, atomic_write, remove_tree, verify_manifest
from zhixing.interchange.word_vector_files import (
    FastTextArguments,
    FastTextModel,
    guess_layout,
    read_fasttext,
    read_vectors,
    write_fasttext,
    write_vectors,
)
from zhixing.progress import duration, quantity, say
from zhixing.recipe import DataSettings
from zhixing.text.catalogue import dataset_files, list_datasets, show_dataset
from zhixing.text.catalogue import names as dataset_names
from zhixing.text.readers import Documents, read_documents
from zhixing.training.runlock import run_lock
from zhixing.vectors.evaluate import (
    ASSOCIATIONS,
    AnalogyScore,
    AssociationScore,
    SimilarityScore,
    WordSets,
    analogy_accuracy,
    read_analogies,
    read_word_pairs,
    word_association,
    word_similarity,
)
from zhixing.vectors.glove import GloveSettings, train_glove
from zhixing.vectors.keyed import KeyedVectors
from zhixing.vectors.map import draw_map
from zhixing.vectors.train import TrainedVectors, WordVectorSettings, train_word_vectors
from zhixing.vectors.words import Units, WordCorpus, count_words, encode_words

VECTORS, FASTTEXT, VOCABULARY, SETTINGS = "vectors.bin", "fasttext.bin", "vocab.txt", "settings.json"
TESTS = ("wordsim", "simlex", "analogies")
FORMS = {
    "word2vec": "word2vec-binary",
    "word2vec-text": "word2vec-text",
    "glove": "glove",
    "fasttext-vec": "fasttext-vec",
    "fasttext-bin": "fasttext-bin",
}

Algorithm = Literal["skipgram", "cbow", "glove", "fasttext"]
Form = Literal["word2vec", "word2vec-text", "glove", "fasttext-vec", "fasttext-bin"]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


# ---- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlainText:
    """Documents for word vectors: small letters, no punctuation, and no line ends, which in prose mean nothing.

    '"Well," said Mr. Darcy' -> well said mr darcy
    """

    documents: Iterable[str]

    def __iter__(self) -> Iterator[str]:
        for text in self.documents:
            yield " ".join(_WORD.findall(text.lower()))


def train_vectors(
    source: str,
    *,
    out: str | Path,
    resume: bool = False,
    as_is: bool = False,
    text_column: str = "text",
    algorithm: Algorithm = "skipgram",
    units: Units = "words",
    dimension: int = 100,
    window: int | None = None,
    negative: int | None = None,
    epochs: int | None = None,
    min_count: int = 5,
    subsample: float | None = None,
    learning_rate: float | None = None,
    min_n: int | None = None,
    max_n: int | None = None,
    buckets: int | None = None,
    threads: int | None = None,
    deterministic: bool = False,
    seed: int = 0,
    save_seconds: float = 300.0,
) -> KeyedVectors:
    """Learn the vectors of a text's words into the folder `out`; they are returned too.

    `source` is a file, a folder or the name of a data set. Words are taken without punctuation and in small letters;
    with `as_is` they are what stands between blanks, and a line is a sentence. None: the algorithm's own default
    (window 5 and 5 epochs; of glove 10 and 15). With `resume` a stopped training goes on.
    """
    folder = Path(out)
    settings = _settings(
        algorithm=algorithm, units=units, d_model=dimension, window=window, negative=negative, epochs=epochs,
        min_count=min_count, subsample=subsample, learning_rate=learning_rate, min_n=min_n, max_n=max_n,
        buckets=buckets, threads=threads, deterministic=deterministic, seed=seed, save_seconds=save_seconds,
    )  # fmt: skip
    _refuse_existing(folder, "take another --out")
    unfinished = _unfinished(folder)
    if resume and not unfinished.is_dir():
        raise InputError(f"there is no training to go on with at {str(out)!r}", mend="leave --resume away")
    documents = read_documents(source, DataSettings(source=source, text_column=text_column))
    corpus = WordCorpus(documents if as_is else PlainText(documents), units)
    began = time.monotonic()
    with _training_in(unfinished, folder):
        if algorithm == "glove":
            keyed, facts = _train_glove(corpus, settings, unfinished, resume)
            model = None
        else:
            trained = train_word_vectors(corpus, settings, out=unfinished, resume=resume)
            keyed = trained.keyed()
            model = _fasttext_model(trained) if algorithm == "fasttext" else None
            facts = {
                "words_of_text": trained.vocabulary.n_seen,
                "training_seconds": round(trained.seconds, 2),
                "words_per_second": round(trained.words_per_second),
            }
        facts = {**_source_facts(documents, source), **facts, "as_is": as_is}
        _write_folder(folder, keyed, model, dataclasses.asdict(settings), facts)
        remove_tree(unfinished)
    say(
        f"{quantity(len(keyed))} words of {keyed.dimension} numbers from a text of"
        f" {quantity(facts['words_of_text'])} words in {duration(time.monotonic() - began)}"
    )
    say(f"next:  zhixing vectors similar {shlex.quote(str(folder))} {shlex.quote(_example(keyed))}")
    return keyed


def _settings(*, algorithm: str, **given: Any) -> WordVectorSettings:
    """The settings that were given, and the algorithm's own for the rest; InputError for one it does not have."""
    own = {
        "glove": ("negative", "subsample", "min_n", "max_n", "buckets"),
        "skipgram": ("min_n", "max_n", "buckets"),
        "cbow": ("min_n", "max_n", "buckets"),
    }
    for name in own.get(algorithm, ()):
        if given[name] is not None:
            raise InputError(f"{algorithm} has no setting {name}", mend=f"leave {name} away, or take another algorithm")
    if algorithm == "glove":
        given = {**given, "window": given["window"] or 10, "epochs": given["epochs"] or 15}
    settings = WordVectorSettings(
        algorithm=algorithm,  # type: ignore[arg-type]  # checked below
        **{name: value for name, value in given.items() if value is not None},
    )
    settings.check()
    return settings


def _train_glove(
    corpus: WordCorpus, settings: WordVectorSettings, folder: Path, resume: bool
) -> tuple[KeyedVectors, dict[str, Any]]:
    vocabulary = count_words(corpus, settings.min_count)
    trained = train_glove(
        [encode_words(corpus, vocabulary)],
        vocabulary.counts,
        GloveSettings(
            d_model=settings.d_model,
            window=settings.window,
            learning_rate=settings.first_rate,
            epochs=settings.epochs,
            threads=settings.threads,
            deterministic=settings.deterministic,
            seed=settings.seed,
            save_seconds=settings.save_seconds,
        ),
        folder,
        resume=resume,
    )
    facts = {
        "words_of_text": vocabulary.n_seen,
        "pairs": trained.n_pairs,
        "training_seconds": round(trained.seconds, 2),
        "losses": [round(loss, 6) for loss in trained.losses],
    }
    return KeyedVectors(vocabulary.words, trained.vectors, vocabulary.counts), facts


def _fasttext_model(trained: TrainedVectors) -> FastTextModel:
    """What fastText itself would have saved, with the output matrix that was learnt."""
    settings, vocabulary = trained.settings, trained.vocabulary
    assert trained.own is not None and trained.buckets is not None
    parts = settings.max_n > 0
    arguments = FastTextArguments(
        settings.d_model,
        window=settings.window,
        epochs=settings.epochs,
        min_count=settings.min_count,
        negatives=settings.negative,
        buckets=settings.buckets if parts else 0,
        min_n=settings.min_n if parts else 0,
        max_n=settings.max_n,
        sample=settings.subsample,
    )
    inputs = np.concatenate([trained.own, trained.buckets]) if parts else trained.own
    nothing = np.empty(0, np.int64)
    return FastTextModel(
        arguments, vocabulary.words, vocabulary.counts, [], nothing, vocabulary.n_seen, inputs, trained.outputs
    )


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.unfinished")


def _refuse_existing(path: Path, mend: str) -> None:
    if os.path.lexists(path):
        raise InputError(f"{str(path)!r} exists", why="what is finished is never written into", mend=mend)


@contextmanager
def _training_in(folder: Path, out: Path) -> Iterator[None]:
    """Hold the folder of an unfinished training; what is stopped says how to go on, or goes if nothing was saved."""
    with run_lock(folder):
        try:
            yield
        except BaseException as error:
            if not any(child.is_dir() and any(child.iterdir()) for child in folder.iterdir()):
                remove_tree(folder)
            elif isinstance(error, KeyboardInterrupt):
                say(f"go on with:  zhixing vectors train ... --out {shlex.quote(str(out))} --resume")
            raise


def _source_facts(documents: Documents, source: str) -> dict[str, Any]:
    licence = show_dataset(source).licence if source in dataset_names() else ""
    return {"source": source, "licence": licence, "documents": documents.counts.documents}


def _example(keyed: KeyedVectors) -> str:
    """A word that is likely to mean something: not one of the most frequent, and not a short one."""
    words = keyed.words[50:500] or keyed.words
    return max(words[:50], key=len)


# ---- the folder ----------------------------------------------------------------------------------------------------


def _write_folder(
    folder: Path, keyed: KeyedVectors, model: FastTextModel | None, settings: dict[str, Any], facts: dict[str, Any]
) -> None:
    with atomic_dir(folder, {"kind": "word vectors"}) as made:
        if model is not None:
            write_fasttext(made / FASTTEXT, model)
        else:
            write_vectors(made / VECTORS, keyed, "word2vec-binary")
        if keyed.counts is not None:
            rows = (f"{word} {count}\n" for word, count in zip(keyed.words, keyed.counts.tolist(), strict=True))
            atomic_write(made / VOCABULARY, "".join(rows))
        known = {
            "words": len(keyed),
            "dimension": keyed.dimension,
            "settings": settings,
            "facts": facts,
        }
        atomic_write(made / SETTINGS, json.dumps(known, ensure_ascii=False, indent=1) + "\n")
        atomic_write(made / "README.md", _card(keyed, model is not None, settings, facts))


def _card(keyed: KeyedVectors, subwords: bool, settings: dict[str, Any], facts: dict[str, Any]) -> str:
    """README.md: what these vectors are, and how they are read."""
    rows = [("words", f"{len(keyed):,}"), ("numbers of a vector", str(keyed.dimension))]
    rows += [(name.replace("_", " "), str(value)) for name, value in (facts | settings).items() if value != ""]
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    reading = (
        f'gensim.models.fasttext.load_facebook_vectors("{FASTTEXT}")  # or: fasttext.load_model("{FASTTEXT}")'
        if subwords
        else f'gensim.models.KeyedVectors.load_word2vec_format("{VECTORS}", binary=True)'
    )
    return (
        "# Word vectors\n\n"
        "Made with zhixing (知行). What a text says of people, its word vectors repeat: `zhixing vectors weat` measures"
        " some of it.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"```sh\nzhixing vectors similar . {shlex.quote(_example(keyed))}\n```\n\n"
        "```python\n"
        "import zhixing.word_vectors\n"
        'vectors = zhixing.word_vectors.load_vectors("this folder")\n'
        f"vectors.similar({json.dumps(_example(keyed), ensure_ascii=False)})\n"
        "```\n\n"
        f"Other tools:\n\n```python\n{reading}\n```\n"
    )


def _cell(text: str) -> str:
    return re.sub(r"[|<>`\\\s]+", " ", text)


def load_vectors(path: str | Path, *, limit: int | None = None) -> KeyedVectors:
    """Vectors of a folder that `train_vectors` made, of a word2vec, GloVe or fastText file, or of a data set's name.

    `limit`: only the first, most frequent words.
    """
    file, counted = _vector_file(path)
    if counted is None:
        return read_vectors(file, limit=limit)
    keyed = read_vectors(file, "fasttext-bin" if file.name == FASTTEXT else "word2vec-binary", limit)
    if keyed.counts is not None or not counted.is_file():
        return keyed
    counts = dict(line.rsplit(" ", 1) for line in counted.read_text(encoding="utf-8").rstrip("\n").split("\n"))
    ordered = np.array([int(counts[word]) for word in keyed.words], np.int64)
    return KeyedVectors(keyed.words, keyed.vectors, ordered, keyed.subwords)


def _vector_file(path: str | Path) -> tuple[Path, Path | None]:
    """The file with the vectors, and the file with the words' counts if it is a folder of ours."""
    known = [entry.name for entry in list_datasets() if entry.task == "vectors"]
    if str(path) in known:
        return dataset_files(str(path))[0], None
    path = Path(path)
    if path.is_file():
        return path, None
    if not path.is_dir():
        if _unfinished(path).is_dir():
            raise InputError(
                f"the training of {str(path)!r} has not ended",
                mend=f"go on with it: zhixing vectors train ... --out {path} --resume",
            )
        raise InputError(
            f"there are no word vectors {str(path)!r}",
            mend="give a folder that `zhixing vectors train` made, a file of word2vec, GloVe or fastText, or "
            + " or ".join(known),
        )
    try:
        verify_manifest(path)
    except ValueError as error:
        missing = not (path / MANIFEST).exists()
        raise InputError(
            "the folder holds no word vectors" if missing else "the word vectors are damaged",
            where=str(path),
            why=str(error),
            mend="give a folder that `zhixing vectors train` made"
            if missing
            else "copy them again, or train them again",
        ) from None
    for name in (FASTTEXT, VECTORS):
        if (path / name).is_file():
            return path / name, path / VOCABULARY
    raise InputError("the folder holds no word vectors", where=str(path), mend="give one of `zhixing vectors train`")


def import_vectors(source: str | Path, out: str | Path, *, limit: int | None = None) -> KeyedVectors:
    """Read vectors of any tool into a folder as `train_vectors` makes it; a fastText model stays whole."""
    folder = Path(out)
    _refuse_existing(folder, "take another folder")
    file, _ = _vector_file(source)
    layout = guess_layout(file)
    model = None
    if layout == "fasttext-bin" and limit is None:
        model = read_fasttext(file)
        keyed = model.keyed()
    else:
        keyed = load_vectors(source, limit=limit)
        if keyed.subwords is not None:
            raise InputError("a fastText model is imported whole", mend="leave the limit away")
    _write_folder(folder, keyed, model, {}, {"source": str(source), "layout": layout})
    say(f"next:  zhixing vectors similar {shlex.quote(str(folder))} {shlex.quote(_example(keyed))}")
    return keyed


def export_vectors(path: str | Path, out: str | Path, *, to: Form = "word2vec") -> None:
    """Write vectors as another tool reads them: word2vec (binary), word2vec-text, glove, fasttext-vec, fasttext-bin."""
    if to not in FORMS:
        raise InputError(f"there is no form {to!r}", mend=f"give one of {', '.join(FORMS)}")
    target = Path(out)
    _refuse_existing(target, "take another file")
    file, _ = _vector_file(path)
    if to == "fasttext-bin" and guess_layout(file) == "fasttext-bin":
        target.parent.mkdir(parents=True, exist_ok=True)
        write_fasttext(target, read_fasttext(file))  # with its output matrix
        return
    keyed = load_vectors(path)
    if keyed.subwords is not None and to != "fasttext-bin":
        say("the vectors of n-grams are left out: only words that were seen have vectors in this form")
    write_vectors(target, keyed, FORMS[to])  # type: ignore[arg-type]  # a value of FORMS


# ---- measuring -----------------------------------------------------------------------------------------------------


def evaluate_vectors(
    vectors: KeyedVectors, on: Sequence[str] = TESTS, *, among: int | None = None, seed: int = 0
) -> dict[str, SimilarityScore | list[AnalogyScore]]:
    """Each test's score: names of the catalogue, or files of word pairs or analogies, which their content tells apart.

    Analogies look for answers among the first `among` words; None: among all.
    """
    scores: dict[str, SimilarityScore | list[AnalogyScore]] = {}
    for name in on:
        path = _test_file(name)
        if _holds_analogies(path):
            scores[name] = analogy_accuracy(vectors, read_analogies(path), among=among)
        else:
            scores[name] = word_similarity(vectors, read_word_pairs(path), seed)
    return scores


def _test_file(name: str) -> Path:
    if name in TESTS:
        return dataset_files(name)[0]
    if not Path(name).is_file():
        raise InputError(f"there is no test {name!r}", mend=f"give a file, or one of {', '.join(TESTS)}")
    return Path(name)


def _holds_analogies(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b":")


def associations(
    vectors: KeyedVectors, tests: Sequence[str] = (), *, seed: int = 0
) -> dict[str, AssociationScore | InputError]:
    """WEAT of the named sets of words or TOML files; of all built-in sets if none is named.

    One that cannot be measured, because too few of its words have vectors, gives its error.
    """
    found: dict[str, AssociationScore | InputError] = {}
    for name in tests or ASSOCIATIONS:
        sets = ASSOCIATIONS[name] if name in ASSOCIATIONS else read_word_sets(Path(name))
        try:
            found[name] = word_association(vectors, sets, seed)
        except InputError as error:
            found[name] = error
    return found


def read_word_sets(path: Path) -> WordSets:
    """Four lists of words, x, y, a, b, and their `names`, from a TOML file."""
    if not path.is_file():
        raise InputError(
            f"there are no sets of words {str(path)!r}", mend=f"give a .toml file, or one of {', '.join(ASSOCIATIONS)}"
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not TOML
        raise InputError("the sets of words cannot be read", where=str(path), why=str(error)) from None
    lists: dict[str, Any] = {"names": table.get("names", ["x", "y", "a", "b"])}
    lists |= {name: table.get(name) for name in "xyab"}
    for name, words in lists.items():
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InputError(f"{name} is not a list of words", where=str(path), mend=f'write {name} = ["one", "two"]')
    if len(lists["names"]) != 4:
        raise InputError("there are not four names", where=str(path), mend='write names = ["x", "y", "a", "b"]')
    one, two, three, four = lists["names"]
    return WordSets((one, two, three, four), *(tuple(lists[name]) for name in "xyab"))


# ---- looking -------------------------------------------------------------------------------------------------------


def map_vectors(
    vectors: KeyedVectors, out: str | Path, words: Sequence[str] = (), *, most: int = 200, title: str = "Word vectors"
) -> int:
    """Draw a map of words as the SVG file `out`; how many are on it.

    Each of `words` is "king queen man woman" or "royals: king queen"; several of them are groups, by colour. None:
    the `most` most frequent words.
    """
    groups: list[str] = []
    drawn: list[str] = []
    for number, text in enumerate(words, 1):
        name, colon, rest = text.replace("：", ":").partition(":")
        fresh = [word for word in dict.fromkeys((rest if colon else text).split()) if word not in drawn]
        drawn += fresh
        groups += [name.strip() if colon else str(number)] * len(fresh)
    if not words:
        drawn = vectors.words[:most]
    svg = draw_map(vectors, drawn, groups if len(words) > 1 else None, title)
    atomic_write(Path(out), svg)
    return len(drawn)
