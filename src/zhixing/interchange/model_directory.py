"""A model directory: what transformers, llama.cpp's converter, vLLM and we ourselves load a model from.

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json

`AutoModelForCausalLM.from_pretrained(folder)` and `AutoTokenizer.from_pretrained(folder)` take it as it is. Weights
above `max_shard_size` are cut into `model-00001-of-0000N.safetensors` and an index, by whole tensors.

Writing: every file appears whole or not at all, config.json last, so that a folder with a config.json is complete.
Reading: only JSON and safetensors; the config and the headers of the weights must agree before a weight is read, so a
crafted size takes no memory; where there is a MANIFEST.json the files must be as it says, so a flipped bit is seen; and
a tokenizer of another run is refused by its fingerprint.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zhixing.errors import InputError
from zhixing.files import MANIFEST, atomic_write, fsync_path, read_manifest, sha256_file, temporary_beside
from zhixing.interchange.transformers_layout import (
    DTYPES,
    LabelFacts,
    Settings,
    Shape,
    TokenizerFacts,
    check_shapes,
    config_of,
    from_layout,
    is_buffer,
    settings_of,
    to_layout,
)
from zhixing.models.bert import Bert, BertClassifier, BertMaskedLM, BertSettings
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.lstm import LSTM
from zhixing.progress import Progress
from zhixing.tokens.tokenizer import Tokenizer
from zhixing.training.checkpoint import read_safetensors, write_safetensors

Model = GPT | LSTM  # what writes text
Encoder = Bert | BertMaskedLM | BertClassifier
Dtype = Literal["float32", "bfloat16", "float16"]

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
JSON_FILES = (CONFIG, "tokenizer.json", "tokenizer_config.json")
JSON_LIMIT = 64 << 20  # bytes; a longer config or index is not read
STORED_DTYPES = ("F32", "BF16", "F16")

_SHARD = re.compile(r"^[A-Za-z0-9._-]{1,128}\.safetensors$")
_OWN_SHARD = re.compile(r"^model-[0-9]{5}-of-[0-9]{5}\.safetensors$")
_REFUSED = re.compile(r"\.(bin|pt|pth|pkl|pickle|ckpt|h5|msgpack|npz)$")


# --- writing -----------------------------------------------------------------------------------------------------


def write_model_directory(
    folder: Path,
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    dtype: Dtype = "float32",
    max_shard_size: int | str | None = None,
    labels: LabelFacts | None = None,
) -> None:
    """Write the model directory's files into `folder`, which may hold others and earlier ones of the same names.

    The caller writes the manifest, last; one from before is removed.
    The model's own dtype does not matter: the files hold `dtype`. `max_shard_size` is in bytes of tensors, or text
    such as "200MB"; 5 GB if not given. `labels` are a classifier's. OSError where the disk refuses.
    """
    assert isinstance(model, Model | Encoder), type(model)
    settings = model.settings
    shard_size = parse_size("5GB" if max_shard_size is None else max_shard_size)
    check_vocabulary(settings, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)  # until the new one stands the folder is no model
    (folder / MANIFEST).unlink(missing_ok=True)  # it speaks of the files before
    if isinstance(settings, GPTSettings | BertSettings):
        tokenizer.save(folder, model_max_length=settings.max_len)
    else:
        tokenizer.save(folder)  # an LSTM has no longest text
    eos_id, pad_id = tokenizer.eos_id, tokenizer.pad_id
    if isinstance(settings, BertSettings):  # it writes no text
        (folder / GENERATION_CONFIG).unlink(missing_ok=True)
    else:
        generation = {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": pad_id, "do_sample": False}
        atomic_write(folder / GENERATION_CONFIG, as_json(generation))
    tensors = {name: t.to(DTYPES[dtype]) for name, t in to_layout(model.state_dict(), settings).items()}
    write_weights(folder, tensors, shard_size)
    facts = TokenizerFacts(eos_id=eos_id, pad_id=pad_id, fingerprint=tokenizer.fingerprint())
    atomic_write(folder / CONFIG, as_json(config_of(settings, facts, dtype, labels)))


def parse_size(size: int | str) -> int:
    """Bytes from a count or from text: 5000000, "200MB" (10^6), "2GiB" (2^30)."""
    units = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    match = re.fullmatch(r"\s*([0-9]{1,18})\s*([A-Za-z]*)\s*", str(size))
    unit = match[2].lower() if match else ""
    if not match or unit not in units or not int(match[1]):
        raise InputError(f"{size!r} is not a size", mend="write for example 5GB, 200MB or a number of bytes")
    return int(match[1]) * units[unit]


def shard_names(sizes: Mapping[str, int], shard_size: int) -> list[list[str]]:
    """Tensors in their order, cut where the next one would make a shard larger than `shard_size` bytes.

    A tensor that is larger by itself gets a shard of its own: {a: 3, b: 3, c: 9}, 6 -> [[a, b], [c]].
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_weights(folder: Path, tensors: Mapping[str, Tensor], shard_size: int) -> None:
    """model.safetensors, or shards of at most `shard_size` bytes and their index; an earlier model's are removed."""
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    shards = shard_names(sizes, shard_size)
    written: dict[str, str] = {}
    total, done = sum(sizes.values()), 0
    with Progress("writing weights", total) as progress:
        for number, names in enumerate(shards, 1):
            file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            replace_weights(folder / file, {name: tensors[name] for name in names})
            written |= dict.fromkeys(names, file)
            done += sum(sizes[name] for name in names)
            progress.update(done)
    if len(shards) > 1:
        metadata = {"total_size": total, "total_parameters": sum(tensor.numel() for tensor in tensors.values())}
        atomic_write(folder / INDEX, as_json({"metadata": metadata, "weight_map": written}))
    kept = set(written.values()) | ({INDEX} if len(shards) > 1 else set())
    for path in list(folder.iterdir()):  # an earlier model in other shards must not be found beside this one
        if path.name not in kept and (path.name in (WEIGHTS, INDEX) or _OWN_SHARD.match(path.name)):
            path.unlink()
    fsync_path(folder)


def replace_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    temporary = temporary_beside(path)
    try:
        write_safetensors(temporary, tensors)
        fsync_path(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def as_json(value: Mapping[str, Any]) -> str:
    """How the folder's small files are written."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# --- reading -----------------------------------------------------------------------------------------------------


def read_model_directory(folder: Path) -> tuple[Model, Tokenizer, dict[str, Any]]:
    """Model (fp32, in eval mode, on the CPU), tokenizer and config.json of a folder: a model that writes text.

    InputError where something is missing, of another kind, damaged or of another run.
    """
    model, tokenizer, config = read_any_model(folder)
    if not isinstance(model, Model):
        raise InputError(
            f"a {config['architectures'][0]} writes no text", where=str(folder), mend="give a gpt or an lstm"
        )
    return model, tokenizer, config


def read_any_model(folder: Path) -> tuple[Model | Encoder, Tokenizer, dict[str, Any]]:
    """The same for every family: also encoders, with or without a head, and classifiers (`labels_of(config)`)."""
    settings, state, config = read_weights(folder)
    tokenizer = Tokenizer.load(folder)
    check_vocabulary(settings, tokenizer)
    check_fingerprint(config, tokenizer, folder)
    return build_model(settings, state), tokenizer, config


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, not yet looked into."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}", mend="give a model directory or a finished run")
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"there is no {CONFIG}",
            where=str(folder),
            why="a folder without it is no model directory, or was not finished",
            mend="finish the run with --resume, or give another folder",
        )
    return read_json(folder / CONFIG)


def read_weights(folder: Path) -> tuple[Settings, dict[str, Tensor], dict[str, Any]]:
    """Settings, state dict in our names (in the file's dtype) and config.json."""
    config = read_config(folder)
    try:
        settings = settings_of(config)
        places = weight_files(folder)
        headers = {name: shape for file, names in places.items() for name, shape in tensor_shapes(file, names).items()}
        check_shapes(headers, settings)
        check_files(folder, [*(folder / name for name in JSON_FILES), *places])
        tensors: dict[str, Tensor] = {}
        for file in places:
            tensors |= {name: t for name, t in read_tensors(file).items() if name in headers}
        settings, state = from_layout(tensors, config)
    except InputError as error:
        place = (
            f"{folder}: {error.where}" if error.where and str(folder) not in error.where else error.where or str(folder)
        )
        raise InputError(error.what, where=place, why=error.why, mend=error.mend) from None
    return settings, state, config


class NothingDrawn(TorchFunctionMode):
    """Skip normal_ while modules are made: on the meta device it would import half of torch's compiler (70 MB)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.normal_, Tensor.normal_):
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


def build_model(settings: Settings, state: Mapping[str, Tensor]) -> Model | Encoder:
    """The model of these settings and weights, fp32, in eval mode. The caller has checked that they fit."""
    model: Model | Encoder
    with torch.device("meta"), NothingDrawn():  # no memory, no random numbers: the weights are at hand
        if isinstance(settings, BertSettings):
            heads: dict[str, type[Encoder]] = {"none": Bert, "masked_lm": BertMaskedLM, "classifier": BertClassifier}
            model = heads[settings.head](settings)
        else:
            model = GPT(settings) if isinstance(settings, GPTSettings) else LSTM(settings)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if isinstance(model, GPT):
        model.make_tables()
    return model.eval()


def check_vocabulary(settings: Settings, tokenizer: Tokenizer) -> None:
    if settings.vocab_size != tokenizer.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {settings.vocab_size}",
            why="they are not of one run, or the model's vocabulary was padded",
            mend="give the model's own tokenizer; `zhixing import` cuts padding off",
        )


def check_fingerprint(config: Mapping[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    """The tokenizer against the one that the model was trained with, where config.json says which."""
    ours = config.get("zhixing", {})
    if not isinstance(ours, dict):
        raise InputError("the key zhixing must be a table", where=f"{folder / CONFIG}, zhixing")
    expected = ours.get("tokenizer_fingerprint")
    if expected is not None and expected != tokenizer.fingerprint():
        raise InputError(
            "the tokenizer is not the one that the model was trained with",
            where=str(folder),
            why=f"its fingerprint is {tokenizer.fingerprint()}, {CONFIG} says {str(expected)[:80]}",
            mend="put the run's own tokenizer.json back",
        )


def weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """The files of weights and the tensors that each must hold; None: whatever is in it."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: None}
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError("the index has no weight_map", where=str(folder / INDEX))
        places: dict[Path, set[str] | None] = {}
        for name, file in weight_map.items():
            if not isinstance(file, str) or not _SHARD.match(file):
                raise InputError(f"{str(file)[:80]!r} is not the name of a shard", where=str(folder / INDEX))
            if not (folder / file).is_file():
                raise InputError(f"the shard {file} is missing", where=str(folder))
            names = places.setdefault(folder / file, set())
            assert names is not None
            names.add(name)
        return places
    refused = sorted(path.name for path in folder.iterdir() if _REFUSED.search(path.name))
    if refused:
        raise InputError(
            f"{refused[0]} is not read: a pickle can run any code when it is loaded",
            where=str(folder),
            mend="ask its author for safetensors; if you trust it, load it with transformers and save_pretrained it",
        )
    raise InputError(f"there is no {WEIGHTS}", where=str(folder))


def check_files(folder: Path, files: list[Path]) -> None:
    """Where the folder has a manifest: those of these files that it lists have its size and SHA-256."""
    if not (folder / MANIFEST).is_file():
        return
    try:
        listed = read_manifest(folder)["files"]
    except ValueError as error:
        raise InputError("the manifest cannot be used", where=str(folder), why=str(error)) from None
    for file in files:
        entry = listed.get(file.name)
        if not isinstance(entry, dict):
            continue
        expected = (entry.get("size"), entry.get("sha256"))
        if not file.is_file() or (file.stat().st_size, sha256_file(file)) != expected:
            raise InputError(
                f"{file.name} is not as {MANIFEST} says",
                where=str(folder),
                why="it is damaged, or was changed since",
                mend=f"take a sound copy; if the change was meant, delete {MANIFEST}",
            )


def tensor_shapes(file: Path, names: set[str] | None = None) -> dict[str, Shape]:
    """Names and shapes of the tensors, without reading them. The library checks sizes against the file's length."""
    shapes = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dict)
                entry = opened.get_slice(name)
                if not is_buffer(name) and entry.get_dtype() not in STORED_DTYPES:
                    raise InputError(
                        f"{name} is stored as {entry.get_dtype()}",
                        where=str(file),
                        mend=f"we read {', '.join(STORED_DTYPES)}",
                    )
                shapes[name] = tuple(entry.get_shape())
    except (SafetensorError, OSError) as error:
        raise InputError(
            "the weights are damaged or no safetensors file", where=str(file), why=str(error)[:200]
        ) from None
    if names is not None and names != shapes.keys():
        odd = sorted(names ^ shapes.keys())[0]
        raise InputError(f"the shard and the index do not agree on {odd}", where=str(file))
    return shapes


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read, not mapped: a file that is cut short while it is mapped ends the process."""
    try:
        return read_safetensors(file)
    except ValueError as error:
        raise InputError("the weights are damaged", where=str(file), why=str(error)[:200]) from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise InputError(f"the file is larger than {JSON_LIMIT} bytes", where=str(path))
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError("the file cannot be read", where=str(path), why=str(error.strerror)) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("the file is not JSON", where=str(path), why=str(error)[:200]) from None
    if not isinstance(value, dict):
        raise InputError("the file is not a JSON object", where=str(path))
    return value


def stored_dtype(state: Mapping[str, Tensor]) -> Dtype:
    """The dtype of a state dict's weights, as config.json writes it."""
    dtypes = {tensor.dtype for tensor in state.values()}
    if dtypes == {torch.bfloat16}:
        return "bfloat16"
    return "float16" if dtypes == {torch.float16} else "float32"
