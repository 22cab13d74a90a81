"""A recipe: everything that decides a run, in one strict TOML file.

    [data]  [task]  [average]  [bag]  [tokenizer]  [model]  [train]  [eval]

Keys carry the names of Hugging Face's TrainingArguments where the concept is the same, sizes the names of
docs/design.md. An unknown key, a wrong type or an impossible value is an error that names the nearest known
key, the file and the line. The resolved recipe is saved with the run, so that the run can be made again.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import shlex
import tomllib
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from zhixing.errors import InputError

Auto = Literal["auto"]
PAIR_TASKS = ("translation", "summarization")
READERS = ("marian", "t5", "lstm")  # families that may read one text and write another
SPEAKERS = ("gpt", *READERS)  # families that may reply


@dataclass(frozen=True)
class DataSettings:
    """Where the text comes from and how it is cleaned and split."""

    source: str = ""  # a file, a folder, or the name of a data set (`zhixing data list`)
    text_column: str = "text"  # the column of jsonl, csv, tsv and parquet
    label_column: str = "label"  # classification
    label_separator: str = ""  # between several labels in one field of csv and tsv, such as "|"
    score_column: str = ""  # regression: the column of numbers
    source_column: str = "source"  # translation and summarization: what is read
    target_column: str = "target"  # and what is written
    source_language: str = ""  # codes such as en and zh: for translations of several languages, scripts and scores
    target_language: str = ""
    directions: list[str] = field(default_factory=list)  # of a translator: "en>de SOURCE", "en<>zh SOURCE" (both ways)
    max_ratio: float = 4.0  # pairs whose longer side has more times the bytes of the shorter are left out; 0: none
    heldout_fraction: float = 0.05  # share of the text kept for evaluation, by whole documents
    normalize: Literal["none", "NFC", "NFKC"] = "NFC"  # NFKC also folds ， to , and so changes Chinese
    duplicates: Literal["keep", "exact", "near"] = "exact"  # what to drop
    personal_data: Literal["keep", "report", "mask"] = "keep"
    on_bad_record: Literal["fail", "skip", "quarantine"] = "fail"


@dataclass(frozen=True)
class TaskSettings:
    """What is learnt: to go on with a text, or to answer about one."""

    kind: Literal[
        "language", "classification", "regression", "translation", "summarization", "dialogue", "preference"
    ] = "language"
    test: str = ""  # texts to measure on; empty: the source's own test part, else data.heldout_fraction of it
    validation_fraction: float = 0.05  # of the training texts, for the best step and for calibration
    class_weights: Literal["none", "balanced"] = "none"  # balanced: rare labels count more, N / (C n_c)
    on_too_long: Literal["error", "split", "truncate"] = "truncate"  # texts longer than model.max_len
    pretrain_steps: int = 0  # first so many steps on the training texts alone: bert masked words, t5 spans left out,
    # gpt that replies: all turns, or
    pretrain_source: str = ""  # this text, a file, a folder or the name of a data set (dialogue by a gpt)
    pretrain_learning_rate: float = 0.0  # 0: train.learning_rate
    start: str = ""  # a run, a model folder or "minilm" to start from (bert, gpt): its weights and its tokenizer


@dataclass(frozen=True)
class AverageRecipe:
    """Several classifiers that answer as one (model.family = "average"): the mean of their probabilities."""

    members: list[str] = field(default_factory=list)  # each a recipe's name or file, table.key=value behind it
    weights: list[float] = field(default_factory=list)  # empty: all the same


@dataclass(frozen=True)
class BagRecipe:
    """The bag of n-grams (model.family = "bag"), which trains by loops of its own."""

    words: Literal["text", "spaces", "rjieba"] = "text"  # text: words, and Chinese by characters
    ngrams: int = 2  # the longest run of words
    buckets: int = 200_000  # rows that all hashed runs share
    min_count: int = 1
    lowercase: bool = True
    once: bool = False  # a feature counts once a text
    min_chars: int = 2  # shortest and longest run of characters; none if max_chars is 0
    max_chars: int = 0
    epochs: int = 10
    learning_rate: float = 0.5
    start: Literal["random", "labels"] = "random"
    rates: Literal["equal", "idf", "nb"] = "equal"  # how fast rows learn: idf and nb by what their feature tells
    rates_power: float = 1.0  # idf or nb to this power
    power: float = 1.0  # the sum of n vectors is divided by n^power
    loss: Literal["softmax", "ova"] = "softmax"  # ova: one label against all others, for each label
    dropout: float = 0.0
    threads: int = 1  # more than one is never twice the same


@dataclass(frozen=True)
class TokenizerSettings:
    """How text becomes ids."""

    kind: Literal["bpe", "char", "word", "wordpiece"] = "bpe"
    lowercase: bool = False  # wordpiece only
    vocab_size: int | Auto = "auto"  # auto: grows with the text, 512 to 16,384
    path: str = ""  # a run or tokenizer.json to take instead of training one


@dataclass(frozen=True)
class ModelSettings:
    """The size and shape of the network."""

    family: Literal["gpt", "lstm", "bert", "textcnn", "bag", "average", "marian", "t5"] = "gpt"
    layout: Literal["qwen3", "llama", "gpt2"] = "qwen3"  # gpt only: what the files look like to other tools
    d_model: int = 256
    n_layers: int = 4
    n_encoder_layers: int | Auto = "auto"  # of what reads, where another part writes; auto: n_layers
    n_heads: int = 4
    n_kv_heads: int | Auto = "auto"  # fewer than n_heads: grouped queries; auto: n_heads
    d_ff: int | Auto = "auto"  # auto: 4 d_model (gpt2), 8/3 d_model rounded up to 64 (qwen3, llama)
    max_len: int = 256  # tokens the model can look back over, and the length of a training sequence
    dropout: float = 0.0
    tie_embeddings: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    embeddings: str = ""  # lstm, textcnn: word vectors to start from, a file (GloVe, word2vec text) or "glove-6b-50d"
    freeze_embeddings: bool = False  # lstm and textcnn classifiers: leave the embeddings as they start
    attention: Literal["luong", "bahdanau"] = "luong"  # lstm that reads one text and writes another
    pointer: bool = False  # the same lstm: tokens may be copied from what is read (See et al. 2017)
    n_filters: int = 100  # textcnn: of each width
    lora_rank: int = 0  # bert and gpt classifiers: train low-rank changes of this rank only; 0: all weights
    freeze_layers: int = 0  # bert and gpt classifiers: leave so many of the lowest as they start, embeddings the first


@dataclass(frozen=True)
class TrainSettings:
    """How the parameters are found."""

    max_steps: int | Auto = "auto"  # auto: num_train_epochs over the text, 50 to 5,000 steps
    num_train_epochs: float = 3.0  # only where max_steps is auto
    per_device_train_batch_size: int = 16  # sequences a step and process
    max_tokens_per_batch: int = 4096  # of pairs (both sides) and of conversations, padding included
    gradient_accumulation_steps: int = 1
    optim: Literal["muon", "adamw", "adam", "sgd"] = "muon"  # muon: matrices by Muon, the rest by AdamW
    learning_rate: float = 0.02  # of Muon for muon, of all parameters else
    adam_learning_rate: float = 0.003  # embeddings, head and norms beside Muon
    layer_decay: float = 1.0  # bert and gpt classifiers: each layer learns by this share of the rate of the one above
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8
    momentum: float = 0.95
    lr_scheduler_type: Literal["cosine", "trapezoid", "constant"] = "trapezoid"
    warmup_steps: int = 20
    decay_fraction: float = 0.4  # trapezoid: the last share of the steps, linearly down
    min_lr_ratio: float = 0.0  # where cosine and trapezoid end, as a share of the peak
    max_grad_norm: float = 1.0  # 0: no clipping
    label_smoothing_factor: float = 0.0
    beta: float = 0.1  # preference: how dear it is to leave what the model said at the start (DPO)
    label_smoothing: float = 0.0  # preference: the share of preferences that may be the wrong way round (cDPO)
    bf16: bool | Auto = "auto"  # auto: where the processor multiplies bf16 itself
    compile: bool | Auto = "auto"  # auto: where a compiler is there and the run is long enough to repay it
    threads: int | Auto = (
        "auto"  # of this process; auto: OMP_NUM_THREADS, else cores; of several processes, cores / them
    )
    seed: int = 0
    logging_steps: int = 10
    eval_steps: int | Auto = "auto"  # auto: twenty times a run
    save_steps: int | Auto = "auto"  # auto: as often as eval_steps
    save_total_limit: int = 2  # checkpoints kept beside the best
    early_stopping_patience: int = 0  # evaluations without a better one before stopping; 0: never
    tensorboard: bool = False


@dataclass(frozen=True)
class EvalSettings:
    """What is measured on held-out text, and what is shown of the model."""

    per_device_eval_batch_size: int = 32
    max_sequences: int = 256  # held-out sequences looked at during training; the end looks at all
    prompts: list[str] = field(default_factory=list)  # continued in the report; empty: held-out beginnings
    max_new_tokens: int = 120
    num_beams: int = 4  # translation and summarization
    length_penalty: float = 1.0  # of the beams: above 0 favours longer texts
    temperature: float = 0.7  # dialogue: how replies are sampled; 0: always the likeliest token
    top_p: float = 0.9
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Recipe:
    data: DataSettings = field(default_factory=DataSettings)
    task: TaskSettings = TaskSettings()
    average: AverageRecipe = field(default_factory=AverageRecipe)
    bag: BagRecipe = BagRecipe()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    eval: EvalSettings = field(default_factory=EvalSettings)

    def to_toml(self) -> str:
        """The recipe as TOML text; `parse_recipe` reads it back to an equal recipe."""
        tables = []
        for table in dataclasses.fields(self):
            settings = getattr(self, table.name)
            rows = [f"{f.name} = {toml_value(getattr(settings, f.name))}" for f in dataclasses.fields(settings)]
            tables.append("\n".join([f"[{table.name}]", *rows]))
        return "\n\n".join(tables) + "\n"

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return dataclasses.asdict(self)

    def pretraining(self) -> TrainSettings:
        """How the steps of task.pretrain_steps are made: at a rate of their own, that of Adam in proportion."""
        t, steps = self.train, self.task.pretrain_steps
        rate = self.task.pretrain_learning_rate or t.learning_rate
        return dataclasses.replace(
            t,
            max_steps=steps,
            learning_rate=rate,
            adam_learning_rate=t.adam_learning_rate * rate / t.learning_rate,
            warmup_steps=min(t.warmup_steps, steps // 5),
            early_stopping_patience=0,
        )


TABLES: dict[str, type] = {
    "data": DataSettings,
    "task": TaskSettings,
    "average": AverageRecipe,
    "bag": BagRecipe,
    "tokenizer": TokenizerSettings,
    "model": ModelSettings,
    "train": TrainSettings,
    "eval": EvalSettings,
}


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("zhixing") / "recipes"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe by shipped name or by path, then apply ``table.key=value`` overrides (TOML values)."""
    if name_or_path in recipe_names():
        text = (resources.files("zhixing") / "recipes" / f"{name_or_path}.toml").read_text(encoding="utf-8")
        return parse_recipe(text, f"{name_or_path}.toml (shipped)", overrides)
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(
            f"there is no recipe {name_or_path!r}",
            mend=f"give a .toml file, a folder of text, or one of: {', '.join(recipe_names())}",
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            "the recipe is not UTF-8", where=f"{path}, byte {error.start}", mend="save it as UTF-8"
        ) from None
    return parse_recipe(text, str(path), overrides)


def parse_recipe(text: str, where: str, overrides: list[str] | None = None) -> Recipe:
    """TOML text to a checked recipe. `where` names the text in errors."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"the recipe is not valid TOML: {error}",
            where=where,
            mend='write [table] on a line, then key = value; text stands in "quotes"',
        ) from None
    for override in overrides or []:
        table, key, value = _parse_override(override)
        values = raw.setdefault(table, {})
        if isinstance(values, dict):  # else it is refused below
            values[key] = value
    settings = {}
    for table, values in raw.items():
        line = _line_of(text, table, None)
        if table not in TABLES:
            raise InputError(
                f"unknown table [{table}]"
                if isinstance(values, dict)
                else f"the key {table!r} stands outside every table",
                where=f"{where}:{line}" if line else where,
                mend=f"the tables are {', '.join(f'[{t}]' for t in TABLES)}" + _nearest(table, list(TABLES)),
            )
        settings[table] = _build(TABLES[table], table, values, text, where)
    recipe = Recipe(**settings)
    check_recipe(recipe, where)
    return recipe


@dataclass(frozen=True)
class PairSet:
    """Pairs by name or path, and the languages of their two sides; both_ways: they are learnt turned round too."""

    source: str
    source_language: str
    target_language: str
    both_ways: bool = False


LANGUAGE = "[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{1,8}){0,3}"  # zh, zh-CN, cmn_Hans
PAIR_SET = re.compile(rf"({LANGUAGE})(<>|>)({LANGUAGE})\s+(\S.*)", re.DOTALL)


def pair_set(text: str) -> PairSet | None:
    """The pair set that "en>de SOURCE" or "en<>zh SOURCE" names; None where the text is no such thing."""
    found = PAIR_SET.fullmatch(text.strip())
    if not found or found[1] == found[3]:
        return None
    return PairSet(found[4], found[1], found[3], found[2] == "<>")


def pair_sets(recipe: Recipe) -> list[PairSet]:
    """The pair sets of data.directions; none where data.source is the only one."""
    return [found for text in recipe.data.directions if (found := pair_set(text))]


SHARED = ("kind", "test", "validation_fraction", "class_weights", "on_too_long")  # of [task]: one for all members
GIVEN_ON = ("seed", "threads", "bf16")  # of [train]: an average may set them; all else is the members' own
MOST_MEMBERS, HEAVIEST = 64, 1e9  # of an average; the weight of one


def member_recipes(recipe: Recipe) -> list[Recipe]:
    """The recipe of each member of an average: its own, with the data, the question and the machine of the average.

    Looked at where a training begins, not where a run is read: the file of a member's recipe may be gone by then.
    """
    own = []
    for member in recipe.average.members:
        where = f"average.members: {member!r}"
        try:
            name, *overrides = shlex.split(member)
        except ValueError as error:
            mend = 'write "NAME" or "NAME table.key=value ..."'
            raise InputError("this is no member", where=where, why=str(error), mend=mend) from None
        for table, key, _ in map(_parse_override, overrides):
            if table in ("data", "average") or (table == "task" and key in SHARED):
                why = "all members learn from the same texts and answer the same question"
                raise InputError(f"{table}.{key} cannot be set for one member", where=where, why=why,
                                 mend=f"set {table}.{key} for the average, or leave it out")  # fmt: skip
        plain = load_recipe(name)
        if plain.model.family == "average" or plain.task.kind == "language":
            raise InputError(
                f"{name} cannot be a member of this average",
                where=where,
                why="it is an average itself" if plain.model.family == "average" else "it writes text",
                mend="name a recipe of one classifier",
            )
        question = [f"data.score_column={toml_value(recipe.data.score_column)}", f'task.kind="{recipe.task.kind}"']
        found = load_recipe(name, [*overrides, *question])
        task = dataclasses.replace(found.task, **{key: getattr(recipe.task, key) for key in SHARED})
        t = recipe.train
        train = dataclasses.replace(
            found.train,
            seed=(found.train.seed + t.seed) % (1 << 63),  # so that members may differ by their seed alone
            threads=t.threads,
            bf16=found.train.bf16 if t.bf16 == "auto" else t.bf16,
        )
        own.append(dataclasses.replace(found, data=recipe.data, task=task, train=train))
    return own


def check_recipe(recipe: Recipe, where: str = "recipe") -> None:
    """Refuse values that cannot work, before anything is read or built."""
    m, t, b = recipe.model, recipe.train, recipe.bag
    key: str
    value: Any
    kv: int

    def refuse(key: str, why: str, mend: str = "") -> typing.NoReturn:
        raise InputError(f"{key} cannot be used", where=where, why=why, mend=mend)

    least: int
    most: int
    for key, value, least in (
        ("model.d_model", m.d_model, 1),
        ("model.n_layers", m.n_layers, 1),
        ("model.n_encoder_layers", m.n_encoder_layers, 1),
        ("model.n_heads", m.n_heads, 1),
        ("model.max_len", m.max_len, 2),
        ("train.per_device_train_batch_size", t.per_device_train_batch_size, 1),
        ("train.gradient_accumulation_steps", t.gradient_accumulation_steps, 1),
        ("train.max_tokens_per_batch", t.max_tokens_per_batch, 1),
        ("train.max_steps", t.max_steps, 1),
        ("train.warmup_steps", t.warmup_steps, 0),
        ("train.logging_steps", t.logging_steps, 1),
        ("train.eval_steps", t.eval_steps, 1),
        ("train.save_steps", t.save_steps, 1),
        ("train.save_total_limit", t.save_total_limit, 2),
        ("train.seed", t.seed, 0),
        ("train.threads", t.threads, 1),
        ("model.n_kv_heads", m.n_kv_heads, 1),
        ("model.d_ff", m.d_ff, 1),
        ("eval.per_device_eval_batch_size", recipe.eval.per_device_eval_batch_size, 1),
        ("eval.max_sequences", recipe.eval.max_sequences, 1),
        ("eval.max_new_tokens", recipe.eval.max_new_tokens, 1),
        ("eval.num_beams", recipe.eval.num_beams, 1),
        ("train.early_stopping_patience", t.early_stopping_patience, 0),
        ("task.pretrain_steps", recipe.task.pretrain_steps, 0),
        ("model.n_filters", m.n_filters, 1),
        ("model.lora_rank", m.lora_rank, 0),
        ("bag.ngrams", b.ngrams, 1),
        ("bag.buckets", b.buckets, 0),
        ("bag.min_count", b.min_count, 1),
        ("bag.min_chars", b.min_chars, 1),
        ("bag.max_chars", b.max_chars, 0),
        ("bag.epochs", b.epochs, 1),
        ("bag.threads", b.threads, 1),
        ("model.freeze_layers", m.freeze_layers, 0),
    ):
        if value != "auto" and value < least:
            refuse(key, f"it is {value}, the least possible value is {least}", f"set it to {least} or more")
    for key, value, most in (
        ("train.seed", t.seed, (1 << 63) - 1),
        ("train.threads", t.threads, 1024),
        ("bag.threads", b.threads, 1024),
        ("bag.buckets", b.buckets, 1 << 30),  # row numbers have 32 bits
    ):
        if value != "auto" and value > most:
            refuse(key, f"it is {value}, the greatest possible value is {most}", f"set it to {most} or less")
    for key, value in (
        ("train.learning_rate", t.learning_rate),
        ("train.adam_learning_rate", t.adam_learning_rate),
        ("train.num_train_epochs", t.num_train_epochs),
        ("model.rope_theta", m.rope_theta),
        ("model.norm_eps", m.norm_eps),
        ("train.adam_epsilon", t.adam_epsilon),
        ("bag.learning_rate", b.learning_rate),
        ("train.beta", t.beta),
        ("eval.top_p", recipe.eval.top_p),
        ("eval.repetition_penalty", recipe.eval.repetition_penalty),
    ):
        if not 0 < value < float("inf"):
            refuse(key, f"it is {value}, it must be above 0 and finite", "set it to a number above 0")
    for key, value in (
        ("train.weight_decay", t.weight_decay),
        ("train.max_grad_norm", t.max_grad_norm),
        ("bag.rates_power", b.rates_power),
        ("eval.temperature", recipe.eval.temperature),
        ("task.pretrain_learning_rate", recipe.task.pretrain_learning_rate),
    ):
        if not 0 <= value < float("inf"):
            refuse(key, f"it is {value}, it must be at least 0 and finite", "set it to 0 or more")
    for key, value in (
        ("train.decay_fraction", t.decay_fraction),
        ("train.min_lr_ratio", t.min_lr_ratio),
        ("bag.power", b.power),
    ):
        if not 0 <= value <= 1:
            refuse(key, f"it is {value}, it is a share", "set it to a number from 0 to 1")
    if not 0 < t.layer_decay <= 1:
        refuse("train.layer_decay", f"it is {t.layer_decay}, it is a share", "set it above 0, and to 1 at most")
    for key, value in (
        ("model.dropout", m.dropout),
        ("bag.dropout", b.dropout),
        ("task.validation_fraction", recipe.task.validation_fraction),
        ("data.heldout_fraction", recipe.data.heldout_fraction),
        ("train.label_smoothing_factor", t.label_smoothing_factor),
        ("train.momentum", t.momentum),
        ("train.adam_beta1", t.adam_beta1),
        ("train.adam_beta2", t.adam_beta2),
    ):
        if not 0 <= value < 1:
            refuse(key, f"it is {value}, it must be at least 0 and below 1", "set it to a number in between")
    if m.family == "gpt":
        if m.d_model % m.n_heads:
            refuse(
                "model.d_model",
                f"{m.d_model} is not divisible by model.n_heads = {m.n_heads}",
                f"take {m.d_model // m.n_heads * m.n_heads or m.n_heads} or {(m.d_model // m.n_heads + 1) * m.n_heads}",
            )
        kv = m.n_heads if m.n_kv_heads == "auto" else m.n_kv_heads
        if m.n_heads % kv:
            why = f"model.n_heads = {m.n_heads} is not divisible by it ({kv})"
            refuse("model.n_kv_heads", why, "take a divisor of model.n_heads, or leave it out")
        if m.layout == "gpt2" and kv != m.n_heads:
            refuse(
                "model.n_kv_heads",
                "the gpt2 layout has no grouped queries",
                'take model.layout = "qwen3" or leave it out',
            )
        if m.layout != "gpt2" and (m.d_model // m.n_heads) % 2:
            why = f"rotary positions need an even head size, {m.d_model} / {m.n_heads} is odd"
            refuse("model.n_heads", why, f"take model.d_model = {m.d_model + m.n_heads}, or other heads")
    if m.family in ("bert", "marian", "t5") and m.d_model % m.n_heads:
        refuse("model.d_model", f"{m.d_model} is not divisible by model.n_heads = {m.n_heads}", "take a multiple of it")
    a = recipe.average
    if m.family == "average":
        if len(a.members) < 2:
            refuse("average.members", f"it names {len(a.members)}", "name two recipes or more")
        if len(a.members) > MOST_MEMBERS:
            refuse("average.members", f"it names {len(a.members)}", f"name {MOST_MEMBERS} at most")
        if not all(member.strip() for member in a.members):
            refuse("average.members", "one of them is empty", "name a recipe")
        if a.weights and (len(a.weights) != len(a.members) or not all(0 < w <= HEAVIEST for w in a.weights)):
            why = f"{a.weights} for {len(a.members)} members"
            refuse("average.weights", why, "give a number above 0 for each, or leave it out")
        for key in _not_its_own(recipe):
            mend = f'write it behind a member, as in "{a.members[0].split()[0]} {key}=...", or leave it out'
            refuse(key, "an average learns nothing itself, its members do", mend)
    elif a.members or a.weights:
        refuse("average.members", f"a {m.family} has none", 'set model.family = "average", or leave it out')
    if m.embeddings and m.family not in ("lstm", "textcnn"):
        why = "only the families lstm and textcnn start from given vectors"
        refuse("model.embeddings", why, 'leave it out, or set model.family = "lstm"')
    if recipe.task.kind == "language" and m.family not in ("gpt", "lstm"):
        refuse("model.family", f"a {m.family} writes no text", 'set task.kind = "classification", or take gpt or lstm')
    pairs = recipe.task.kind in PAIR_TASKS
    if pairs and m.family not in READERS:
        why = f"a {m.family} does not read one text and write another"
        refuse("model.family", why, f"take {', '.join(READERS)}")
    tuned = recipe.task.kind == "preference"
    if tuned and m.family != "gpt":
        refuse("model.family", f"a {m.family} is not tuned by preferences", "take gpt")
    if not 0 <= t.label_smoothing < 0.5:
        why = f"it is {t.label_smoothing}, more than half of the preferences cannot be the wrong way round"
        refuse("train.label_smoothing", why, "set it to 0 or more, and below 0.5")
    if t.label_smoothing and not tuned:
        refuse("train.label_smoothing", "it is of preferences", "set train.label_smoothing_factor")
    if t.label_smoothing_factor and tuned:
        refuse("train.label_smoothing_factor", "it is of tokens and labels", "set train.label_smoothing")
    if t.beta != TrainSettings.beta and not tuned:
        refuse("train.beta", "only preferences are learnt with it", 'set task.kind = "preference", or leave it out')
    replies = recipe.task.kind == "dialogue"
    if replies and m.family not in SPEAKERS:
        refuse("model.family", f"a {m.family} writes no reply", f"take {', '.join(SPEAKERS)}")
    if m.pointer and not (m.family == "lstm" and (pairs or replies)):
        why = "only an lstm that reads one text and writes another can copy"
        refuse("model.pointer", why, 'set model.pointer = false, or model.family = "lstm"')
    if m.family in ("marian", "t5") and not pairs and not replies:
        why = f"a {m.family} reads one text and writes another"
        refuse("task.kind", why, 'set task.kind = "translation", "summarization" or "dialogue"')
    if (replies or tuned) and recipe.eval.top_p > 1:
        refuse("eval.top_p", f"it is {recipe.eval.top_p}, it is a share", "set it above 0, and to 1 at most")
    if (pairs or replies or tuned) and t.per_device_train_batch_size != TrainSettings.per_device_train_batch_size:
        why = "a batch has as many pairs, or conversations, as their lengths allow"
        refuse("train.per_device_train_batch_size", why, "set train.max_tokens_per_batch")
    if recipe.data.max_ratio != 0 and not 1 <= recipe.data.max_ratio < float("inf"):
        refuse("data.max_ratio", f"it is {recipe.data.max_ratio}, a longer side is never shorter", "0, or 1 and more")
    for direction in recipe.data.directions:
        if recipe.task.kind != "translation":
            refuse("data.directions", "only a translator has directions", 'set task.kind = "translation"')
        if not pair_set(direction):
            why = f"{direction[:80]!r} does not say from which language to which, and then the pairs"
            refuse("data.directions", why, 'write "en>de NAME", or "en<>zh FILE" for both ways')
        for name in ("source", "source_language", "target_language"):
            if getattr(recipe.data, name):
                why = "data.directions names the pairs and their languages"
                refuse(f"data.{name}", why, "leave out one of the two")
        if recipe.task.test:
            why = "each of data.directions has a test part of its own"
            refuse("task.test", why, "leave it out, and measure afterwards: zhixing evaluate RUN 'en>de FILE'")
    if (pairs or replies) and m.family in ("marian", "lstm") and m.d_model % 2:
        why = f"half of a position's {m.d_model} channels are sines"
        if m.family == "lstm":
            why = f"each direction of the encoder has half of {m.d_model}"
        refuse("model.d_model", why, "take an even number")
    learns_first = ("gpt",) if replies else ("bert", "t5")
    if recipe.task.pretrain_steps and m.family not in learns_first:
        why = f"only {' and '.join(learns_first)} can learn from texts alone first, not a {m.family} for this task"
        refuse("task.pretrain_steps", why, "leave it out")
    if recipe.task.pretrain_source and not (replies and recipe.task.pretrain_steps):
        why = "it is what a gpt that replies reads in its task.pretrain_steps"
        refuse("task.pretrain_source", why, "leave it out, or set task.pretrain_steps")
    if recipe.task.pretrain_steps and recipe.task.start:
        why = "the weights would be those of one of the two"
        refuse("task.pretrain_steps", why, "leave out this or task.start")
    for key, value in (
        ("task.start", recipe.task.start),
        ("model.lora_rank", m.lora_rank),
        ("model.freeze_layers", m.freeze_layers),
        ("train.layer_decay", t.layer_decay != 1),
    ):
        if value and m.family not in ("bert", "gpt"):
            refuse(key, f"only the families bert and gpt have it, not {m.family}", "leave it out")
        if value and recipe.task.kind == "language":
            refuse(key, "only classifiers have it", 'set task.kind = "classification", or leave it out')
        if value and (replies or tuned) and (m.family != "gpt" or key in ("model.freeze_layers", "train.layer_decay")):
            refuse(key, f"a {m.family} that replies has no such thing", "leave it out")
    if recipe.bag.max_chars and not recipe.bag.buckets:
        refuse("bag.max_chars", "runs of characters live in buckets, and there are none", "set bag.buckets above 0")
    if recipe.task.kind == "regression" and m.family == "bag" and b.loss == "ova":
        refuse("bag.loss", "a regression has no labels to hold against one another", "leave it out")
    if recipe.task.kind == "regression" and m.family == "bag" and recipe.bag.rates == "nb":
        refuse("bag.rates", "numbers have no naive Bayes ratios", 'set bag.rates = "idf"')
    if recipe.task.kind == "regression" and not recipe.data.score_column:
        refuse("task.kind", "regression learns numbers, and no column of them is named", "set data.score_column")
    if recipe.tokenizer.vocab_size != "auto" and recipe.tokenizer.kind == "bpe" and recipe.tokenizer.vocab_size < 258:
        refuse(
            "tokenizer.vocab_size",
            f"a byte-level vocabulary has 256 bytes and 2 special tokens, {recipe.tokenizer.vocab_size} is below 258",
            "set it to 258 or more, or leave it out",
        )


def _not_its_own(recipe: Recipe) -> list[str]:
    """What is set for an average and would count for nothing."""
    found = []
    for table, settings in (("bag", recipe.bag), ("tokenizer", recipe.tokenizer), ("model", recipe.model),
                            ("train", recipe.train)):  # fmt: skip
        for f in dataclasses.fields(settings):
            own = f.name == "family" if table == "model" else table == "train" and f.name in GIVEN_ON
            if not own and getattr(settings, f.name) != f.default:
                found.append(f"{table}.{f.name}")
    return found


def _parse_override(override: str) -> tuple[str, str, Any]:
    name, equals, text = override.partition("=")
    table, dot, key = name.strip().partition(".")
    if not equals or not dot:
        raise InputError(
            f"{override!r} is not a setting", mend="write table.key=value, for example train.max_steps=200"
        )
    if table not in TABLES:
        raise InputError(
            f"unknown table in {override!r}", mend=f"the tables are {', '.join(TABLES)}" + _nearest(table, list(TABLES))
        )
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string, so that the shell needs no second quotes
    return table, key.strip(), value


def _build(cls: type, table: str, values: Any, text: str, where: str) -> Any:
    if not isinstance(values, dict):
        raise InputError(f"[{table}] must be a table", where=where, mend=f"write [{table}] on a line, then its keys")
    hints = typing.get_type_hints(cls)
    kept = {}
    for key, value in values.items():
        line = _line_of(text, table, key)
        place = f"{where}:{line}" if line else where
        if key not in hints:
            raise InputError(
                f"unknown key {table}.{key}",
                where=place,
                mend=(_nearest(key, list(hints)) or f"; known: {', '.join(hints)}")[2:],
            )
        kept[key] = _checked(hints[key], value, f"{table}.{key}", place)
    return cls(**kept)


def _checked(hint: Any, value: Any, key: str, where: str) -> Any:
    """`value` as the type `hint` says; InputError if it is of another type."""
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    for option in options:
        if typing.get_origin(option) is Literal:
            if any(value == choice and type(value) is type(choice) for choice in typing.get_args(option)):
                return value
        elif option == list[str]:
            if isinstance(value, list) and all(isinstance(v, str) for v in value):
                return value
        elif option == list[float]:
            if isinstance(value, list) and all(type(v) in (int, float) for v in value):
                return [float(v) for v in value]
        elif option is float and type(value) in (int, float):
            return float(value)
        elif type(value) is option:  # bool is no int here
            return value
    raise InputError(
        f"{key} = {value!r} is of the wrong kind",
        where=where,
        mend="it takes " + " or ".join(_kind(o) for o in options),
    )


def _kind(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return ", ".join(json.dumps(c) for c in typing.get_args(option))
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    return names.get(option, "a list of numbers" if option == list[float] else "a list of strings")


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _line_of(text: str, table: str, key: str | None) -> int | None:
    """The line (from 1) where a table, or a key inside it, is written."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        heading = re.match(r"\s*\[\s*([^\]]+?)\s*\]", line)
        if heading:
            inside = heading.group(1) == table
            if inside and key is None:
                return number
        elif (key is None and re.match(rf"\s*{re.escape(table)}\s*=", line)) or (
            key is not None and inside and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line)
        ):
            return number
    return None


def toml_value(value: Any) -> str:
    """A string, a number, true, false or a list of them as TOML text."""
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, str):  # a JSON string is a TOML basic string, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)
