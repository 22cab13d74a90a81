"""A checkpoint is whole or absent, seen through when damaged, and brings a run back bit for bit."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from reliability.corruption import FILES, corrupt
from reliability.crash_points import hidden, newest, save
from reliability.faults import Disk, file_size_limit, rewritten
from zhixing.errors import InputError
from zhixing.files import sha256_file
from zhixing.training.checkpoint import (
    DTYPES,
    SaveGuard,
    TrainingState,
    capture_rng,
    checkpoint_path,
    list_steps,
    load_newest,
    load_step,
    optimizer_tensors,
    purge,
    read_safetensors,
    restore_model,
    restore_optimizer,
    restore_rng,
    save_checkpoint,
    write_safetensors,
)
from zhixing.training.optimizers import Muon
from zhixing.training.runlock import StopSignals, run_lock

ROOT = Path(__file__).parents[1]


# ---- what is saved comes back ---------------------------------------------------------------------------------------


def test_all_comes_back_bit_for_bit(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    model = {f"a.{name}": torch.randint(0, 2, (3, 5), generator=draw).to(dtype) for name, dtype in DTYPES.items()}
    model |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "crossed": torch.randn(4, 6, generator=draw).T}
    model |= {"nan": torch.tensor([float("nan"), -0.0, 1e-45, float("inf")]), "名": torch.ones(2)}
    state = TrainingState(
        123,
        984,
        62_976,
        3.25,
        100,
        2,
        17.5,
        {"0": capture_rng()},
        {"recipe": "ab", "threads": 1, "torch": torch.__version__},
    )
    path = save_checkpoint(tmp_path, model, {"sgd/a/momentum_buffer": model["nan"]}, state)
    assert path == tmp_path / "checkpoints" / "step-00000123"
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)
    checkpoint = load_newest(tmp_path)
    assert checkpoint is not None and (checkpoint.path, checkpoint.state, checkpoint.messages) == (path, state, [])
    assert load_step(tmp_path, 123).state == state
    assert set(checkpoint.model) == set(model)
    for name, tensor in model.items():
        back = checkpoint.model[name]
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert (
            back.contiguous().view(-1).view(torch.uint8).tolist()
            == tensor.contiguous().view(-1).view(torch.uint8).tolist()
        )


def test_the_official_library_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    tensors = {f"t{i}.{n}": torch.arange(i * 3).reshape(i, 3).to(d) for i, (n, d) in enumerate(DTYPES.items())}
    tensors["scalar"] = torch.tensor(2.0)
    write_safetensors(tmp_path / "ours", tensors)
    safetensors.torch.save_file(tensors, tmp_path / "theirs", {"note": "with metadata"})
    for back in (safetensors.torch.load_file(tmp_path / "ours"), read_safetensors(tmp_path / "theirs")):
        assert set(back) == set(tensors)
        assert all(back[n].dtype == t.dtype and torch.equal(back[n], t) for n, t in tensors.items())


def test_tied_tensors_are_written_once_and_come_back_under_both_names(tmp_path: Path) -> None:
    weight = torch.randn(50, 40)
    path = save_checkpoint(tmp_path, {"embed": weight, "head": weight, "part": weight[:5]}, {}, TrainingState(1))
    assert set(read_safetensors(path / "model.safetensors")) == {"embed", "part"}
    back = load_step(tmp_path, 1).model
    assert torch.equal(back["head"], weight) and back["head"] is back["embed"] and torch.equal(back["part"], weight[:5])


def test_an_unknown_dtype_is_refused_before_a_file_appears(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="complex64"):
        save_checkpoint(tmp_path, {"z": torch.zeros(2, dtype=torch.complex64)}, {}, TrainingState(1))
    assert list_steps(tmp_path) == [] and not hidden(tmp_path)


def test_random_generators_go_on_where_they_were() -> None:
    def draw() -> list[float]:  # an odd count of each: Python and NumPy draw normal numbers in pairs
        return [random.random(), random.gauss(0, 1), *np.random.randn(3).tolist(), *torch.randn(3).tolist()]  # noqa: NPY002

    draw()
    saved = json.loads(json.dumps(capture_rng()))
    first = draw()
    assert draw() != first
    restore_rng(saved)
    assert draw() == first


@pytest.mark.parametrize("key", ["python", "numpy", "torch", "cuda"])
@pytest.mark.parametrize("value", [None, [], "zz", "00", [1, "00", None]])
def test_a_generator_that_is_none_is_refused(key: str, value: object) -> None:
    if key == "cuda" and value == []:
        return
    with pytest.raises(ValueError, match="random number generators"):
        restore_rng({**capture_rng(), key: value})


def network(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 6), nn.LayerNorm(6)).to(dtype)


def optimizers_for(kind: str, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    if kind == "adamw":
        return {"adamw": torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)}
    if kind == "adam":
        return {"adam": torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)}
    if kind == "sgd":
        return {"sgd": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)}
    if kind == "muon":
        return {"muon": Muon(list(matrices), 0.02, 0.95, 0.0), "adamw": torch.optim.AdamW(rest, lr=0.01, fused=True)}
    return {"muon": torch.optim.Muon(matrices, lr=0.02), "adamw": torch.optim.AdamW(rest, lr=0.01)}


def train(model: nn.Module, optimizers: dict[str, torch.optim.Optimizer], first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step)).to(next(model.parameters()).dtype)
        (model(x) - x.flip(1)).square().mean().backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()


def bits(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {n: t.detach().contiguous().reshape(-1).view(torch.uint8).tolist() for n, t in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "muon", "torch's muon"])
def test_three_steps_and_three_more_are_six_steps(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    straight = network(dtype)
    optimizers = optimizers_for(kind, straight)
    train(straight, optimizers, 0, 3)
    named = dict(straight.named_parameters())
    save_checkpoint(tmp_path, straight.state_dict(), optimizer_tensors(optimizers, named), TrainingState(3))
    train(straight, optimizers, 3, 6)

    resumed = network(dtype)
    nn.init.constant_(resumed.get_parameter("0.weight"), 9.0)
    fresh = optimizers_for(kind, resumed)
    train(resumed, fresh, 50, 51)  # state of its own, which must go
    checkpoint = load_step(tmp_path, 3)
    restore_model(resumed, checkpoint.model)
    named_again = dict(resumed.named_parameters())
    restore_optimizer(fresh, named_again, checkpoint.optimizer)
    train(resumed, fresh, 3, 6)
    assert bits(resumed.state_dict()) == bits(straight.state_dict())
    assert bits(optimizer_tensors(fresh, named_again)) == bits(optimizer_tensors(optimizers, named))
    assert {f"{k}/0.weight" for k in optimizers} & {n.rpartition("/")[0] for n in checkpoint.optimizer}


class CountsInPython(torch.optim.Optimizer):
    """An optimizer whose state has numbers that are no tensors."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1.0})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["count"], state["decay"] = state.get("count", 0) + 1, state.get("decay", 1.0) / 3
            state["nothing"] = None


def test_numbers_of_python_stay_numbers(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = CountsInPython([parameter])
    optimizer.step()
    save_checkpoint(tmp_path, {}, optimizer_tensors({"own": optimizer}, {"p": parameter}), TrainingState(1))
    fresh = CountsInPython([parameter])
    restore_optimizer({"own": fresh}, {"p": parameter}, load_step(tmp_path, 1).optimizer)
    assert dict(fresh.state[parameter]) == {"count": 1, "decay": 1 / 3}
    assert type(fresh.state[parameter]["count"]) is int
    optimizer.state[parameter]["bad"] = object()
    with pytest.raises(TypeError, match="own/p/bad is a object"):
        optimizer_tensors({"own": optimizer}, {"p": parameter})


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"adamw/0.weight/exp_avg": torch.zeros(3, 3)},
        lambda t: t | {"adamw/9.weight/exp_avg": torch.zeros(8, 6)},
        lambda t: t | {"sgd/0.weight/momentum_buffer": torch.zeros(8, 6)},
        lambda t: t | {"nonsense": torch.zeros(1)},
        lambda t: t | {"adamw/0.weight/step": torch.zeros(2)},
        lambda t: t | {"adamw/0.weight/n#int": torch.zeros(2)},
    ],
)
def test_state_of_another_optimizer_is_refused_and_changes_nothing(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    model = network(torch.float32)
    optimizers = optimizers_for("adamw", model)
    train(model, optimizers, 0, 1)
    named = dict(model.named_parameters())
    before = bits(optimizer_tensors(optimizers, named))
    with pytest.raises(InputError, match="another optimizer"):
        restore_optimizer(optimizers, named, change(optimizer_tensors(optimizers, named)))
    assert bits(optimizer_tensors(optimizers, named)) == before


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda t: {n: v for n, v in t.items() if n != "0.weight"}, "0.weight is missing"),
        (lambda t: t | {"7.weight": torch.zeros(1)}, "7.weight is unknown to the model"),
        (lambda t: t | {"0.weight": torch.zeros(8, 7)}, r"0.weight is \(8, 7\) torch.float32, the model has \(8, 6\)"),
        (lambda t: t | {"0.weight": torch.zeros(8, 6).half()}, "torch.float16"),
        (lambda t: {f"block.{n}": v for n, v in t.items()}, "and 5 more"),
    ],
)
def test_another_architecture_is_refused_and_changes_nothing(change: Any, told: str) -> None:
    model = network(torch.float32)
    before = bits(model.state_dict())
    with pytest.raises(InputError, match="another model") as caught:
        restore_model(model, change(network(torch.float32).state_dict()))
    assert caught.match(told)
    assert bits(model.state_dict()) == before


# ---- which one is loaded --------------------------------------------------------------------------------------------


def test_no_run_and_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "absent") is None
    assert load_newest(tmp_path) is None
    with pytest.raises(InputError, match="no checkpoint of step 3"):
        load_step(tmp_path, 3)


def test_two_hundred_damages_are_all_seen() -> None:
    assert corrupt(200, seed=1)["detected"] == 200


@pytest.mark.release
def test_ten_thousand_damages_are_all_seen() -> None:
    assert corrupt(10_000, seed=2)["detected"] == 10_000


def test_when_all_are_bad_all_are_listed_and_none_is_lost(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    (checkpoint_path(tmp_path, 5) / "state.json").unlink()
    (checkpoint_path(tmp_path, 10) / "model.safetensors").write_bytes(b"")
    shutil.rmtree(checkpoint_path(tmp_path, 15))
    checkpoint_path(tmp_path, 15).write_text("a file, not a folder")
    with pytest.raises(InputError) as caught:
        load_newest(tmp_path)
    for told in ("nothing was deleted", "step-00000005: state.json is missing", "step-00000010: model.safetensors has 0 bytes",
                 "step-00000015: MANIFEST.json is missing", "kept as step-00000010.bad"):  # fmt: skip
        assert told in str(caught.value)
    with pytest.raises(InputError, match=r"step-00000015\.bad was set aside before"):
        load_newest(tmp_path)  # a second try must not start from nothing either
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        f"step-000000{n}.bad" for n in ("05", "10", "15")
    ]


def test_a_newer_schema_is_passed_over_but_stays(tmp_path: Path) -> None:
    save(tmp_path, 5)
    path = save(tmp_path, 10)
    rewritten(path, schema=2)
    checkpoint = load_newest(tmp_path)
    assert (
        checkpoint is not None and checkpoint.state.step == 5 and "a newer zhixing wrote it" in checkpoint.messages[0]
    )
    assert path.is_dir()
    with pytest.raises(InputError, match="a newer zhixing wrote it"):
        load_step(tmp_path, 10)


def test_a_damaged_step_is_refused_by_name_and_left(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    (path / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"step 5 cannot be used(.|\n)*state.json has 2 bytes"):
        load_step(tmp_path, 5)
    assert path.is_dir()


def restate(path: Path, text: str) -> None:
    """state.json with other contents, under a manifest that agrees."""
    (path / "state.json").write_text(text)
    listed = {
        p.name: {"size": p.stat().st_size, "sha256": sha256_file(p)} for p in path.iterdir() if p.name != FILES[3]
    }
    rewritten(path, files=listed)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, '{"state": {}, "tied": {}}', '{"state": null, "tied": {}}', '{"state": {}, "tied": {"a": 3}}',
     json.dumps({"state": dataclasses.asdict(TrainingState(6)), "tied": {}}),
     json.dumps({"state": dataclasses.asdict(TrainingState(5)), "tied": {"x": "absent"}}),
     json.dumps({"state": dataclasses.asdict(TrainingState(5)), "tied": {"weight": "bias"}}),
     json.dumps({"state": {**dataclasses.asdict(TrainingState(5)), "step": True}, "tied": {}}),
     json.dumps({"state": {**dataclasses.asdict(TrainingState(5)), "more": 1}, "tied": {}}),
     json.dumps({"state": {**dataclasses.asdict(TrainingState(5)), "best_loss": "low"}, "tied": {}})],
)  # fmt: skip
def test_a_state_that_is_none_is_refused_even_under_a_right_manifest(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 5)
    restate(path, text)
    with pytest.raises(InputError, match=r"state\.json"):
        load_step(tmp_path, 5)


def test_a_checkpoint_of_before_the_log_window_was_kept_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    state = dataclasses.asdict(TrainingState(5))
    del state["recent_loss"], state["recent_count"]
    restate(path, json.dumps({"state": state, "tied": {}}))
    assert load_step(tmp_path, 5).state == TrainingState(5)


def test_a_file_that_the_manifest_leaves_out_is_missed(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    rewritten(path, files={})
    with pytest.raises(InputError, match=r"model\.safetensors is not in the manifest"):
        load_step(tmp_path, 5)


def test_the_same_step_again_is_kept_and_another_set_aside(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    inode = path.stat().st_ino
    assert save(tmp_path, 5) == path and path.stat().st_ino == inode
    save_checkpoint(tmp_path, {"weight": torch.zeros(1)}, {}, TrainingState(5, samples_seen=999))
    assert load_step(tmp_path, 5).state.samples_seen == 999
    assert (tmp_path / "checkpoints" / "step-00000005.bad").is_dir()


# ---- hostile files --------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("name", FILES)
def test_a_pickle_under_our_names_does_not_run(tmp_path: Path, name: str, form: str) -> None:
    mark = tmp_path / "ran"
    path = save(tmp_path / "run", 5)
    if form == "pickle":
        (path / name).write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save(Bomb(mark), path / name)
    if name != FILES[3]:
        rewritten(
            path,
            files={
                p.name: {"size": p.stat().st_size, "sha256": sha256_file(p)}
                for p in path.iterdir()
                if p.name != FILES[3]
            },
        )
    bomb = (path / name).read_bytes()
    with pytest.raises(InputError, match="no checkpoint of this run can be used"):
        load_newest(tmp_path / "run")
    assert not mark.exists()
    pickle.loads(bomb) if form == "pickle" else torch.load(io.BytesIO(bomb), weights_only=False)
    assert mark.exists()  # it was live


def with_header(path: Path, header: object, payload: bytes = b"\0" * 64, length: int | None = None) -> Path:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(head) if length is None else length).to_bytes(8, "little") + head + payload)
    return path


def entry(dtype: object = "F32", shape: object = (16,), offsets: object = (0, 64)) -> dict[str, object]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "header",
    [
        b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 90_000, {"x": 3}, {"x": {}},
        entry(shape=(1 << 40,), offsets=(0, 1 << 42)), entry(shape=(1 << 61, 1 << 61), offsets=(0, 64)),
        entry(shape=(-4, -4)), entry(shape=(16.0,)), entry(shape=(True, 16)), entry(shape=[[16]]), entry(shape="16"),
        entry(shape=(1,) * 10_000 + (16,)), entry(offsets=(64, 0)), entry(offsets=(0,)), entry(offsets=(0, 64, 64)),
        entry(offsets=(4, 68)), entry(offsets=(0, 60), shape=(15,)), entry(dtype="F31"), entry(dtype=["F32"]), entry(dtype=None),
        {**entry(shape=(8,), offsets=(0, 32)), "y": {"dtype": "F32", "shape": [8], "data_offsets": [16, 48]}},
        {**entry(shape=(1 << 61,), offsets=(0, 64)), "__metadata__": {"a": "b"}},
        {**entry(), "y": {"dtype": "F32", "shape": [0, 1 << 62], "data_offsets": [64, 64]}},
        b'{"x": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 64]}}',
    ],
)  # fmt: skip
def test_a_crafted_header_is_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(ValueError, match="crafted"):
        read_safetensors(with_header(tmp_path / "crafted", header))


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_crafted_header_length_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ValueError, match="no safetensors header"):
        read_safetensors(with_header(tmp_path / "crafted", entry(), length=length))
    (tmp_path / "short").write_bytes(b"\0" * 7)
    with pytest.raises(ValueError, match="no safetensors header"):
        read_safetensors(tmp_path / "short")


def test_mutated_headers_neither_crash_nor_take_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mutated"
    write_safetensors(
        path, {"a.weight": torch.ones(8, 4), "b": torch.ones(7, dtype=torch.bfloat16), "c": torch.tensor(1)}
    )
    good = path.read_bytes()
    head = 8 + int.from_bytes(good[:8], "little")
    taken: list[int] = []
    real = torch.empty

    def counted(size: int, **options: Any) -> Tensor:
        taken.append(size)
        return real(size, **options)

    monkeypatch.setattr(torch, "empty", counted)
    draw = random.Random(5)
    refused = 0
    tracemalloc.start()
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(draw.choice((1, 1, 2, 5))):
            data[draw.randrange(head)] = draw.choice(b'0123456789[]{},:"-eF\x00\xff')
        path.write_bytes(data)
        taken.clear()
        try:
            read_safetensors(path)  # another name, or a 4 x 8, is as good a file
        except ValueError:
            refused += 1
        assert sum(taken) <= len(good)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 1000 and peak < 2_000_000


# ---- kill, full disk ------------------------------------------------------------------------------------------------


def test_kill_before_every_operation_of_a_save_and_a_purge() -> None:
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "reliability.crash_points"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)["killed_before"]
    assert points["save"] >= 20 and points["purge"] == 21  # three directories: rename, fsync, four files, rmdir


def full_disks(tmp_path: Path, count: int) -> None:
    draw = random.Random(7)
    save(tmp_path, 5)
    size = sum(p.stat().st_size for p in checkpoint_path(tmp_path, 5).iterdir())
    largest = max(p.stat().st_size for p in checkpoint_path(tmp_path, 5).iterdir())
    for _ in range(count):
        with pytest.raises(OSError, match="No space left on device"), Disk(room=draw.randrange(size)).installed():
            save(tmp_path, 10)
        with pytest.raises(OSError, match="File too large"), file_size_limit(draw.randrange(largest)):
            save(tmp_path, 10)
        assert list_steps(tmp_path) == [5] and not hidden(tmp_path) and newest(tmp_path) == 5
    save(tmp_path, 10)
    assert newest(tmp_path) == 10


def test_a_full_disk_costs_the_new_checkpoint_only(tmp_path: Path) -> None:
    full_disks(tmp_path, 20)


@pytest.mark.release
def test_two_hundred_full_disks(tmp_path: Path) -> None:
    full_disks(tmp_path, 200)


def test_the_guard_warns_twice_and_stops_at_the_third_failure_in_a_row(tmp_path: Path) -> None:
    told: list[str] = []
    guard = SaveGuard(warn=told.append)

    def attempt(step: int, room: int | None) -> None:
        with guard, Disk(room=room).installed():
            save(tmp_path, step)

    for step, room in ((1, 100), (2, 100), (3, None), (4, 0), (5, 0)):
        attempt(step, room)
    assert guard.failures == 2 and len(told) == 4 and list_steps(tmp_path) == [3]
    assert all("No space left on device" in line and "training goes on" in line for line in told)
    with pytest.raises(InputError, match="3 times in a row") as caught:
        attempt(6, 50)
    assert "earlier checkpoints are whole" in caught.value.mend and newest(tmp_path) == 3
    with pytest.raises(ZeroDivisionError), guard:
        1 / 0  # noqa: B018 - other errors are not the guard's


def test_purge_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 25):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step-00000003.bad").mkdir()
    (tmp_path / "checkpoints" / "note").write_text("not ours")
    assert purge(tmp_path, 2, {10, 999}) == [5, 15]
    assert list_steps(tmp_path) == [10, 20, 25]
    assert purge(tmp_path, 2, {10}) == []
    assert (tmp_path / "checkpoints" / "step-00000003.bad").is_dir() and (tmp_path / "checkpoints" / "note").is_file()
    with pytest.raises(ValueError, match="at least 2"):
        purge(tmp_path, 1)
    assert purge(tmp_path / "absent", 2) == []


# ---- one trainer, no orphans, signals -------------------------------------------------------------------------------


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


HOLD = """
import os, sys, time
from pathlib import Path
from zhixing.training.runlock import run_lock
with run_lock(Path(sys.argv[1])):
    if len(sys.argv) == 2 or os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("with_child", [False, True])
def test_a_second_trainer_is_refused_until_the_first_is_gone(tmp_path: Path, with_child: bool) -> None:
    holder = python(HOLD, str(tmp_path / "run"), *(["child"] if with_child else []))
    child = int(line(holder))
    with pytest.raises(InputError, match=f"process {holder.pid} holds the lock"), run_lock(tmp_path / "run"):
        pass
    holder.kill()
    holder.wait()
    left = tmp_path / "run" / f".samples.jsonl.tmp-{holder.pid}-0123abcd"
    left.write_text("half")
    trash = tmp_path / "run" / "checkpoints" / f".step-00000005.trash-{holder.pid}-0123abcd"
    trash.mkdir(parents=True)
    reused = tmp_path / "run" / f".facts.json.tmp-{os.getppid()}-0123abcd"  # its number is now that of another process
    reused.write_text("half")
    try:
        with run_lock(tmp_path / "run"):  # a forked child that lives on does not keep the lock
            assert not left.exists() and not trash.exists() and not reused.exists()
            with pytest.raises(InputError, match=f"process {os.getpid()} holds"), run_lock(tmp_path / "run"):
                pass
        with run_lock(tmp_path / "run"):
            pass
    finally:
        if with_child:
            os.kill(child, signal.SIGKILL)


LAUNCH = """
import subprocess, sys, time
worker = "from zhixing.training.runlock import die_with_parent as d; import time; d(); print('on', flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", worker], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child")
def test_a_worker_dies_with_its_launcher() -> None:
    launcher = python(LAUNCH)
    worker = int(line(launcher))
    os.kill(worker, 0)
    launcher.kill()
    launcher.wait()
    for _ in range(1000):
        if not _runs(worker):
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker lived on")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


WAIT = """
import time
from zhixing.training.runlock import StopSignals
with StopSignals() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("finishing", flush=True)
    time.sleep(0.3)
    {then}
raise SystemExit(stop.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_ends(number: signal.Signals) -> None:
    once = python(WAIT.format(then="print('saved')"))
    twice = python(WAIT.format(then="time.sleep(60)"))
    for process in (once, twice):
        assert line(process) == "ready"
        process.send_signal(number)
        assert line(process) == "finishing"
    twice.send_signal(number)
    assert twice.wait(60) == 128 + number
    assert line(once) == "saved"
    assert once.wait(60) == 128 + number
    assert once.stderr is not None and number.name in once.stderr.read()


def test_a_signal_in_the_midst_of_a_line_still_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def reentered(text: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    monkeypatch.setattr("zhixing.training.runlock.say", reentered)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested and stop.exit_code == 143


def test_handlers_come_back_and_threads_are_left_alone() -> None:
    from threading import Thread

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert signal.getsignal(signal.SIGTERM) != before[0]
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested and stop.exit_code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    states: list[bool] = []

    def elsewhere() -> None:
        with StopSignals() as stop:
            states.append(stop.requested)

    thread = Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert states == [False] and (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
