"""Sentence embeddings of a model on the disk: texts in, vectors out, near ones for texts that mean alike.

embedded = embed_texts("minilm", ["A man plays a guitar.", "Someone makes music."])
embedded.vectors @ embedded.vectors.T        # cosines
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from zhixing.errors import InputError
from zhixing.interchange.model_directory import read_any_model, read_config
from zhixing.models.bert import Bert, BertClassifier, BertMaskedLM
from zhixing.recipe import DataSettings
from zhixing.tasks.embedding import Embedded, TooLong, embed
from zhixing.text.catalogue import fetch_dataset, list_datasets
from zhixing.text.readers import file_kind, read_documents


def embed_texts(
    run: str | Path, texts: Sequence[str], *, normalize: bool = True, too_long: TooLong = "truncate"
) -> Embedded:
    """One vector for each text, by a BERT or DistilBERT folder or a data set that is one (minilm)."""
    return load_embedder(run, normalize=normalize, too_long=too_long)(texts)


def load_embedder(
    run: str | Path, *, normalize: bool = True, too_long: TooLong = "truncate"
) -> Callable[[Sequence[str]], Embedded]:
    """What embed_texts calls, for who has texts more than once: the model is read here."""
    models = [entry.name for entry in list_datasets() if entry.task == "model"]
    folder = fetch_dataset(str(run)) if str(run) in models else Path(run)
    if not folder.is_dir():
        raise InputError(f"there is no model {str(run)!r}", mend=f"give the folder of a bert, or {' or '.join(models)}")
    config = read_config(folder)  # first: a bag is no model that read_any_model knows, and its advice would mislead
    refused = InputError(
        f"a {(config.get('architectures') or [config.get('model_type')])[0]} gives no sentence embeddings",
        where=str(run),
        mend=f"give a bert, or {' or '.join(models)}",
    )
    if config.get("model_type") not in ("bert", "distilbert"):
        raise refused
    model, tokenizer, _ = read_any_model(folder)
    if not isinstance(model, Bert | BertMaskedLM | BertClassifier):
        raise refused
    return partial(embed, model, tokenizer, normalize=normalize, too_long=too_long)


def texts_of(path: str, text_column: str = "text") -> list[str]:
    """The texts of a file: the rows of a table, or the lines of any other file, without blank ones."""
    kind = file_kind(Path(path).name)
    if kind is not None and kind[0] != "text":
        return list(read_documents(path, DataSettings(source=path, text_column=text_column, duplicates="keep")))
    try:
        return lines_of(Path(path).read_bytes())
    except UnicodeDecodeError as error:
        raise InputError("the texts are not UTF-8", where=f"{path}, byte {error.start}", mend="convert them") from None


def lines_of(raw: bytes) -> list[str]:
    """Lines that are not blank; UnicodeDecodeError for bytes that are no UTF-8."""
    lines = raw.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    return [line for line in lines if line.strip()]
