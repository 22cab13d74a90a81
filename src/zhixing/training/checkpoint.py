"""Checkpoints: everything a run needs to go on as if it had never stopped.

    RUN/checkpoints/step-00000123/   model.safetensors      parameters and buffers, tied ones once
                                     optimizer.safetensors  its state by parameter name, in its own precision
                                     state.json             counters, best score, random number generators, hashes
                                     MANIFEST.json          size and SHA-256 of each, and of itself

A checkpoint appears whole or not at all (`files.atomic_dir`), is verified before a byte of it is used, and a damaged
one is set aside, never deleted: the newest good one is taken. Only safetensors and JSON are read, so a file
cannot run code. We read and write safetensors ourselves (a header and raw bytes): the errors of a full disk are
then OSErrors with their number, no file is mapped (a mapped file that shrinks ends the process), and a header is
checked against the file's size before memory is taken.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zhixing.errors import InputError
from zhixing.files import NewerSchemaError, atomic_dir, clear_leftovers, remove_tree, set_aside, verify_manifest
from zhixing.progress import say

CHECKPOINTS = "checkpoints"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
HEADER_LIMIT = 16 << 20  # bytes of a safetensors header; a hundred thousand tensors fit
STATE_LIMIT = 64 << 20  # bytes of state.json; a rank's generators take 20 kB

_STEP_NAME = re.compile(r"^step-(\d{8,18})$")
_BAD_NAME = re.compile(r"^step-\d{8,18}\.bad(-\d+)?$")

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TrainingState:
    """All that is neither a tensor of the model nor of the optimizer; every value is JSON.

    `rng` holds `capture_rng()` of each rank under its number as a string. `facts` are what a resumed run is
    compared with: hashes (recipe, tokenizer, data), torch version, world_size, threads, compiled, dtype.
    """

    step: int = 0  # optimizer steps done
    samples_seen: int = 0  # the data cursor: global sample index of the next sequence
    tokens_seen: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    bad_evals: int = 0  # evaluations since the best, for early stopping
    seconds: float = 0.0  # of training, over all attempts
    rng: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    recent_loss: float = 0.0  # sum of the steps' losses since the last line of the log,
    recent_count: int = 0  # and how many steps: what the next line is the mean of

    @staticmethod
    def from_json(value: Any) -> TrainingState:
        """The state written as JSON; ValueError if a field is missing, unknown or of another kind."""
        kinds: dict[str, tuple[type, ...]] = {
            "step": (int,),
            "samples_seen": (int,),
            "tokens_seen": (int,),
            "best_loss": (int, float, type(None)),
            "best_step": (int, type(None)),
            "bad_evals": (int,),
            "seconds": (int, float),
            "recent_loss": (int, float),
            "recent_count": (int,),
            "rng": (dict,),
            "facts": (dict,),
        }
        if isinstance(value, dict):  # older checkpoints hold no part of a window
            value = {"recent_loss": 0.0, "recent_count": 0, **value}
        if not isinstance(value, dict) or set(value) != set(kinds):
            raise ValueError(f"{STATE} does not have the fields {', '.join(kinds)}")
        for key, allowed in kinds.items():
            if type(value[key]) not in allowed:
                raise ValueError(f"{STATE} has {key} = {value[key]!r:.40}, which is of the wrong kind")
        return TrainingState(**value)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory. `messages` say what was skipped to find it."""

    path: Path
    state: TrainingState
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    messages: list[str]


# ---- saving and loading ----------------------------------------------------------------------------------------


def save_checkpoint(
    run_dir: Path,
    model_tensors: Mapping[str, Tensor],
    optimizer_tensors: Mapping[str, Tensor],
    state: TrainingState,
) -> Path:
    """Write RUN/checkpoints/step-N whole or not at all; OSError if the disk does not take it (see `SaveGuard`).

    A good checkpoint of the same step and data cursor is left as it is; any other thing under that name is set aside.
    """
    target = checkpoint_path(run_dir, state.step)
    clear_leftovers(target.parent)
    if os.path.lexists(target):
        try:
            if _read_state(target).samples_seen == state.samples_seen and verify_manifest(target):
                return target
        except ValueError:
            pass
        set_aside(target)
    kept, tied = _once(model_tensors)
    document = {"state": dataclasses.asdict(state), "tied": tied}
    with atomic_dir(target, {"kind": "checkpoint", "step": state.step, "facts": state.facts}) as folder:
        write_safetensors(folder / MODEL, kept)
        write_safetensors(folder / OPTIMIZER, optimizer_tensors)
        with (folder / STATE).open("wb") as file:
            file.write(json.dumps(document, ensure_ascii=False).encode())
    return target


def load_newest(run_dir: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies; None if none was ever written.

    A damaged one is renamed to NAME.bad and named in `messages`; one of a newer zhixing, or that the system does
    not let us read, is only named. InputError, listing all of them, if there are checkpoints and none is good.
    """
    folder = Path(run_dir) / CHECKPOINTS
    messages: list[str] = []
    for step in reversed(list_steps(run_dir)):
        path = checkpoint_path(run_dir, step)
        try:
            return _load(path, messages)
        except NewerSchemaError as error:
            messages.append(f"skipped {path.name}: {error}")
        except OSError as error:
            messages.append(f"skipped {path.name}: it cannot be read: {error.strerror or error}")
        except ValueError as error:
            try:
                kept = f"kept as {set_aside(path).name}"
            except OSError as refused:
                kept = f"it could not be renamed: {refused.strerror or refused}"
            messages.append(f"skipped {path.name}: {error} ({kept})")
    named = " ".join(messages)
    earlier = [p.name for p in sorted(folder.iterdir()) if _BAD_NAME.match(p.name)] if folder.is_dir() else []
    messages += [f"{name} was set aside before" for name in earlier if name not in named]
    if not messages:
        return None
    raise InputError(
        "no checkpoint of this run can be used; nothing was deleted",
        where=str(folder),
        why="\n       ".join(messages),
        mend="put a good copy back under its step-N name, or train into another folder",
    )


def load_step(run_dir: Path, step: int) -> Checkpoint:
    """The checkpoint of one step; InputError if it is missing or does not verify (it is left as it is)."""
    path = checkpoint_path(run_dir, step)
    if not path.is_dir():
        known = ", ".join(map(str, list_steps(run_dir))) or "none"
        raise InputError(
            f"there is no checkpoint of step {step}", where=str(path), mend=f"the steps there are: {known}"
        )
    try:
        return _load(path, [])
    except (ValueError, OSError) as error:
        raise InputError(f"the checkpoint of step {step} cannot be used", where=str(path), why=str(error)) from None


def list_steps(run_dir: Path) -> list[int]:
    """Steps that have a checkpoint, in order; they are not verified."""
    folder = Path(run_dir) / CHECKPOINTS
    if not folder.is_dir():
        return []
    return sorted(int(m[1]) for p in folder.iterdir() if (m := _STEP_NAME.match(p.name)) and p.name == _name(int(m[1])))


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return Path(run_dir) / CHECKPOINTS / _name(step)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def purge(run_dir: Path, keep_last: int, keep_steps: Iterable[int] = ()) -> list[int]:
    """Delete all checkpoints but the last `keep_last` (at least 2) and `keep_steps`; return the steps deleted.

    Also sweeps away what killed processes left. OSError if the system refuses; what is left is then whole or hidden.
    """
    if keep_last < 2:
        raise ValueError(f"keep_last = {keep_last}; at least 2, as the newest may be damaged by the disk")
    clear_leftovers(Path(run_dir) / CHECKPOINTS)
    steps = list_steps(run_dir)
    gone = [step for step in steps[:-keep_last] if step not in set(keep_steps)]
    for step in gone:
        remove_tree(checkpoint_path(run_dir, step))
    return gone


class SaveGuard:
    """A full disk must not end a long run at once: warn, train on, try again; stop at the third failure in a row.

        guard = SaveGuard()
        ...
        with guard:  # an OSError inside is a warning, the third in a row an InputError (exit code 2)
            save_checkpoint(...)

    `failures` in a row is 0 after a success: a caller whose last save failed must not say that all is well.
    """

    def __init__(self, limit: int = 3, warn: Callable[[str], None] = say) -> None:
        self.limit, self.warn = limit, warn
        self.failures = 0

    def __enter__(self) -> SaveGuard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None:
            self.failures = 0
        if not isinstance(error, OSError):
            return False
        self.failures += 1
        why = error.strerror or str(error)
        if self.failures >= self.limit:
            raise InputError(
                f"no checkpoint could be saved {self.failures} times in a row, so training stopped",
                why=why,
                mend="make room, or let this user write there, and use --resume: earlier checkpoints are whole",
            ) from error
        self.warn(f"warning: the checkpoint was not saved ({why}); training goes on, next try at the next interval")
        return True


def _load(path: Path, messages: list[str]) -> Checkpoint:
    manifest = verify_manifest(path)
    for name in (MODEL, OPTIMIZER, STATE):
        if name not in manifest["files"]:
            raise ValueError(f"{name} is not in the manifest")
    state, tied = _read_document(path)
    if path.name != _name(state.step):
        raise ValueError(f"{STATE} is of step {state.step}")
    model = read_safetensors(path / MODEL)
    for name, source in tied.items():
        if source not in model or name in model:
            raise ValueError(f"{STATE} ties {name} to {source}, which {MODEL} does not have")
    model |= {name: model[source] for name, source in tied.items()}
    return Checkpoint(path, state, model, read_safetensors(path / OPTIMIZER), messages)


def _read_state(path: Path) -> TrainingState:
    return _read_document(path)[0]


def _read_document(path: Path) -> tuple[TrainingState, dict[str, str]]:
    try:
        with (path / STATE).open("rb") as file:
            data = file.read(STATE_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ValueError(f"{STATE} is missing") from None
    if len(data) > STATE_LIMIT:
        raise ValueError(f"{STATE} is longer than {STATE_LIMIT} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{STATE} is not JSON: {error}") from None
    tied = document.get("tied") if isinstance(document, dict) else None
    if not isinstance(tied, dict) or not all(isinstance(source, str) for source in tied.values()):
        raise ValueError(f"{STATE} does not say which tensors are tied")
    return TrainingState.from_json(document.get("state")), tied


def _once(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that are the same memory only once, and for each other name the one it is tied to."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in tensors.items():
        same = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and same in first:
            tied[name] = first[same]
        else:
            first[same] = name
            kept[name] = tensor
    return kept, tied


# ---- safetensors: 8 bytes of header size, the header as JSON, raw little-endian bytes --------------------------------


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name; the file appears at once, so `path` belongs inside an `atomic_dir`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # large items first, as the format's own library does: then every tensor lies on a multiple of its item size
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in DTYPE_NAMES:
            raise TypeError(f"{name} has dtype {tensor.dtype}, which is not saved")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little"))
        file.write(head)
        for name in names:
            if tensors[name].numel():
                flat = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                file.write(flat.numpy().data)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, in their own memory. ValueError if the file is not whole and consistent.

    Nothing larger than the file is ever allocated: sizes are checked against it first.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        entries, start = _read_header(file.read(8), file, size, path.name)
        tensors = {}
        for name, dtype, shape, begin, end in entries:
            flat = torch.empty(end - begin, dtype=torch.uint8)
            file.seek(start + begin)
            if end > begin and file.readinto(flat.numpy().data) != end - begin:
                raise ValueError(f"{path.name} ends within {name}")
            tensors[name] = flat.view(dtype).reshape(shape)
    return tensors


def _read_header(
    prefix: bytes, file: Any, size: int, where: str
) -> tuple[list[tuple[str, torch.dtype, list[int], int, int]], int]:
    """The checked entries (name, dtype, shape, begin, end) in the order of the file, and where the bytes begin."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(size - 8, HEADER_LIMIT):
        raise ValueError(f"{where} has no safetensors header")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} has no safetensors header: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{where} has no safetensors header")
    header.pop("__metadata__", None)
    entries = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{where} describes {name!r:.80} in no known way")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if entry["dtype"] not in list(DTYPES):
            raise ValueError(f"{where} has {name!r:.80} of dtype {entry['dtype']!r:.20}, which is not read")
        if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or len(shape) > 16:
            raise ValueError(f"{where} has no shape and place for {name!r:.80}")
        dtype = DTYPES[entry["dtype"]]
        if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{where} gives {name!r:.80} a place that does not fit its shape")
        entries.append((name, dtype, shape, offsets[0], offsets[1]))
    entries.sort(key=lambda entry: entry[3:])
    place = 0
    for name, _, _, begin, end in entries:
        if begin != place:
            raise ValueError(f"{where} has a gap or an overlap before {name!r:.80}")
        place = end
    if 8 + length + place != size:
        raise ValueError(f"{where} has {size} bytes, its header says {8 + length + place}")
    return entries, 8 + length


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)


# ---- model and optimizer by name ---------------------------------------------------------------------------------


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into the model; InputError, before any is copied, if names or shapes are not the model's."""
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is unknown to the model" for name in tensors if name not in own]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)} {tensors[name].dtype}, the model has {tuple(t.shape)} {t.dtype}"
        for name, t in own.items()
        if name in tensors and (tensors[name].shape != t.shape or tensors[name].dtype != t.dtype)
    ]
    if wrong:
        raise _another("model", wrong)
    model.load_state_dict(dict(tensors))


def optimizer_tensors(
    optimizers: Mapping[str, Optimizer], named_parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """State of the optimizers {"muon": ...} as tensors named ``muon/blocks.0.q.weight/momentum_buffer``, not copied.

    A Python number in the state becomes a tensor of no dimension whose name ends in ``#int`` or ``#float``.
    Learning rates and other settings are not state: they come from the recipe and the step.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in named_parameters.items()}
    tensors: dict[str, Tensor] = {}
    for kind, optimizer in optimizers.items():
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                name = f"{kind}/{names[parameter]}/{key}"
                if isinstance(value, Tensor):
                    saved = value
                elif type(value) is int:
                    name, saved = f"{name}#int", torch.tensor(value, dtype=torch.int64)
                elif type(value) is float:
                    name, saved = f"{name}#float", torch.tensor(value, dtype=torch.float64)
                elif value is None:
                    continue
                else:
                    raise TypeError(f"{name} is a {type(value).__name__}; only tensors and numbers are saved")
                tensors[name] = saved
    return tensors


def restore_optimizer(
    optimizers: Mapping[str, Optimizer],
    named_parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Give fresh optimizers the state that `optimizer_tensors` saved, in its own precision.

    InputError, before anything is changed, if it is of other parameters, other shapes or another optimizer.
    """
    owners = {
        (kind, parameter): (optimizer, group)
        for kind, optimizer in optimizers.items()
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    wrong: list[str] = []
    plan: list[tuple[Optimizer, nn.Parameter, str, Any]] = []
    for full_name, tensor in tensors.items():
        kind, _, rest = full_name.partition("/")
        name, _, key = rest.rpartition("/")
        owner = owners.get((kind, named_parameters[name])) if name in named_parameters else None
        if owner is None or not key:
            wrong.append(f"{full_name} has no counterpart")
            continue
        optimizer, group = owner
        parameter = named_parameters[name]
        value: Any
        if key.endswith(("#int", "#float")) and tensor.ndim == 0:
            key, value = key.rpartition("#")[0], tensor.item()
        elif key == "step" and tensor.ndim == 0:  # beside the parameter only where the optimizer itself puts it
            beside = group.get("fused") or group.get("capturable")
            value = tensor.to(parameter.device if beside else "cpu", copy=True)
        elif tensor.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        else:
            wrong.append(f"{full_name} is {tuple(tensor.shape)}, the parameter is {tuple(parameter.shape)}")
            continue
        plan.append((optimizer, parameter, key, value))
    if wrong:
        raise _another("optimizer", wrong)
    for optimizer in optimizers.values():
        optimizer.state.clear()
    for optimizer, parameter, key, value in plan:
        optimizer.state[parameter][key] = value


def _another(thing: str, wrong: list[str]) -> InputError:
    more = [f"and {len(wrong) - 5} more"] if len(wrong) > 5 else []
    return InputError(
        f"the checkpoint is of another {thing}",
        why="\n       ".join(wrong[:5] + more),
        mend="resume with the recipe the run was started with (RUN/recipe.toml), or train into another folder",
    )


# ---- random number generators --------------------------------------------------------------------------------------


def capture_rng() -> dict[str, Any]:
    """The generators of Python, NumPy, torch and each CUDA device of this process, as JSON values."""
    version, words, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - code we call may use it
    assert algorithm == "MT19937"
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, np.array(words, dtype="<u4").tobytes().hex(), gauss],
        "numpy": [np.asarray(keys).astype("<u4").tobytes().hex(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [state.numpy().tobytes().hex() for state in cuda],
    }


def restore_rng(saved: Mapping[str, Any]) -> None:
    """Put the generators back as `capture_rng` found them; ValueError if `saved` is not what it gives."""
    try:
        version, words, gauss = saved["python"]
        python = (version, tuple(np.frombuffer(bytes.fromhex(words), dtype="<u4").tolist()), gauss)
        keys, position, has_gauss, cached = saved["numpy"]
        numpy = ("MT19937", np.frombuffer(bytes.fromhex(keys), dtype="<u4"), position, has_gauss, cached)
        own = _byte_tensor(saved["torch"])
        cuda = [_byte_tensor(state) for state in saved["cuda"]]
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(own)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the saved random number generators cannot be restored: {error}") from None
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)


def _byte_tensor(digits: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8)
