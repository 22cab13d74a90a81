"""The one training loop. It knows a model, an objective, a data order and a run directory, and no model by name.

One step:  sum the objective over accumulation steps and processes, divide once by the global number of targets,
clip, check that all is finite, step. A checkpoint is saved before the evaluation that might fail. Everything that
decides the next step (data order, learning rate) is a pure function of the step's number, so that resuming is exact.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zhixing.errors import InputError
from zhixing.files import atomic_write
from zhixing.progress import Progress, quantity, say
from zhixing.recipe import EvalSettings, TrainSettings
from zhixing.training.checkpoint import (
    SaveGuard,
    TrainingState,
    capture_rng,
    checkpoint_path,
    load_newest,
    load_step,
    optimizer_tensors,
    purge,
    restore_model,
    restore_optimizer,
    restore_rng,
    save_checkpoint,
)
from zhixing.training.objectives import IGNORED, Objective, TokenBatch
from zhixing.training.optimizers import Optimizers
from zhixing.training.parallel import Parallel
from zhixing.training.runlock import StopSignals
from zhixing.training.schedules import learning_rate_factor

SINGLE = Parallel()
EVALUATIONS_UNTIL_OVERFIT = 3  # held-out losses rising in a row while the training loss falls


class Sequences(Protocol):
    """Training sequences in the order of the run, and evaluation sequences in the order of the text."""

    def __len__(self) -> int: ...
    def batch(self, first: int, count: int) -> TokenBatch: ...
    def sequential(self, first: int, count: int) -> TokenBatch: ...


@dataclass(frozen=True)
class Measures:
    """What is looked at on held-out batches beside the loss, in the same pass over them, the first of it shown.

    sums(model, batch) -> (1 + K,): the sums over the batch of the loss and of what the K names say.
    """

    names: tuple[str, ...]
    sums: Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class FitResult:
    """How a run ended."""

    step: int
    best_step: int
    best_loss: float  # nats per target, on the held-out sequences looked at during training
    seconds: float
    tokens: int
    ended: str  # "max_steps" | "early stop" | "signal"
    exit_code: int  # 128 + the signal's number, or 0


@dataclass
class Watch:
    """The guards' memory: the best held-out loss, and whether it rises while training goes on falling."""

    best_loss: float = math.inf
    best_step: int = -1
    bad_evals: int = 0
    recent: list[tuple[float, float]] = field(default_factory=list)  # (training loss, held-out loss)
    said: bool = False  # that it overfits, once a run

    def see(self, step: int, train_loss: float, heldout_loss: float) -> bool:
        """Take in an evaluation; True if it is the best so far."""
        self.recent = [*self.recent, (train_loss, heldout_loss)][-EVALUATIONS_UNTIL_OVERFIT - 1 :]
        if heldout_loss < self.best_loss or step == self.best_step:  # a resumed run measures its best again
            self.best_loss, self.best_step, self.bad_evals = heldout_loss, step, 0
            return True
        self.bad_evals += 1
        return False

    def overfits(self) -> bool:
        """Held-out loss rose in each of the last evaluations and training loss fell over the same time."""
        if len(self.recent) <= EVALUATIONS_UNTIL_OVERFIT:
            return False
        heldout = [h for _, h in self.recent]
        return all(a < b for a, b in itertools.pairwise(heldout)) and self.recent[-1][0] < self.recent[0][0]


def fit(
    model: nn.Module,
    objective: Objective,
    optimizers: Optimizers,
    train: Sequences,
    heldout: Sequences,
    settings: TrainSettings,
    eval_settings: EvalSettings,
    run_dir: Path,
    facts: dict[str, Any],
    parallel: Parallel = SINGLE,
    *,
    resume: bool = False,
    bf16: bool = False,
    compiled: bool = False,
    bytes_per_token: float | None = None,
    unit: str = "tokens",
    measures: Measures | None = None,
) -> FitResult:
    """Train `model` in place; leaves metrics.jsonl and checkpoints/ in run_dir and the model at its best step.

    `settings` must be resolved: max_steps, eval_steps and save_steps are numbers. `facts` (hashes of recipe, tokenizer
    and data, threads, dtype) are stored with each checkpoint and compared on resume. bytes_per_token turns held-out
    nats into bits per byte, where there is text to be predicted; `unit` is what targets are called; `measures` are
    logged with each held-out loss. InputError: a loss or gradient that is not finite, a checkpoint of another run.
    """
    t = settings
    assert isinstance(t.max_steps, int) and isinstance(t.eval_steps, int) and isinstance(t.save_steps, int)
    named = dict(model.named_parameters())
    state = TrainingState(facts=facts)
    watch = Watch()
    if resume:
        state, watch = _resume(model, optimizers, named, run_dir, facts, parallel)
        if parallel.main:  # a purge that was killed is made up for
            purge(run_dir, t.save_total_limit, {watch.best_step} if watch.best_step >= 0 else set())
    elif parallel.main:
        atomic_write(run_dir / "metrics.jsonl", "")
    net: Any = parallel.wrap(model)
    if compiled:
        net = torch.compile(net)
    guard = SaveGuard()
    per_step = t.per_device_train_batch_size * t.gradient_accumulation_steps * parallel.world  # sequences
    progress = Progress("training", t.max_steps)
    log = MetricsLog(run_dir, t.tensorboard and parallel.main, state.step) if parallel.main else None
    ended = "max_steps"
    recent_loss, recent_count = state.recent_loss, state.recent_count  # since the last line of the log
    train_loss = log.last_training_loss if log else math.nan
    began = logged_at = time.perf_counter()
    seconds_before, tokens_logged = state.seconds, state.tokens_seen

    def snapshot() -> TrainingState:
        return replace(
            state,
            best_loss=None if watch.best_step < 0 else watch.best_loss,
            best_step=watch.best_step if watch.best_step >= 0 else None,
            bad_evals=watch.bad_evals,
            seconds=seconds_before + time.perf_counter() - began,
            recent_loss=recent_loss,
            recent_count=recent_count,
            rng=_all_rng(parallel),
            facts=facts,
        )

    def save() -> bool:
        """Whether the checkpoint of this step is on the disk now."""
        taken = snapshot()  # every process takes part: each has its own random state
        if parallel.main:
            with guard:
                save_checkpoint(run_dir, _tensors(model), optimizer_tensors(optimizers.members, named), taken)
                purge(run_dir, t.save_total_limit, {watch.best_step} if watch.best_step >= 0 else set())
        return parallel.any(parallel.main and checkpoint_path(run_dir, state.step).is_dir())  # waits for the first

    def evaluate() -> bool:
        """Measure held-out loss; True if training should stop."""
        means = heldout_means(model, objective, heldout, eval_settings, parallel, bf16, measures)
        loss = means.pop("loss")
        best = watch.see(state.step, train_loss, loss)
        bits = {} if bytes_per_token is None else {"eval_bits_per_byte": loss / math.log(2) / bytes_per_token}
        shown = recent_loss / recent_count if recent_count else train_loss  # since the last line of the log
        if log:
            others = {f"eval_{name}": value for name, value in means.items()}
            log.write({"step": state.step, "eval_loss": loss, **bits, **others, "best": best})
            mark = "  best so far" if best else ""
            progress.close(
                f"step {state.step:>6} of {t.max_steps}   training loss {shown:.3f}"
                f"   held-out loss {loss:.3f}"
                + "".join(f"   {value:.3f} bits per byte" for value in bits.values())
                + "".join(f"   {name} {value:.3f}" for name, value in list(means.items())[:1])
                + mark
            )
            if watch.overfits() and not watch.said:
                watch.said = True
                say(
                    f"overfitting: held-out loss has risen {EVALUATIONS_UNTIL_OVERFIT} times in a row while training"
                    f" loss falls; the model of step {watch.best_step} is kept"
                )
        return 0 < t.early_stopping_patience <= watch.bad_evals

    with StopSignals() as signals:
        if resume and state.step and (state.step % t.eval_steps == 0 or state.step == t.max_steps):
            if evaluate():
                ended = "early stop"
        while ended == "max_steps" and state.step < t.max_steps:
            model.train()
            factor = learning_rate_factor(
                t.lr_scheduler_type, state.step, t.max_steps, t.warmup_steps, t.decay_fraction, t.min_lr_ratio
            )
            optimizers.set_factor(factor)
            first = state.samples_seen
            batches = [
                train.batch(
                    first + (k * parallel.world + parallel.rank) * t.per_device_train_batch_size,
                    t.per_device_train_batch_size,
                )
                for k in range(t.gradient_accumulation_steps)
            ]
            count = parallel.sum(torch.stack([(b.targets != IGNORED).sum() for b in batches]).sum())
            scale = parallel.world / count  # DDP takes the mean over processes
            loss_sum = torch.zeros(())
            for k, batch in enumerate(batches):
                last = k == len(batches) - 1
                with contextlib.nullcontext() if last else parallel.no_sync(net):
                    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                        loss, _ = objective(net, batch)
                    torch.autograd.backward(loss * scale)
                loss_sum += loss.detach()
            mean_loss = float(parallel.sum(loss_sum) / count)
            limit = t.max_grad_norm or math.inf
            grad_norm = float(nn.utils.clip_grad_norm_(named.values(), limit))
            if not (math.isfinite(mean_loss) and math.isfinite(grad_norm)):
                raise _not_finite(state.step, mean_loss, grad_norm, first, per_step, run_dir, t)
            optimizers.step()
            optimizers.zero_grad()
            tokens = int(count)
            state = replace(
                state, step=state.step + 1, samples_seen=first + per_step, tokens_seen=state.tokens_seen + tokens
            )
            recent_loss, recent_count = recent_loss + mean_loss, recent_count + 1
            now = time.perf_counter()
            stopping = parallel.any(signals.requested)
            if log and (state.step % t.logging_steps == 0 or state.step == t.max_steps):
                train_loss = recent_loss / recent_count
                speed = (state.tokens_seen - tokens_logged) / (now - logged_at)
                log.write(
                    {
                        "step": state.step,
                        "max_steps": t.max_steps,
                        "loss": train_loss,
                        "learning_rate": factor * t.learning_rate,
                        "grad_norm": grad_norm,
                        "tokens": state.tokens_seen,
                        "tokens_per_second": speed,
                        "seconds": seconds_before + now - began,
                    }
                )
                recent_loss, recent_count, logged_at, tokens_logged = 0.0, 0, now, state.tokens_seen
                note = f"loss {train_loss:.3f}   {quantity(speed)} {unit}/s"
                progress.update(state.step, note)
            at_end = state.step == t.max_steps
            due = stopping or at_end or state.step % t.save_steps == 0
            saved = due and save()
            if stopping:
                ended = "signal"
            elif at_end or state.step % t.eval_steps == 0:
                paused = time.perf_counter()
                if math.isnan(train_loss):
                    train_loss = mean_loss
                best = watch.best_loss, watch.best_step
                if evaluate():
                    ended = "early stop"
                if watch.best_step == state.step and not (saved if due else save()):
                    watch.best_loss, watch.best_step = best  # a best model that is not on the disk is none
                logged_at += time.perf_counter() - paused
        if ended != "signal" and parallel.any(signals.requested):  # while the last step was saved or measured
            ended = "signal"
            if not parallel.any(parallel.main and checkpoint_path(run_dir, state.step).is_dir()):
                save()
    seconds = seconds_before + time.perf_counter() - began
    if log:
        log.close()
    if ended == "signal":
        if parallel.main:
            saved_or_not = "could not be saved, the last good one is kept" if guard.failures else "is saved"
            say(f"stopped at step {state.step}; the checkpoint {saved_or_not}")
    return FitResult(state.step, watch.best_step, watch.best_loss, seconds, state.tokens_seen, ended, signals.exit_code)


def take_best(model: nn.Module, result: FitResult, run_dir: Path, parallel: Parallel = SINGLE) -> FitResult:
    """What stands after `fit`: the model at its best step; SystemExit where the run was told to stop, and has saved.

    A best checkpoint that was damaged since costs no run: the last step's model is taken, and that is said.
    """
    if result.ended == "signal":
        if parallel.main:
            say(f"go on with:  zhixing train ... --out {run_dir} --resume")
        raise SystemExit(result.exit_code)
    if result.best_step < 0:
        return result
    try:
        best = load_step(run_dir, result.best_step)
    except InputError as error:
        if parallel.main:
            say(f"warning: {error.what} ({error.why or error.where}); the model of the last step is taken instead")
        return replace(result, best_step=result.step)
    restore_model(model, best.model)
    return result


def heldout_loss(
    model: nn.Module, objective: Objective, heldout: Sequences, settings: EvalSettings, parallel: Parallel, bf16: bool
) -> float:
    """Mean loss (nats per target) over the first max_sequences held-out sequences, shared among the processes."""
    return heldout_means(model, objective, heldout, settings, parallel, bf16)["loss"]


def heldout_means(
    model: nn.Module,
    objective: Objective,
    heldout: Sequences,
    settings: EvalSettings,
    parallel: Parallel,
    bf16: bool,
    measures: Measures | None = None,
) -> dict[str, float]:
    """The same loss as "loss", and what `measures` names: means over targets."""
    model.eval()
    names = ("loss", *(measures.names if measures else ()))
    total = torch.zeros(1 + len(names), dtype=torch.float64)  # targets, then sums
    count = min(len(heldout), settings.max_sequences)
    size = settings.per_device_eval_batch_size
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for number, first in enumerate(range(0, count, size)):
            if number % parallel.world == parallel.rank:
                batch = heldout.sequential(first, min(size, count - first))
                if measures:
                    sums, targets = measures.sums(model, batch), (batch.targets != IGNORED).sum()
                else:
                    loss, targets = objective(model, batch)
                    sums = loss[None]
                total += torch.cat([targets.double()[None], sums.double()])
    total = parallel.sum(total)
    return dict(zip(names, (total[1:] / total[0]).tolist(), strict=True))


class MetricsLog:
    """metrics.jsonl, one line a measurement, and TensorBoard beside it if asked for.

    A resumed run first drops the lines behind its checkpoint, so that the file is what an undisturbed run writes.
    """

    def __init__(self, run_dir: Path, tensorboard: bool, resumed_at: int) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.last_training_loss = math.nan
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            with contextlib.suppress(ValueError):  # a line cut by a kill
                entry = json.loads(line)
                if entry["step"] < resumed_at or (entry["step"] == resumed_at and "loss" in entry):
                    kept.append(line + "\n")
                    self.last_training_loss = entry.get("loss", self.last_training_loss)
        atomic_write(self.path, "".join(kept))
        self.file = self.path.open("ab", buffering=0)
        self.broken = False  # whether the last line could not be written
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError(
                    "train.tensorboard = true needs the tensorboard package", mend="pip install 'zhixing[tensorboard]'"
                ) from None
            self.board = SummaryWriter(run_dir / "tensorboard", purge_step=resumed_at)

    def write(self, entry: dict[str, Any]) -> None:
        line = ("\n" if self.broken else "") + json.dumps(entry) + "\n"
        try:
            self.file.write(line.encode())
            self.broken = False
        except OSError as error:  # a full disk must not end the run; readers skip a line that was cut
            if not self.broken:
                say(f"warning: {self.path.name} could not be written ({error.strerror}); training goes on")
            self.broken = True
        if self.board:
            for name, value in entry.items():
                if name not in ("step", "max_steps"):
                    self.board.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        self.file.close()
        if self.board:
            self.board.close()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each once."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _all_rng(parallel: Parallel) -> dict[str, Any]:
    """The random state of every process, by rank."""
    mine = capture_rng()
    if parallel.world == 1:
        return {"0": mine}
    gathered: list[Any] = [None] * parallel.world
    torch.distributed.all_gather_object(gathered, mine)
    return {str(rank): rng for rank, rng in enumerate(gathered)}


def _resume(
    model: nn.Module,
    optimizers: Optimizers,
    named: dict[str, nn.Parameter],
    run_dir: Path,
    facts: dict[str, Any],
    parallel: Parallel,
) -> tuple[TrainingState, Watch]:
    checkpoint = load_newest(run_dir)
    if checkpoint is None:
        if parallel.main:
            say("there is no checkpoint yet; training starts at step 0")
        return TrainingState(facts=facts), Watch()
    if parallel.main:
        for message in checkpoint.messages:
            say(message)
    stored = checkpoint.state.facts
    for key in ("recipe", "tokenizer", "data", "start"):
        if stored.get(key) != facts.get(key):
            raise InputError(
                f"the checkpoint was made with another {key}",
                where=str(checkpoint.path),
                why=f"its hash is {stored.get(key)}, this run's {facts.get(key)}",
                mend="train into another --out, or resume with the recipe that is saved in the run",
            )
    differing = [k for k in ("torch", "threads", "world", "dtype", "compiled") if stored.get(k) != facts.get(k)]
    restore_model(model, checkpoint.model)
    restore_optimizer(optimizers.members, named, checkpoint.optimizer)
    state = checkpoint.state
    rng = state.rng.get(str(parallel.rank))
    if rng is not None:
        restore_rng(rng)
    if parallel.main:
        say(f"resuming at step {state.step}")
        for key in differing:
            say(f"correct, but not bit-exact: {key} was {stored.get(key)}, now it is {facts.get(key)}")
    watch = Watch()
    if state.best_step is not None and state.best_loss is not None:
        watch.best_loss, watch.best_step, watch.bad_evals = state.best_loss, state.best_step, state.bad_evals
    return state, watch


def _not_finite(
    step: int, loss: float, grad_norm: float, first: int, per_step: int, run_dir: Path, t: TrainSettings
) -> InputError:
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {grad_norm}"
    return InputError(
        f"training stopped before step {step + 1}: {what}",
        where=f"samples {first} to {first + per_step - 1} of the data order (seed {t.seed})",
        why="a step with it would destroy the model; the last good checkpoint is kept in "
        + os.fspath(run_dir / "checkpoints"),
        mend="lower train.learning_rate (try half), raise train.warmup_steps, or set train.max_grad_norm = 1.0",
    )
