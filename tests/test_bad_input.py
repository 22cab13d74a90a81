"""Everything a person can get wrong, through the real command line: exit code 2, one message that says what is wrong, where
and how to mend it, no traceback, nothing on stdout, and nothing left behind.

A case is a line of a table: it lays out its files in an empty folder, which is the working directory, and gives the command
line. `says` are what the message must name. The tables follow docs/design.md's way of the data.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard

from zhixing import cli

if TYPE_CHECKING:
    from zhixing.run import Run

GOOD = "The quick brown fox jumps over the lazy dog, and nobody was the least surprised at it.\n" * 40
GBK = "话说天下大势，分久必合，合久必分。".encode("gbk")


@dataclass(frozen=True)
class Case:
    name: str
    line: str  # the command line; a word cannot hold a blank
    says: tuple[str, ...]
    lay: Callable[[Path], object] = lambda folder: None
    stdin: bytes = b""
    mend: bool = True  # the message says how to mend it; False: so far only what is wrong and why
    leaves: str = ""  # what it may leave behind


def file(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Lay one file."""

    def lay(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return lay


def both(*lays: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [lay(folder) for lay in lays]


def deep(depth: int) -> str:
    return '{"text": ' + "[" * depth + "]" * depth + "}\n"


RAW_TEXT = [
    Case("missing", "train nowhere --out out", ("nowhere",)),
    Case("missing file", "train no/such/file.txt --out out", ("no/such/file.txt",)),
    Case("no name", 'train "" --out out', ("",)),
    Case("empty folder", "train texts --out out", ("texts",), lambda f: (f / "texts").mkdir()),
    Case("empty file", "train a.txt --out out", ("a.txt", "empty"), file("a.txt", "")),
    Case("blanks only", "train a.txt --out out", ("a.txt",), file("a.txt", " \n\t\n\u3000\n")),
    Case("not UTF-8, named in a folder with the byte", "train texts --out out", ("bad.txt", "byte 7", "UTF-8"),
         both(file("texts/good.txt", GOOD), file("texts/deep/bad.txt", b"Alice, \xff\xfe and more"))),
    Case("GBK, and it says so", "train a.txt --out out", ("a.txt", "byte 0", "GB18030"), file("a.txt", GBK * 20)),
    Case("ends in half a character", "train a.txt --out out", ("a.txt", "byte"), file("a.txt", GOOD.encode() + "春".encode()[:2])),
    Case("a lone surrogate in UTF-8's clothes", "train a.txt --out out", ("a.txt", "byte"), file("a.txt", GOOD.encode() + b"\xed\xa0\x80 x")),
    Case("UTF-16 without its mark", "train a.txt --out out", ("a.txt", "UTF-16"), file("a.txt", GOOD.encode("utf-16-le"))),
    Case("UTF-16 cut in a character", "train a.txt --out out", ("a.txt", "byte"), file("a.txt", GOOD.encode("utf-16") + b"\x41")),
    Case("a NUL", "train a.txt --out out", ("a.txt", "NUL", "byte"), file("a.txt", GOOD + "\0" + GOOD)),
    Case("a picture called text", "train a.txt --out out", ("a.txt",), file("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 9)),
    Case("no file of a known kind", "train texts --out out", ("texts", ".txt"), file("texts/a.pdf", "%PDF-1.4 ...")),
    Case("an unknown kind by name", "train a.docx --out out", ("a.docx",), file("a.docx", b"PK\3\4....")),
    Case("two megabytes without a blank", "train a.txt --out out", ("a.txt", "place to cut"), file("a.txt", "x" * 2_000_000)),
    Case("truncated gzip", "train a.txt.gz --out out", ("a.txt.gz",), file("a.txt.gz", gzip.compress(os.urandom(4000) + GOOD.encode())[:-900])),
    Case("not gzip", "train a.txt.gz --out out", ("a.txt.gz",), file("a.txt.gz", GOOD)),
    Case("gzip with a wrong checksum", "train a.txt.gz --out out", ("a.txt.gz",),
         lambda f: file("a.txt.gz", gzip.compress(GOOD.encode())[:-8] + b"\1\2\3\4\0\0\0\0")(f)),
    Case("truncated zstd", "train a.txt.zst --out out", ("a.txt.zst",), file("a.txt.zst", zstandard.compress(GOOD.encode())[:-9])),
    Case("not zstd", "train a.txt.zst --out out", ("a.txt.zst",), file("a.txt.zst", GOOD)),
    Case("truncated xz", "train a.txt.xz --out out", ("a.txt.xz",), file("a.txt.xz", b"\xfd7zXZ\0\0\4\xe6")),
    Case("a circle of links", "train texts/loop --out out", ("loop",),
         lambda f: ((f / "texts").mkdir(), (f / "texts/loop").symlink_to("loop"))),
    Case("a link to nothing", "train a.txt --out out", ("a.txt",), lambda f: (f / "a.txt").symlink_to("gone.txt")),
    Case("a pipe, which would never end", "train a.txt --out out", ("a.txt",), lambda f: os.mkfifo(f / "a.txt")),
    Case("a name of 300 letters", f"train {'x' * 300}.txt --out out", ("xxx",)),
]  # fmt: skip

RECORDS = [
    Case("bad JSON at line 3", "train a.jsonl --out out", ("a.jsonl:3",), file("a.jsonl", '{"text": "one"}\n{"text": "two"}\n{"text": three}\n')),
    Case("the last line cut off", "train a.jsonl --out out", ("a.jsonl:2",), file("a.jsonl", '{"text": "one"}\n{"text": "tw')),
    Case("an empty line inside", "train a.jsonl --out out", ("a.jsonl:2", "empty"), file("a.jsonl", '{"text": "one"}\n\n{"text": "two"}\n')),
    Case("no object", "train a.jsonl --out out", ("a.jsonl:1", "object"), file("a.jsonl", '["text"]\n')),
    Case("one JSON array, not lines", "train a.jsonl --out out", ("a.jsonl:1",), file("a.jsonl", '[\n{"text": "one"}\n]\n')),
    Case("no such column, the nearest named", "train a.jsonl --out out", ("a.jsonl:1", "'Text'"), file("a.jsonl", '{"Text": "one"}\n')),
    Case("column renamed in the recipe", "train a.jsonl data.text_column=body --out out", ("a.jsonl:1", "body"), file("a.jsonl", '{"text": "one"}\n')),
    Case("null", "train a.jsonl --out out", ("a.jsonl:2", "null"), file("a.jsonl", '{"text": "one"}\n{"text": null}\n')),
    Case("a number", "train a.jsonl --out out", ("a.jsonl:1", "42"), file("a.jsonl", '{"text": 42}\n')),
    Case("a list", "train a.jsonl --out out", ("a.jsonl:1", "list"), file("a.jsonl", '{"text": ["one"]}\n')),
    Case("empty text", "train a.jsonl --out out", ("a.jsonl:2", "empty"), file("a.jsonl", '{"text": "one"}\n{"text": "  "}\n')),
    Case("half a character", "train a.jsonl --out out", ("a.jsonl:1", "surrogate"), file("a.jsonl", '{"text": "a \\ud83d b"}\n')),
    Case("a NUL in JSON", "train a.jsonl --out out", ("a.jsonl:1", "NUL"), file("a.jsonl", '{"text": "a \\u0000 b"}\n')),
    Case("nested too deeply", "train a.jsonl --out out", ("a.jsonl:1",), file("a.jsonl", deep(200_000))),
    Case("JSON that is not UTF-8", "train a.jsonl --out out", ("a.jsonl:2", "UTF-8"), file("a.jsonl", b'{"text": "one"}\n{"text": "' + GBK + b'"}\n')),
    Case("a number of 5,000 digits", "train a.jsonl --out out", ("a.jsonl:1",), file("a.jsonl", '{"text": ' + "9" * 5000 + "}\n")),
    Case("only column names", "train a.csv --out out", ("a.csv",), file("a.csv", "id,text\n")),
    Case("an empty table", "train a.csv --out out", ("a.csv",), file("a.csv", "")),
    Case("csv without the column", "train a.csv --out out", ("a.csv:1", "'text'", "'body'"), file("a.csv", "id,body\n1,one\n")),
    Case("a row too short", "train a.csv --out out", ("a.csv:3", "fields"), file("a.csv", "id,text\n1,one\n2\n3,three\n")),
    Case("a row too long", "train a.csv --out out", ("a.csv:2", "fields"), file("a.csv", "id,text\n1,one, two\n")),
    Case("a quote never closed", "train a.csv --out out", ("a.csv:2", "quote"), file("a.csv", 'id,text\n1,"one\n2,two\n')),
    Case("an empty row", "train a.csv --out out", ("a.csv:3", "empty"), file("a.csv", "id,text\n1,one\n\n2,two\n")),
    Case("csv that is not UTF-8", "train a.csv --out out", ("a.csv:3", "UTF-8"), file("a.csv", b"id,text\n1,one\n2," + GBK + b"\n")),
    Case("tsv read with commas", "train a.tsv --out out", ("a.tsv:1",), file("a.tsv", "id,text\n1,one\n")),
    Case("csv of an old Mac", "train a.csv --out out", ("a.csv:1", "carriage return"), file("a.csv", "id,text\r1,one\r2,two\r")),
    Case("no parquet", "train a.parquet --out out", ("a.parquet",), file("a.parquet", b"PAR1 nothing PAR1")),
    Case("an empty parquet", "train a.parquet --out out", ("a.parquet",), file("a.parquet", b"")),
    Case("every record bad and skipped", "train a.jsonl data.on_bad_record=skip --out out", ("a.jsonl", "2"), file("a.jsonl", "no\nnor this\n")),
]  # fmt: skip

SPLIT_AND_TOKENS = [
    Case("too little to hold any of it out", "train a.txt --out out", ("3 characters",), file("a.txt", "Hi.")),
    Case("a vocabulary below the bytes", "train a.txt tokenizer.vocab_size=100 --out out", ("tokenizer.vocab_size", "258"), file("a.txt", GOOD)),
    Case("a vocabulary of no size", "train a.txt tokenizer.vocab_size=0 tokenizer.kind=char --out out", ("vocab",), file("a.txt", GOOD)),
    Case("a kind that is none", "train a.txt tokenizer.kind=bytes --out out", ("tokenizer.kind", "bpe"), file("a.txt", GOOD)),
    Case("a tokenizer that is not there", "train a.txt tokenizer.path=gone --out out", ("gone",), file("a.txt", GOOD)),
    Case("a tokenizer that is no tokenizer", "train a.txt tokenizer.path=t.json --out out", ("t.json",), both(file("a.txt", GOOD), file("t.json", "{}")), mend=False),
    Case("train a tokenizer on nothing", "tokenizer train nowhere --out t", ("nowhere",)),
    Case("train one of no kind", "tokenizer train a.txt --kind wordpiece --out t", ("wordpiece", "bpe"), file("a.txt", GOOD)),
    Case("train one too small", "tokenizer train a.txt --vocab-size 10 --out t", ("10",), file("a.txt", GOOD)),
    Case("train one into a file", "tokenizer train a.txt --out a.txt", ("a.txt",), file("a.txt", GOOD)),
    Case("report on no tokenizer", "tokenizer report gone a.txt", ("gone",), file("a.txt", GOOD)),
    Case("report on a broken one", "tokenizer report t.json a.txt", ("t.json",), both(file("a.txt", GOOD), file("t.json", "{]")), mend=False),
    Case("train one of no size", "tokenizer train a.txt --vocab-size 0 --out t", ("0",), file("a.txt", GOOD)),
    Case("train one over another", "tokenizer train a.txt --out t", ("t", "tokenizer already"), both(file("a.txt", GOOD), file("t/tokenizer.json", "{}"))),
    Case("a data set nobody knows", "data show austin", ("austin", "austen")),
    Case("fetch one nobody knows", "data fetch austin", ("austin", "austen")),
]  # fmt: skip


def recipe(text: str) -> Callable[[Path], object]:
    return both(file("a.txt", GOOD), file("r.toml", '[data]\nsource = "a.txt"\n' + text))


RECIPES = [
    Case("no such recipe", "train jane.toml --out out", ("jane.toml", "austen")),
    Case("print no such recipe", "recipes austin", ("austin", "austen")),
    Case("not TOML", "train r.toml --out out", ("r.toml", "TOML"), recipe("[train\n")),
    Case("the same key twice", "train r.toml --out out", ("r.toml",), recipe("[train]\nseed = 1\nseed = 2\n")),
    Case("not UTF-8", "train r.toml --out out", ("r.toml", "byte 2"), file("r.toml", b"# \xff\n")),
    Case("a folder called recipe.toml", "train r.toml --out out", ("r.toml",), lambda f: (f / "r.toml").mkdir()),
    Case("no text named", "train r.toml --out out", ("text",), file("r.toml", "[train]\nmax_steps = 3\n")),
    Case("unknown table", "train r.toml --out out", ("[trian]", "r.toml:3", "did you mean train"), recipe("[trian]\nseed = 1\n")),
    Case("unknown key", "train r.toml --out out", ("train.learning_rat", "r.toml:4", "did you mean learning_rate"), recipe("[train]\nlearning_rat = 1\n")),
    Case("a key outside every table", "train r.toml --out out", ("'seed'", "r.toml:1"), file("r.toml", "seed = 1\n")),
    Case("a table that is a number", "train r.toml --out out", ("model", "r.toml"), file("r.toml", "model = 1\n")),
    Case("a table that is a number, and a setting in it", "train r.toml model.d_model=16 --out out", ("model", "r.toml"), file("r.toml", "model = 1\n")),
    Case("several tables of one name", "train r.toml model.d_model=16 --out out", ("model", "r.toml"), file("r.toml", "[[model]]\nn_layers = 1\n")),
    Case("a seed too large", "train a.txt train.seed=9223372036854775808 --out out", ("train.seed", "9223372036854775807"), file("a.txt", GOOD)),
    Case("a hundred thousand threads", "train a.txt train.threads=100000 --out out", ("train.threads", "1024"), file("a.txt", GOOD)),
    Case("a setting that is not UTF-8", "train a.txt data.source=caf\udce9 --out out", ("caf\\udce9", "UTF-8"), file("a.txt", GOOD)),
    Case("a prompt longer than the context", f"train a.txt model.max_len=16 model.d_model=16 model.n_heads=2 train.max_steps=1 eval.prompts=['ok','{'word,' * 20}'] --out out",
         ("prompt 2", "eval.prompts", "context is 16", "15 tokens"), file("a.txt", GOOD), leaves="out"),
    Case("text for a number", "train r.toml --out out", ("model.d_model", "r.toml:4", "whole number"), recipe('[model]\nd_model = "big"\n')),
    Case("a fraction for a whole number", "train r.toml --out out", ("train.max_steps", "r.toml:4"), recipe("[train]\nmax_steps = 1.5\n")),
    Case("true for a number", "train r.toml --out out", ("train.seed", "r.toml:4"), recipe("[train]\nseed = true\n")),
    Case("a choice that is none", "train r.toml --out out", ("train.optim", "muon"), recipe('[train]\noptim = "lion"\n')),
    Case("no setting", "train a.txt max_steps=3 --out out", ("max_steps=3", "table.key=value"), file("a.txt", GOOD)),
    Case("a setting without a value", "train a.txt train.max_steps --out out", ("train.max_steps", "table.key=value"), file("a.txt", GOOD)),
    Case("a setting of no table", "train a.txt trian.max_steps=3 --out out", ("trian", "did you mean train"), file("a.txt", GOOD)),
    Case("a setting of no key", "train a.txt train.max_step=3 train.max_steps=1 --out out", ("train.max_step", "did you mean max_steps"), file("a.txt", GOOD)),
    Case("two settings in one word", "train a.txt train.max_steps=3,train.seed=1 --out out", ("train.max_steps",), file("a.txt", GOOD)),
    Case("width not divisible by heads", "train a.txt model.d_model=250 train.max_steps=1 --out out", ("model.d_model", "250", "252"), file("a.txt", GOOD)),
    Case("heads of odd size", "train a.txt model.d_model=36 model.n_heads=4 train.max_steps=1 --out out", ("model.n_heads", "odd"), file("a.txt", GOOD)),
    Case("grouped queries that do not divide", "train a.txt model.n_kv_heads=3 train.max_steps=1 --out out", ("model.n_kv_heads", "3"), file("a.txt", GOOD)),
    Case("grouped queries in gpt2", "train a.txt model.layout=gpt2 model.n_kv_heads=2 train.max_steps=1 --out out", ("gpt2", "qwen3"), file("a.txt", GOOD)),
    Case("batch 0", "train a.txt train.per_device_train_batch_size=0 train.max_steps=1 --out out", ("train.per_device_train_batch_size", "1"), file("a.txt", GOOD)),
    Case("no steps", "train a.txt train.max_steps=0 --out out", ("train.max_steps", "0"), file("a.txt", GOOD)),
    Case("a rate of 0", "train a.txt train.learning_rate=0 train.max_steps=1 --out out", ("train.learning_rate", "above 0"), file("a.txt", GOOD)),
    Case("a rate below 0", "train a.txt train.learning_rate=-0.1 train.max_steps=1 --out out", ("train.learning_rate", "-0.1"), file("a.txt", GOOD)),
    Case("a rate that is no number", "train a.txt train.learning_rate=nan train.max_steps=1 --out out", ("train.learning_rate", "nan"), file("a.txt", GOOD)),
    Case("an infinite rate", "train a.txt train.learning_rate=inf train.max_steps=1 --out out", ("train.learning_rate", "inf"), file("a.txt", GOOD)),
    Case("all dropped", "train a.txt model.dropout=1.0 train.max_steps=1 --out out", ("model.dropout", "below 1"), file("a.txt", GOOD)),
    Case("all held out", "train a.txt data.heldout_fraction=1.0 train.max_steps=1 --out out", ("data.heldout_fraction", "below 1"), file("a.txt", GOOD)),
    Case("a context of one token", "train a.txt model.max_len=1 train.max_steps=1 --out out", ("model.max_len", "2"), file("a.txt", GOOD)),
    Case("momentum above 1", "train a.txt train.momentum=1.5 train.max_steps=1 --out out", ("train.momentum",), file("a.txt", GOOD)),
    Case("a beta of 1", "train a.txt train.adam_beta2=1.0 train.max_steps=1 --out out", ("train.adam_beta2",), file("a.txt", GOOD)),
    Case("weight decay below 0", "train a.txt train.weight_decay=-1.0 train.max_steps=1 --out out", ("train.weight_decay",), file("a.txt", GOOD)),
    Case("clipping below 0", "train a.txt train.max_grad_norm=-1.0 train.max_steps=1 --out out", ("train.max_grad_norm",), file("a.txt", GOOD)),
    Case("a decay longer than the run", "train a.txt train.decay_fraction=1.5 train.max_steps=1 --out out", ("train.decay_fraction",), file("a.txt", GOOD)),
    Case("a pointer for a gpt", "train a.txt model.pointer=true train.max_steps=1 --out out", ("model.pointer", "lstm"), file("a.txt", GOOD)),
    Case("word vectors for a gpt", "train a.txt model.embeddings=v.txt train.max_steps=1 --out out", ("model.embeddings", "lstm"), file("a.txt", GOOD)),
    Case("word vectors that are not there", "train a.txt model.family=lstm model.embeddings=v.txt --out out", ("v.txt",), file("a.txt", GOOD), mend=False, leaves="out"),
    Case("larger than any memory", "train a.txt model.d_model=262144 model.n_layers=400 --out out", ("memory",), file("a.txt", GOOD), leaves="out"),
]  # fmt: skip

PLACES = [
    Case("resume what was never begun", "train a.txt --out texts --resume", ("texts",), both(file("a.txt", GOOD), file("texts/a.txt", GOOD))),
    Case("a folder with something in it", "train a.txt --out texts", ("texts", "--resume"), both(file("a.txt", GOOD), file("texts/a.txt", GOOD))),
    Case("a file for a folder", "train a.txt --out b.txt", ("b.txt",), both(file("a.txt", GOOD), file("b.txt", GOOD))),
    Case("a folder inside a file", "train a.txt --out a.txt/run", ("a.txt",), file("a.txt", GOOD)),
    Case("a folder whose name is not UTF-8", "train caf\udce9 --out out", ("caf\\udce9", "UTF-8"), file("caf\udce9/a.txt", GOOD)),
    Case("a run whose name is not UTF-8", "train a.txt --out caf\udce9", ("caf\\udce9", "UTF-8"), file("a.txt", GOOD)),
    Case("generate from nothing", "generate nowhere Once", ("nowhere",)),
    Case("generate from a file", "generate a.txt Once", ("a.txt",), file("a.txt", GOOD)),
    Case("generate from an empty folder", "generate texts Once", ("texts",), lambda f: (f / "texts").mkdir()),
    Case("generate from a folder of text", "generate texts Once", ("texts",), file("texts/a.txt", GOOD)),
    Case("show nothing", "show nowhere", ("nowhere",)),
    Case("evaluate nothing", "evaluate nowhere", ("nowhere",)),
    Case("export nothing", "export nowhere there", ("nowhere",)),
    Case("import nothing", "import nowhere here", ("nowhere",)),
    Case("import no model", "import texts here", ("texts",), file("texts/a.txt", GOOD)),
    Case("import broken JSON", "import m here", ("config.json",), file("m/config.json", "{"), mend=False),
    Case("import JSON that is no object", "import m here", ("config.json",), file("m/config.json", "[1]"), mend=False),
    Case("import a family we do not know", "import m here", ("bloom",), file("m/config.json", '{"model_type": "bloom"}')),
    Case("import code", "import m here", ("config.json",), file("m/config.json", '{"model_type": "mine", "auto_map": {"AutoModel": "x.Y"}}')),
    Case("import a config without sizes", "import m here", ("config.json",), file("m/config.json", '{"model_type": "gpt2"}'), mend=False),
]  # fmt: skip


def labelled(*rows: tuple[object, object]) -> str:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


MOODS = labelled(*((f"a {'lovely' if i % 2 else 'dull'} film, the {i}th of them", "np"[i % 2]) for i in range(40)))
BAG = "task.kind=classification model.family=bag bag.buckets=100 model.d_model=4 bag.epochs=2"
CNN = "task.kind=classification model.family=textcnn tokenizer.kind=char model.d_model=8 model.n_filters=4 train.max_steps=1"

CLASSIFICATION = [
    Case("csv with other column names", f"train a.csv {BAG} --out out", ("a.csv:1", "'text'", "'wording'"), file("a.csv", "wording,mark\none,1\ntwo,2\n")),
    Case("two columns that could be it", f"train a.csv {BAG} --out out", ("a.csv:1", "'label'"), file("a.csv", "text,topic,category\none,1,2\ntwo,2,1\n")),
    Case("label_column wrong, the nearest named", f"train a.jsonl {BAG} data.label_column=lable --out out", ("a.jsonl:1", "lable", "'label'"), file("a.jsonl", MOODS)),
    Case("a label null", f"train a.jsonl {BAG} --out out", ("a.jsonl:41", "null"), file("a.jsonl", MOODS + labelled(("one", None)))),
    Case("a label empty", f"train a.jsonl {BAG} --out out", ("a.jsonl:41", "label", "empty"), file("a.jsonl", MOODS + labelled(("one", " ")))),
    Case("a label missing", f"train a.jsonl {BAG} --out out", ("a.jsonl:41", "label"), file("a.jsonl", MOODS + '{"text": "one"}\n')),
    Case("a label of csv empty", f"train a.csv {BAG} --out out", ("a.csv:3", "empty"), file("a.csv", "text,label\none,n\ntwo,\n")),
    Case("a label with a fraction", f"train a.jsonl {BAG} --out out", ("a.jsonl:1", "1.5", "score_column"), file("a.jsonl", labelled(("one", 1.5)))),
    Case("a label that is a table", f"train a.jsonl {BAG} --out out", ("a.jsonl:1", "dict"), file("a.jsonl", labelled(("one", {})))),
    Case("a test label unseen", f"train a.jsonl {BAG} task.test=t.jsonl --out out", ("t.jsonl:2", "'pp'", "'p'"), both(file("a.jsonl", MOODS), file("t.jsonl", labelled(("one", "p"), ("two", "pp"))))),
    Case("a test text of two labels", f"train a.jsonl {BAG} task.test=t.jsonl --out out", ("t.jsonl:2", "2 labels"), both(file("a.jsonl", MOODS), file("t.jsonl", labelled(("one", ["p"]), ("two", ["p", "n"]))))),
    Case("a test that is not there", f"train a.jsonl {BAG} task.test=gone.jsonl --out out", ("gone.jsonl",), file("a.jsonl", MOODS)),
    Case("one class only", f"train a.jsonl {BAG} --out out", ("a.jsonl", "'n'", "two labels"), file("a.jsonl", labelled(*((f"text {i}", "n") for i in range(30))))),
    Case("one text", f"train a.jsonl {BAG} --out out", ("a.jsonl",), file("a.jsonl", labelled(("one", "n")))),
    Case("an empty row", f"train a.csv {BAG} --out out", ("a.csv:3", "empty"), file("a.csv", "text,label\none,n\n\ntwo,p\n")),
    Case("an empty text", f"train a.jsonl {BAG} --out out", ("a.jsonl:41", "empty"), file("a.jsonl", MOODS + labelled(("", "n")))),
    Case("a text of 100,000 words", f"train a.jsonl {CNN} task.on_too_long=error --out out", ("a.jsonl:1", "tokens", "truncate"),
         file("a.jsonl", labelled(("word " * 100_000, "n")) + MOODS), leaves="out"),
    Case("nothing held out", f"train a.jsonl {BAG} data.heldout_fraction=0 --out out", ("heldout_fraction",), file("a.jsonl", MOODS)),
    Case("regression without a column", "train a.jsonl task.kind=regression model.family=bag --out out", ("score_column",), file("a.jsonl", MOODS)),
    Case("regression of a column that is not there", "train a.jsonl task.kind=regression data.score_column=labels model.family=bag --out out", ("a.jsonl:1", "labels", "'label'"), file("a.jsonl", MOODS)),
    Case("regression of words", "train a.jsonl task.kind=regression data.score_column=label model.family=bag --out out", ("a.jsonl:1", "no number"), file("a.jsonl", MOODS)),
    Case("scores for labels", f"train a.jsonl {BAG} data.score_column=stars --out out", ("task.kind", "regression"), file("a.jsonl", '{"text": "one", "stars": 1}\n{"text": "two", "stars": 2}\n{"text": "three", "stars": 3}\n')),
    Case("a bag that writes", "train a.txt model.family=bag --out out", ("model.family", "bag", "classification"), file("a.txt", GOOD)),
    Case("a kind that is none", "train a.jsonl task.kind=classify --out out", ("task.kind", "classification"), file("a.jsonl", MOODS)),
    Case("a gpt on masked words", "train a.jsonl task.kind=classification task.pretrain_steps=5 --out out", ("task.pretrain_steps", "bert"), file("a.jsonl", MOODS)),
    Case("LoRA of a bag", f"train a.jsonl {BAG} model.lora_rank=4 --out out", ("model.lora_rank", "bag"), file("a.jsonl", MOODS)),
    Case("a bag that starts from another", f"train a.jsonl {BAG} task.start=x --out out", ("task.start", "bag"), file("a.jsonl", MOODS)),
    Case("start from nothing", "train a.jsonl task.kind=classification task.start=gone --out out", ("gone",), file("a.jsonl", MOODS), leaves="out"),
    Case("filters of no number", f"train a.jsonl {CNN} model.n_filters=0 --out out", ("model.n_filters", "1"), file("a.jsonl", MOODS)),
    *(Case(f"a bag of {setting}", f"train a.jsonl {BAG} bag.{setting} --out out", ("bag." + setting.partition("=")[0], says), file("a.jsonl", MOODS))
      for setting, says in (("epochs=0", "1"), ("ngrams=0", "1"), ("buckets=-1", "0"), ("buckets=1073741825", "1073741824"), ("min_count=0", "1"),
                            ("min_chars=0", "1"), ("max_chars=-1", "0"), ("threads=0", "1"), ("threads=5000", "1024"), ("learning_rate=0", "above 0"),
                            ("rates_power=-1", "at least 0"), ("power=1.5", "0 to 1"), ("dropout=1", "below 1"))),
    Case("a classifier over nothing", "classify nowhere text", ("nowhere",)),
    Case("classify with an empty folder", "classify texts text", ("texts",), lambda f: (f / "texts").mkdir()),
    Case("classify with a run that is not finished", "classify r text", ("r", "--resume"), file("r/recipe.toml", "")),
]  # fmt: skip


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(line: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        words = [word if word != '""' else "" for word in line.split(" ")]
        code = cli.main(words)
        return code, *capsys.readouterr()

    return run


def refused(case: Case, code: int, out: str, err: str) -> None:
    assert "Traceback" not in err, err
    assert (code, out) == (2, ""), err
    begins = [line.startswith("error: ") for line in err.splitlines()]
    assert sum(begins) == 1, err
    message = "\n".join(err.splitlines()[begins.index(True) :])
    missing = [part for part in case.says if part not in message]
    assert not missing, f"the message does not name {missing}:\n{message}"
    if case.mend:
        assert "mend: " in message, f"the message does not say how to mend it:\n{message}"
    assert len(message) < 2000, "a message is read by a person"


def ids(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", [*RAW_TEXT, *RECORDS, *SPLIT_AND_TOKENS, *RECIPES, *PLACES, *CLASSIFICATION], ids=ids)
def test_refused(case: Case, command: Callable[..., tuple[int, str, str]]) -> None:
    here = Path.cwd()
    case.lay(here)
    before = sorted(p.name for p in here.iterdir())
    refused(case, *command(case.line, case.stdin))
    after = sorted(p.name for p in here.iterdir() if not _only_a_lock(p) and p.name != case.leaves)
    assert after == before, "nothing is left behind, and nothing is gone"


def _only_a_lock(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and {p.name for p in path.iterdir()} == {"run.lock"}


# ---- a run that exists ----------------------------------------------------------------------------------------------

GENERATE = [
    Case("temperature below 0", "generate RUN x --temperature -1", ("temperature", "-1")),
    Case("temperature no number", "generate RUN x --temperature nan", ("temperature", "nan"), mend=False),
    Case("temperature without end", "generate RUN x --temperature inf", ("temperature", "inf"), mend=False),
    Case("top-k below 0", "generate RUN x --top-k -1", ("top_k", "-1"), mend=False),
    Case("top-p of 0", "generate RUN x --top-p 0", ("top_p", "above 0")),
    Case("top-p above 1", "generate RUN x --top-p 1.5", ("top_p", "1.5")),
    Case("min-p above 1", "generate RUN x --min-p 2", ("min_p", "2")),
    Case("a penalty of 0", "generate RUN x --repetition-penalty 0", ("repetition_penalty", "above 0")),
    Case("a penalty that leaves fp32", "generate RUN x --repetition-penalty 1e-300", ("repetition_penalty", "0.001")),
    Case("a length penalty beyond numbers", "generate RUN x --num-beams 2 --length-penalty 1e300", ("length_penalty", "10")),
    Case("and one below them", "generate RUN x --num-beams 2 --length-penalty=-1e300", ("length_penalty", "-10")),
    Case("no tokens", "generate RUN x --max-new-tokens 0", ("max_new_tokens", "1"), mend=False),
    Case("fewer than none", "generate RUN x --max-new-tokens -1", ("max_new_tokens", "-1"), mend=False),
    Case("none of them", "generate RUN x --n 0", ("n = 0",), mend=False),
    Case("a milliard of them", "generate RUN x --n 1000000000", ("n = 1000000000", "1024"), mend=False),
    Case("several of the likeliest", "generate RUN x --n 2 --temperature 0", ("n = 2", "temperature")),
    Case("no beams", "generate RUN x --num-beams 0", ("num_beams", "1"), mend=False),
    Case("beams and a penalty", "generate RUN x --num-beams 2 --repetition-penalty 2", ("repetition_penalty", "num_beams")),
    Case("a stop of nothing", 'generate RUN x --stop ""', ("stop",), mend=False),
    Case("logprobs below 0", "generate RUN x --logprobs -1", ("logprobs", "-1"), mend=False),
    Case("a prompt longer than the model looks back", f"generate RUN {'春眠不觉晓' * 200}", ("64",)),
    Case("a prompt that is not UTF-8", "generate RUN -", ("stdin", "byte 3", "UTF-8"), stdin=b"abc\xff"),
    Case("a prompt word that is not UTF-8", "generate RUN ok ab\udcff", ("prompt 2", "byte 2", "UTF-8")),
    Case("streamed with a wrong setting", "generate RUN x --stream --top-p 0", ("top_p",)),
    Case("evaluate on nothing", "evaluate RUN nowhere", ("nowhere",)),
    Case("evaluate on emptiness", "evaluate RUN a.txt", ("a.txt",), file("a.txt", "\n \n")),
    Case("evaluate on broken text", "evaluate RUN a.txt", ("a.txt", "byte 5"), file("a.txt", b"abcde\xff")),
    Case("export to what we do not know", "export RUN there --to onnx", ("onnx", "transformers")),
    Case("export in shards of no size", "export RUN there --max-shard-size tiny", ("tiny", "100MB")),
    Case("export in shards of nothing", "export RUN there --max-shard-size 0", ("0",)),
    Case("export onto something", "export RUN there", ("there",), file("there/a.txt", GOOD)),
    Case("import onto something", "import RUN there", ("there",), file("there/a.txt", GOOD)),
    Case("train into a finished run", "train a.txt --out RUN", ("--resume",), file("a.txt", GOOD)),
]  # fmt: skip


@pytest.mark.parametrize("case", GENERATE, ids=ids)
def test_refused_with_a_good_run(case: Case, command: Callable[..., tuple[int, str, str]], tiny_run: Run) -> None:
    case.lay(Path.cwd())
    before = sorted(p.name for p in Path.cwd().iterdir())
    refused(case, *command(case.line.replace("RUN", str(tiny_run.path)), case.stdin))
    assert sorted(p.name for p in Path.cwd().iterdir()) == before


def change(name: str, edit: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    """Edit a JSON file of the run."""

    def lay(run: Path) -> None:
        values = json.loads((run / name).read_text(encoding="utf-8"))
        edit(values)
        (run / name).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")

    return lay


def flip(name: str, at: int) -> Callable[[Path], object]:
    """Flip one bit; `at` below 0 counts from the end."""

    def lay(run: Path) -> None:
        data = bytearray((run / name).read_bytes())
        data[at] ^= 1
        (run / name).write_bytes(bytes(data))

    return lay


def cut(name: str, keep: float) -> Callable[[Path], object]:
    def lay(run: Path) -> None:
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[: int(len(data) * keep)])

    return lay


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(content)


def header(claims: object) -> bytes:
    """A safetensors file whose header makes claims and that holds nothing else."""
    text = json.dumps(claims).encode()
    return struct.pack("<Q", len(text)) + text


DAMAGED = [
    Case("a bit of the header", "generate RUN x", ("model.safetensors",), flip("model.safetensors", 20), mend=False),
    Case("half the weights", "generate RUN x", ("model.safetensors",), cut("model.safetensors", 0.5), mend=False),
    Case("no weights", "generate RUN x", ("model.safetensors",), lambda run: (run / "model.safetensors").unlink(), mend=False),
    Case("weights of no bytes", "generate RUN x", ("model.safetensors",), write("model.safetensors", b""), mend=False),
    Case("a header of 2**60 bytes", "generate RUN x", ("model.safetensors",), write("model.safetensors", struct.pack("<Q", 1 << 60)), mend=False),
    Case("a tensor of 2**50 numbers", "generate RUN x", ("model.safetensors",),
         write("model.safetensors", header({"x": {"dtype": "F32", "shape": [1 << 25, 1 << 25], "data_offsets": [0, 4]}})), mend=False),
    Case("a pickle in place of the weights", "generate RUN x", ("safetensors",),
         lambda run: ((run / "model.safetensors").unlink(), (run / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n"))),
    Case("no config", "generate RUN x", ("not finished",), lambda run: (run / "config.json").unlink()),
    Case("half a config", "generate RUN x", ("config.json",), cut("config.json", 0.5), mend=False),
    Case("a config of another width", "generate RUN x", (), change("config.json", lambda c: c.update(hidden_size=64)), mend=False),
    Case("a config of a million layers", "generate RUN x", (), change("config.json", lambda c: c.update(num_hidden_layers=10**6))),
    Case("a config of another family", "generate RUN x", ("bert",), change("config.json", lambda c: c.update(model_type="bert"))),
    Case("text for a size", "generate RUN x", ("hidden_size",), change("config.json", lambda c: c.update(hidden_size="wide"))),
    Case("no tokenizer", "generate RUN x", ("tokenizer",), lambda run: (run / "tokenizer.json").unlink()),
    Case("half a tokenizer", "generate RUN x", ("tokenizer.json",), cut("tokenizer.json", 0.5), mend=False),
]  # fmt: skip


@pytest.fixture
def copied(tiny_run: Run, tmp_path: Path) -> Path:
    """A copy of the tiny run that a test may damage."""
    return Path(shutil.copytree(tiny_run.path, tmp_path / "run"))


@pytest.mark.parametrize("sealed", [True, False], ids=["with its manifest", "without a manifest"])
@pytest.mark.parametrize("case", DAMAGED, ids=ids)
def test_a_damaged_run_is_refused(
    case: Case, sealed: bool, command: Callable[..., tuple[int, str, str]], copied: Path
) -> None:
    """Whether the manifest tells, or the folder has none, as those of other tools."""
    if not sealed:
        (copied / "MANIFEST.json").unlink(missing_ok=True)
    case.lay(copied)
    says = () if sealed else case.says  # the manifest names the file first, whatever is wrong inside
    refused(dataclasses.replace(case, says=says), *command(case.line.replace("RUN", str(copied))))


def test_one_bit_of_the_weights_is_noticed(command: Callable[..., tuple[int, str, str]], copied: Path) -> None:
    flip("model.safetensors", -100)(copied)
    refused(Case("", "", ("model.safetensors",)), *command(f"generate {copied} x"))


def test_the_tokenizer_of_another_run_is_refused(command: Callable[..., tuple[int, str, str]], copied: Path) -> None:
    from zhixing.tokens.tokenizer import train_tokenizer

    train_tokenizer([GOOD], "bpe", 300).save(copied)
    for sealed in (True, False):
        if not sealed:
            (copied / "MANIFEST.json").unlink(missing_ok=True)
        refused(Case("", "", ("tokenizer",)), *command(f"generate {copied} x"))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.learning_rate=0.5", "train.learning_rate"),
        ("model.n_layers=3", "model.n_layers"),
        ("train.seed=7", "train.seed"),
    ],
)
def test_resume_with_another_recipe(
    setting: str,
    says: str,
    command: Callable[..., tuple[int, str, str]],
    copied: Path,
    tiny_folder: Path,
    tiny_settings: tuple[str, ...],
) -> None:
    line = " ".join(["train", str(tiny_folder), *tiny_settings, setting, "--out", str(copied), "--resume"])
    refused(Case("", line, (says, "recipe.toml")), *command(line))


def test_resume_with_other_text(
    command: Callable[..., tuple[int, str, str]], copied: Path, tmp_path: Path, tiny_settings: tuple[str, ...]
) -> None:
    file("other/a.txt", GOOD)(tmp_path)
    line = " ".join(["train", str(tmp_path / "other"), *tiny_settings, "--out", str(copied), "--resume"])
    refused(Case("", line, ("data.source",)), *command(line))


def test_a_text_one_may_not_read(tmp_path: Path) -> None:
    """As a user without rights: root may read everything."""
    tmp_path.chmod(0o777)
    locked = tmp_path / "locked.txt"
    locked.write_text(GOOD)
    locked.chmod(0)
    code = "import contextlib, io, os, sys; from zhixing.cli import main\n"
    if os.geteuid() == 0:  # become nobody, after everything is imported: nobody may not even read Python's own files
        code += "with contextlib.redirect_stderr(io.StringIO()): main(['train', 'nowhere'])\nos.setgid(65534); os.setuid(65534)\n"
    code += "sys.exit(main())"
    for folder in tmp_path.parents[:2]:  # pytest's own, which only their owner may enter
        folder.chmod(folder.stat().st_mode | 0o011)
    line = [sys.executable, "-c", code, "train", str(locked), "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    process = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment)
    refused(Case("", "", ("locked.txt",)), process.returncode, process.stdout, process.stderr)


def test_a_record_on_a_bad_line_is_put_aside_and_counted(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, tiny_settings: tuple[str, ...]
) -> None:
    """The other side of the coin: with quarantine the good ones are used, and the bad ones are kept with their reasons."""
    sentences = [f"Sentence number {n} says that {n} times two is {2 * n}, which is true." for n in range(400)]
    rows = [json.dumps({"text": text}) for text in sentences]
    rows[17], rows[90] = '{"text": null}', "no JSON at all"
    file("a.jsonl", "\n".join(rows))(Path.cwd())
    settings = [s for s in tiny_settings if "max_steps" not in s and "eval_steps" not in s]
    line = " ".join(["train a.jsonl data.on_bad_record=quarantine --out out train.max_steps=2", *settings])
    code, _, err = command(line)
    assert code == 0, err
    aside = [json.loads(row) for row in Path("out/quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["where"] for row in aside] == ["a.jsonl:18", "a.jsonl:91"]
    counts = json.loads(Path("out/data/facts.json").read_text(encoding="utf-8"))["counts"]
    assert counts["bad_records"] == 2
    assert counts["documents"] == 398


def test_what_is_skipped_is_said(command: Callable[..., tuple[int, str, str]]) -> None:
    texts = Path("texts")
    texts.mkdir()
    (texts / "good.txt").write_text(GOOD * 3, encoding="utf-8")
    (texts / "bad.txt").write_bytes(GOOD.encode() + b"\xff\xfe")
    small = "model.d_model=16 model.n_layers=1 model.n_heads=2 model.max_len=16 train.max_steps=2 eval.max_new_tokens=2"
    code, _, err = command(f"train texts data.on_bad_record=skip {small} --out out")
    assert code == 0, err
    assert "left out: bad records 1, files 0" in err and "bad.txt, byte" in err


SMALL = (
    "model.d_model=16 model.n_layers=1 model.n_heads=2 train.max_steps=2 eval.max_new_tokens=2 tokenizer.vocab_size=300"
)


@pytest.mark.parametrize("name", ["📚", "𠮷", 'a"b\\c', "two\nlines"])
def test_a_folder_of_any_name_can_be_trained_on(name: str, command: Callable[..., tuple[int, str, str]]) -> None:
    file(f"{name}/a.txt", GOOD)(Path.cwd())
    code, out, err = command(f"train {name} {SMALL} model.max_len=16 --out out")
    assert (code, out) == (0, "out\n"), err


@pytest.mark.parametrize("max_len", [2, 3, 8])
def test_the_samples_fit_into_a_small_context(max_len: int, command: Callable[..., tuple[int, str, str]]) -> None:
    file("a.txt", GOOD)(Path.cwd())
    code, _, err = command(f"train a.txt {SMALL} model.max_len={max_len} --out out")
    assert code == 0, err
    assert Path("out/samples.jsonl").read_text(encoding="utf-8")


def test_text_whose_beginnings_are_blank_still_gives_a_sample(command: Callable[..., tuple[int, str, str]]) -> None:
    file("a.txt", "\n" * 5000 + "x")(Path.cwd())
    code, _, err = command(f"train a.txt {SMALL} model.max_len=16 --out out")
    assert code == 0, err
    assert json.loads(Path("out/samples.jsonl").read_text(encoding="utf-8").splitlines()[0])["prompt"] == ""


def test_the_last_window_may_hold_nothing_but_the_end(command: Callable[..., tuple[int, str, str]]) -> None:
    """Held-out text of every length modulo the context is measured."""
    for number in range(4):
        file(f"{number}.txt", GOOD[: 1000 + 37 * number])(Path.cwd())
        code, _, err = command(f"train {number}.txt {SMALL} tokenizer.vocab_size=258 model.max_len=2 --out out{number}")
        assert code == 0, err


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: (data / "train" / "00000.bin").write_bytes(b"xx"), "00000.bin"),
        (lambda data: (data / "facts.json").unlink(), "facts.json"),
        (lambda data: (data / "MANIFEST.json").unlink(), "MANIFEST.json"),
    ],
)
def test_resume_with_damaged_data(
    spoil: Callable[[Path], object],
    says: str,
    command: Callable[..., tuple[int, str, str]],
    copied: Path,
    tiny_folder: Path,
    tiny_settings: tuple[str, ...],
) -> None:
    spoil(copied / "data")
    line = " ".join(["train", str(tiny_folder), *tiny_settings, "--out", str(copied), "--resume"])
    refused(Case("", "", (says, "remove")), *command(line))
    shutil.rmtree(copied / "data")
    assert command(line)[0] == 0, "what the message says to do works"


def test_a_damaged_best_checkpoint_does_not_cost_the_run(
    command: Callable[..., tuple[int, str, str]], copied: Path, tiny_folder: Path, tiny_settings: tuple[str, ...]
) -> None:
    """The best is not the newest here; the run ends with the newest one, and says so."""
    newest = max((copied / "checkpoints").iterdir())
    for path in (copied / "checkpoints").iterdir():
        if path != newest:
            shutil.rmtree(path)
    line = " ".join(["train", str(tiny_folder), *tiny_settings, "--out", str(copied), "--resume"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "zhixing.training.loop.Watch.see", lambda watch, step, train, heldout: setattr(watch, "best_step", 20)
        )
        code, _, err = command(line)
    assert code == 0, err
    assert "warning: there is no checkpoint of step 20" in err and "last step is taken instead" in err


def test_begun_anew_with_another_vocabulary_after_a_kill_in_between(
    command: Callable[..., tuple[int, str, str]],
) -> None:
    """Killed after the text was prepared and before training began: there is no recipe.toml yet."""
    file("a.txt", GOOD)(Path.cwd())
    line = f"train a.txt {SMALL} model.max_len=16 --out out"
    assert command(line)[0] == 0
    run = Path("out")
    for path in run.iterdir():
        if path.name not in ("data", "run.lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, _, err = command(line + " tokenizer.vocab_size=280 --resume")
    assert code == 0, err
    assert "vocabulary of 280" in err and json.loads((run / "config.json").read_text())["vocab_size"] == 280


def test_evaluate_reads_the_column_that_the_run_was_trained_on(command: Callable[..., tuple[int, str, str]]) -> None:
    rows = [json.dumps({"body": f"Sentence number {n} says that {n} times two is {2 * n}."}) for n in range(100)]
    file("a.jsonl", "\n".join(rows))(Path.cwd())
    code, _, err = command(f"train a.jsonl data.text_column=body {SMALL} model.max_len=16 --out out")
    assert code == 0, err
    code, _, err = command("evaluate out a.jsonl")
    assert code == 0, err


# ---- a classifier that exists ---------------------------------------------------------------------------------------

ASKED = [
    Case("classify with a language model", "classify LANGUAGE text", ("no classifier", "tiny"), mend=True),
    Case("sentiment of a language model", "sentiment LANGUAGE text", ("no classifier",)),
    Case("explain a language model", "explain LANGUAGE text", ("no classifier",)),
    Case("compare with a language model", "compare BAG LANGUAGE", ("no classifier",)),
    Case("generate from a classifier", "generate BAG text", ("classifier", "zhixing classify")),
    Case("export a classifier of ours", "export BAG there", ("classifier",)),
    Case("sentiment of topics", "sentiment BAG text", ("negative", "n, p", "rotten-tomatoes")),
    Case("evaluate without labels", "evaluate BAG a.jsonl", ("a.jsonl:1", "label"), file("a.jsonl", '{"text": "one"}\n')),
    Case("evaluate on plain text", "evaluate BAG a.txt", ("a.txt:1", "__label__"), file("a.txt", GOOD)),
    Case("evaluate on other labels", "evaluate BAG a.jsonl", ("a.jsonl:1", "'q'", "'p'"), file("a.jsonl", labelled(("one", "q")))),
    Case("evaluate on several labels", "evaluate BAG a.jsonl", ("a.jsonl:2", "2 labels"), file("a.jsonl", labelled(("one", ["p"]), ("two", ["n", "p"])))),
    Case("evaluate on nothing", "evaluate BAG nowhere", ("nowhere",)),
    Case("explain a label that is none", "explain BAG text --label happy", ("'happy'", "n, p"), mend=False),
    Case("explain by a method that is none", "explain BAG text --method lime", ("'lime'", "integrated_gradients")),
    Case("explain a bag by attention", "explain BAG lovely --method rollout", ("attention", "integrated_gradients")),
    Case("explain nothing", 'explain BAG ""', ("no word",), mend=False),
    Case("fewer nearest than none", "explain BAG lovely --nearest=-1", ("nearest", "-1"), mend=False),
    Case("compare two label sets", "compare BAG OTHER", ("'n'", "'x', 'y'")),
    Case("compare labels with numbers", "compare BAG STARS", ("regression", "same kind")),
    Case("compare with nothing", "compare BAG nowhere", ("nowhere",)),
    Case("an empty stdin", "classify BAG -", ("no text",), stdin=b""),
    Case("blank lines on stdin", "classify BAG -", ("no text",), stdin=b" \n\t\n"),
    Case("stdin that is not UTF-8", "classify BAG -", ("stdin", "byte 2", "UTF-8"), stdin=b"ab\xff"),
    Case("an empty text to classify", 'classify BAG ""', ("text 1", "empty")),
    Case("an empty text among others", 'classify BAG one ""', ("text 2", "empty")),
    Case("an empty file to classify", "classify BAG a.txt", ("a.txt",), file("a.txt", "")),
    Case("a file of no text", "classify BAG a.png", ("a.png",), file("a.png", b"\x89PNG")),
    Case("a table without the column", "classify BAG a.csv", ("a.csv:1", "'text'"), file("a.csv", "words,n\none,1\n")),
]  # fmt: skip


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three bags: of the labels n and p, of x and y, and of scores."""
    from zhixing.entry import train_any

    folder = tmp_path_factory.mktemp("classifiers")
    (folder / "a.jsonl").write_text(MOODS, encoding="utf-8")
    (folder / "b.jsonl").write_text(MOODS.replace('"n"', '"x"').replace('"p"', '"y"'), encoding="utf-8")
    rows = [json.dumps({"text": f"film {i} of them", "stars": i % 5}) for i in range(40)]
    (folder / "c.jsonl").write_text("\n".join(rows), encoding="utf-8")
    bag, stars = BAG.split(), ["task.kind=regression", "data.score_column=stars", *BAG.split()[1:]]
    for name, source, settings in (("BAG", "a", bag), ("OTHER", "b", bag), ("STARS", "c", stars)):
        train_any(str(folder / f"{source}.jsonl"), *settings, "data.heldout_fraction=0.2", out=str(folder / name))
    return {name: folder / name for name in ("BAG", "OTHER", "STARS")}


@pytest.mark.parametrize("case", ASKED, ids=ids)
def test_refused_with_a_good_classifier(
    case: Case, command: Callable[..., tuple[int, str, str]], classifiers: dict[str, Path], tiny_run: Run
) -> None:
    case.lay(Path.cwd())
    before = sorted(p.name for p in Path.cwd().iterdir())
    line = case.line.replace("LANGUAGE", str(tiny_run.path))
    for name, path in classifiers.items():
        line = line.replace(name, str(path))
    refused(case, *command(line, case.stdin))
    assert sorted(p.name for p in Path.cwd().iterdir()) == before


def test_a_text_of_100_000_words_is_cut_or_split(command: Callable[..., tuple[int, str, str]]) -> None:
    file("a.jsonl", labelled(("word " * 100_000, "n")) + MOODS)(Path.cwd())
    for how in ("truncate", "split"):
        code, _, err = command(f"train a.jsonl {CNN} task.on_too_long={how} data.heldout_fraction=0.2 --out {how}")
        assert code == 0 and "Traceback" not in err, err
        code, out, err = command(f"classify {how} -", b"word " * 100_000 + b"\nlovely\n")
        assert (
            code == 0 and len(out.splitlines()) == 2 and f"1 texts were longer than the model reads ({how})" in err
        ), err
