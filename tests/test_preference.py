"""Preference tuning from end to end: the loss by hand, the reference, reading, learning, resuming, and what it leaves.

A tiny model first learns to answer in two ways, as often in the one as in the other; preferences then say which is
liked, and it comes to like it where it was never told.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import zhixing
from zhixing import preference
from zhixing.cli import main
from zhixing.dialogue import Chat, preferred_rows
from zhixing.errors import InputError
from zhixing.evaluation.dialogue import preference_scores
from zhixing.files import verify_manifest
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.recipe import DataSettings, TrainSettings, load_recipe, parse_recipe
from zhixing.tasks.dialogue import preference_turns, reply_log_probabilities
from zhixing.text.conversations import Message, read_conversations
from zhixing.text.preferences import (
    Preference,
    against_others,
    read_preferences,
    split_preferences,
    with_other_prompts,
)
from zhixing.tokens.preferred import PreferredRows
from zhixing.training import dpo
from zhixing.training.dpo import (
    dpo_loss,
    log_probabilities_of,
    pair_log_probabilities,
    preference_measures,
    preferred,
    target_log_probabilities,
)
from zhixing.training.objectives import IGNORED

NAMES = ["anna", "ben", "carl", "dora", "emil", "fritz", "gina", "hans", "ida", "jan", "karl", "lena"]
PLACES = ["rome", "paris", "bern", "oslo", "kiev", "bonn", "nice", "york", "lima", "graz", "linz", "cork"]
TINY = ("train.threads=2", "train.bf16=false")


def asked() -> list[tuple[str, str, str]]:
    """A question, the kind answer and the other."""
    pairs = [(name, place) for name in NAMES for place in PLACES]
    random.Random(0).shuffle(pairs)
    return [(f"is {n} at {p}?", f"yes, {n} is glad at {p}.", f"find {n} at {p} alone.") for n, p in pairs]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    """It answers each way half of the time."""
    folder = tmp_path_factory.mktemp("start")
    rows = [{"prompt": q, "completion": (kind, rude)[n % 2]} for n, (q, kind, rude) in enumerate(asked())]
    source = write_rows(folder / "talks.jsonl", rows)
    return cast(
        Chat,
        zhixing.train(
            str(source), *TINY, "task.kind=dialogue", "task.validation_fraction=0.1", "data.heldout_fraction=0.1",
            "tokenizer.vocab_size=300", "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "model.max_len=48",
            "train.max_tokens_per_batch=1000", "train.max_steps=60", "train.eval_steps=60", "train.optim=adamw",
            "train.learning_rate=0.01", "train.warmup_steps=5", out=str(folder / "run"),
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[dict[str, Any]] = [{"prompt": q, "chosen": kind, "rejected": rude} for q, kind, rude in asked()]
    for row in rows[::2]:  # every other one as messages
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        row["chosen"] = [{"role": "assistant", "content": row["chosen"]}]
        row["rejected"] = [{"role": "assistant", "content": row["rejected"]}]
    return write_rows(tmp_path_factory.mktemp("data") / "preferences.jsonl", rows)


def settings_of(start: Chat, *more: str) -> list[str]:
    return [
        f"task.start={start.path}", *TINY, "data.heldout_fraction=0.2", "task.validation_fraction=0.1",
        "train.max_tokens_per_batch=1000", "train.max_steps=20", "train.eval_steps=10", "train.save_steps=10", "train.learning_rate=0.001",
        "train.warmup_steps=2", "train.logging_steps=5", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(start: Chat, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Chat:
    out = tmp_path_factory.mktemp("runs") / "kind"
    source = f"data.source={data}"
    return cast(Chat, zhixing.train("dpo", source, *settings_of(start), out=str(out)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- the loss


def test_the_loss_by_hand() -> None:
    """beta 0.5: rewards 0.5 (-2 + 3) = 0.5 and 0.5 (-4 + 2) = -1, so a margin of 1.5; and one of -0.5."""
    ratios = torch.tensor([[1.0, -2.0], [0.0, 1.0]], dtype=torch.float64)
    plain = dpo_loss(ratios, 0.5)
    assert plain.tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(0.5))])
    smoothed = dpo_loss(ratios, 0.5, 0.1)
    assert smoothed.tolist() == pytest.approx(
        [0.9 * math.log(1 + math.exp(-m)) + 0.1 * math.log(1 + math.exp(m)) for m in (1.5, -0.5)]
    )


@pytest.mark.parametrize("held", [1, 64, 1 << 22])
def test_log_probabilities_and_gradients_are_torchs(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows a chunk has; each row with a gradient of its own."""
    monkeypatch.setattr(dpo, "LOGITS_HELD", held)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator, requires_grad=True) for n in (13, 20))
    targets, upstream = torch.randint(20, (13,), generator=generator), torch.randn(13, generator=generator)
    found = target_log_probabilities(hidden, weight, targets)
    plain = (hidden @ weight.t()).log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(found, plain, atol=1e-5)
    mine = torch.autograd.grad(found, [hidden, weight], upstream)
    theirs = torch.autograd.grad(plain, [hidden, weight], upstream)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def tiny_pairs(count: int = 5) -> tuple[GPT, PreferredRows]:
    model = GPT(
        GPTSettings(30, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=32, max_len=16),
        torch.Generator().manual_seed(1),
    )
    draw = random.Random(2)
    sides: list[list[tuple[list[int], list[bool]]]] = [[], []]
    for _ in range(count):
        prompt = [draw.randrange(1, 30) for _ in range(draw.randrange(1, 5))]
        for side in sides:
            reply = [draw.randrange(1, 30) for _ in range(draw.randrange(1, 7))]
            side.append((prompt + reply, [False] * len(prompt) + [True] * len(reply)))
    rows = PreferredRows(sides[0], sides[1], places=range(count), pad_id=0, budget=60, seed=0)
    rows.reference = np.random.default_rng(3).normal(-20, 3, (count, 2))
    return model, rows


def plain_log_p(model: GPT, row: tuple[Any, Any]) -> torch.Tensor:
    """The sum over the learnt ids of one row alone, by a whole softmax."""
    ids = torch.tensor([list(row[0])])
    logs = model.logits(model(ids[:, :-1])).log_softmax(dim=-1)[0]
    return sum((logs[n, i] for n, (i, flag) in enumerate(zip(row[0][1:], row[1][1:], strict=True)) if flag),
               torch.zeros(()))  # fmt: skip


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_objective_and_its_gradients_are_the_formulas(smoothing: float) -> None:
    """Equation 7 row by row and by plain autograd, beside batches of padded rows."""
    model, rows = tiny_pairs()
    assert len(rows) > 1 and rows.reference is not None
    model.train()
    objective = preferred(0.3, smoothing)
    total, count = torch.zeros(()), 0
    for number in range(len(rows)):
        loss, n = objective(model, rows.batch(number, 1))
        total, count = total + loss, count + int(n)
    assert count == 5
    named = dict(model.named_parameters())
    mine = torch.autograd.grad(total, list(named.values()))
    by_hand = torch.zeros(())
    for place in range(5):
        chosen, rejected = (plain_log_p(model, side[place]) for side in rows.sides)
        margin = 0.3 * ((chosen - rows.reference[place, 0]) - (rejected - rows.reference[place, 1]))
        by_hand = by_hand - (1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
    assert total.item() == pytest.approx(by_hand.item(), abs=1e-4)
    for name, a, b in zip(named, mine, torch.autograd.grad(by_hand, list(named.values())), strict=True):
        assert torch.allclose(a, b, atol=1e-4), name


def test_held_out_loss_is_plain_and_measured_beside_the_rest() -> None:
    model, rows = tiny_pairs()
    assert rows.reference is not None
    model.eval()
    names = ("loss", *preference_measures(0.3).names)
    sums = sum(preference_measures(0.3).sums(model, rows.sequential(n, 1)) for n in range(len(rows)))
    found = dict(zip(names, (cast(torch.Tensor, sums) / 5).tolist(), strict=True))
    given = log_probabilities_of(model, rows)
    rewards = 0.3 * (given - rows.reference)
    margins = rewards[:, 0] - rewards[:, 1]
    assert found == pytest.approx(
        {"loss": np.log1p(np.exp(-margins)).mean(), "rewards/accuracies": (margins > 0).mean(),
         "rewards/margins": margins.mean(), "rewards/chosen": rewards[:, 0].mean(),
         "rewards/rejected": rewards[:, 1].mean(), "logps/chosen": given[:, 0].mean(),
         "logps/rejected": given[:, 1].mean()}, abs=1e-5
    )  # fmt: skip
    loss = sum(preferred(0.3, 0.4)(model, rows.sequential(n, 1))[0].item() for n in range(len(rows)))
    assert loss / 5 == pytest.approx(found["loss"], abs=1e-5)
    scores = preference_scores(given, rows.reference, 0.3, 0)
    assert scores["preference_loss"]["value"] == pytest.approx(found["loss"], abs=1e-5)
    assert scores["reward_margin"]["value"] == pytest.approx(found["rewards/margins"], abs=1e-5)
    assert scores["start_log_p_chosen"]["value"] == pytest.approx(rows.reference[:, 0].mean())
    assert "reward_accuracy" not in preference_scores(given, None, 0.3, 0)


def test_the_reference_is_what_the_model_gives(start: Chat, data: Path) -> None:
    """Row by row through the other way to the same number, which asks and replies apart."""
    preferences = read_preferences(str(data))
    rows, shortened, left_out = preferred_rows(start.stored, preferences, 48, TrainSettings(max_tokens_per_batch=500))
    assert (rows.n_pairs, shortened, left_out) == (len(preferences), 0, 0) and len(rows) > 3
    found = log_probabilities_of(start.model, rows)
    speaker = start.speaker
    for place in (0, 1, 77):
        item = preferences[place]
        context = speaker.encode(item.prompt)
        replies = [speaker.encode_reply(side[-1].content) for side in (item.chosen, item.rejected)]
        each = reply_log_probabilities(speaker, [context, context], replies)
        assert found[place] == pytest.approx(each, abs=1e-3)
    batch = rows.sequential(0, 1)
    assert torch.equal(batch.reference, torch.zeros_like(batch.reference))
    rows.reference = found
    with torch.no_grad():
        ratios = pair_log_probabilities(start.model, rows.sequential(0, 1)) - rows.sequential(0, 1).reference
    assert float(ratios.abs().max()) < 1e-9  # the very same sums: at the start all rewards are 0


# ---- what is learnt


def test_rows_learn_the_last_replies_only(start: Chat) -> None:
    tokenizer, template = start.tokenizer, start.stored.template
    u, a = (lambda text: Message("user", text)), (lambda text: Message("assistant", text))
    item = Preference((u("hi"), a("old"), u("so?")), (a("good"), u("and?"), a("fine")), (a("bad"),))
    found = preference_turns(tokenizer, template, [item], 48)
    (chosen,), (rejected,) = found.chosen, found.rejected

    def learnt(row: Any) -> str:
        return tokenizer.decode([i for i, flag in zip(row.ids, row.learnt, strict=True) if flag])

    assert learnt(chosen) == "goodfine" and learnt(rejected) == "bad"
    end = tokenizer.controls["<|end|>"]
    assert sum(flag and i == end for i, flag in zip(chosen.ids, chosen.learnt, strict=True)) == 2
    size = len(rejected.ids)
    assert (found.shortened, found.left_out) == (0, 0)
    short = preference_turns(tokenizer, template, [item], len(chosen.ids) - 3)
    assert (short.shortened, short.left_out, short.places) == (1, 0, [0])
    assert learnt(short.chosen[0]) == "goodfine" and len(short.rejected[0].ids) < size
    none = preference_turns(tokenizer, template, [item, item], 6)
    assert (none.places, none.left_out) == ([], 2)


def test_batches_hold_pairs_and_padding_counts_for_nothing() -> None:
    _, rows = tiny_pairs(9)
    seen = []
    for number in range(len(rows)):
        batch = rows.batch(number, 1)
        half = len(batch.targets)
        assert batch.inputs.shape == batch.tokens.shape and len(batch.inputs) == 2 * half
        assert batch.inputs.numel() <= 60 or half == 1
        assert (batch.targets == 0).all() and batch.reference.shape == (half, 2)
        seen += batch.reference[:, 0].tolist()
        for row, tokens in zip(batch.inputs, batch.tokens, strict=True):
            end = int((tokens != IGNORED).nonzero().max())
            assert (row[end + 1 :] == 0).all()
    assert rows.reference is not None and sorted(seen) == sorted(rows.reference[:, 0].tolist())


# ---- from end to end


def test_it_learns_what_is_preferred(run: Chat, start: Chat) -> None:
    scores = json.loads((run.path / "scores.json").read_text(encoding="utf-8"))["model"]
    assert scores["pairs"] > 20
    assert scores["start_preferred"]["value"] < 0.9
    assert scores["reward_accuracy"]["value"] > 0.95 and scores["preferred"]["value"] > 0.95
    assert scores["reward_margin"]["low"] > 0.5
    assert scores["preference_loss"]["value"] < 0.5 < math.log(2)
    evaluations = [line for line in lines(run.path / "metrics.jsonl") if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [10, 20]
    assert evaluations[-1]["eval_rewards/accuracies"] > 0.95
    assert evaluations[-1]["eval_logps/chosen"] > evaluations[-1]["eval_logps/rejected"]
    questions = [[{"role": "user", "content": q}] for q, _, _ in asked()[:20]]
    answers = [run.reply(q, run.settings(temperature=0.0)).text for q in questions]
    assert sum(answer.startswith("yes") for answer in answers) >= 19


def test_the_run_is_whole_and_one_as_any_other(
    run: Chat, start: Chat, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify_manifest(run.path)
    for name in ("config.json", "model.safetensors", "chat_template.jinja", "README.md", "report.html", "recipe.toml",
                 "facts.json", "examples.jsonl", "data/test.jsonl", "data/preferences.jsonl"):  # fmt: skip
        assert (run.path / name).stat().st_size > 0, name
    assert not (run.path / "adapter").exists()
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "reward accuracy" in page and "preferences" in page
    card = (run.path / "README.md").read_text(encoding="utf-8")
    assert "tuned by" in card and "reward accuracy" in card and "starting from" in card
    chat = cast(Chat, zhixing.load(run.path))
    assert chat.stored.template == start.stored.template
    assert chat("is anna at rome?", temperature=0.0).text.startswith("yes")
    first = json.loads((run.path / "scores.json").read_text(encoding="utf-8"))["model"]
    again = chat.evaluate()["model"]
    for name in ("reward_accuracy", "reward_margin", "preference_loss", "log_p_chosen", "hits_at_1"):
        assert again[name]["value"] == pytest.approx(first[name]["value"], rel=1e-3), name
    capsys.readouterr()
    assert main(["evaluate", str(run.path), str(data)]) == 0  # beside the start, which is still there
    told = capsys.readouterr().out
    assert "reward accuracy" in told and f"{len(asked())} test preferences" in told


@pytest.mark.slow
def test_it_is_taken_elsewhere(run: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers is asked whether it writes the same, and llama.cpp where it is there."""
    assert main(["generate", str(run.path), "is anna", "--max-new-tokens", "5"]) == 0
    assert main(["export", str(run.path), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "config.json").exists()
    pytest.importorskip("gguf")
    assert main(["export", str(run.path), str(tmp_path / "out.gguf"), "--to", "gguf"]) == 0
    assert (tmp_path / "out.gguf").stat().st_size > 0


def test_preferences_are_measured_on_any_chat_model(start: Chat, data: Path) -> None:
    """Without a reference it is said which reply is the more probable one, and no more."""
    found = start.evaluate(str(data))["model"]
    assert 0 <= found["preferred"]["value"] <= 1 and found["log_p_chosen"]["value"] < 0
    assert "reward_accuracy" not in found


def test_it_is_measured_beside_its_own_start_or_beside_nothing(
    start: Chat, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts are shortened as they were when it learnt, and a start that is another one by now is none."""
    rows = []
    for question, kind, rude in asked()[:60]:
        said = [("user", "is ida at linz?"), ("assistant", "yes, ida is glad at linz."), ("user", question)]
        prompt = [{"role": role, "content": content} for role, content in said]
        rows.append({"prompt": prompt, "chosen": kind, "rejected": rude})
    long = write_rows(tmp_path / "long.jsonl", rows)
    begun = tmp_path / "begun"
    shutil.copytree(start.path, begun)
    most = max(len(start.writer.encode([Message("user", q)])) + 2 * len(kind) for q, kind, _ in asked())
    settings = settings_of(start, "train.max_steps=2", f"model.max_len={min(40, most)}", f"task.start={begun}")
    tuned = cast(Chat, zhixing.train("dpo", f"data.source={long}", *settings, out=str(tmp_path / "run")))
    assert "lost their oldest turns" in capsys.readouterr().err
    first = json.loads((tuned.path / "scores.json").read_text(encoding="utf-8"))["model"]
    again = tuned.evaluate()["model"]
    for name in ("reward_accuracy", "log_p_chosen", "log_p_rejected"):
        assert again[name]["value"] == pytest.approx(first[name]["value"], abs=1e-5), name
    assert "reward_accuracy" in tuned.evaluate(str(data))["model"]
    shutil.rmtree(begun)
    shutil.copytree(tuned.path, begun)
    assert "reward_accuracy" not in tuned.evaluate(str(data))["model"]
    assert f"{begun} is not there as it was" in capsys.readouterr().err


def test_lora_changes_little_and_leaves_an_adapter(start: Chat, data: Path, tmp_path: Path) -> None:
    made = zhixing.train(
        str(data), "task.kind=preference", *settings_of(start, "model.lora_rank=2", "train.max_steps=10"),
        out=str(tmp_path / "run"),
    )  # fmt: skip
    assert isinstance(made, Chat)
    assert load_recipe(str(made.path / "recipe.toml")).train.optim == "adamw"  # as the recipe dpo has it
    before, after = start.model.state_dict(), made.model.state_dict()
    assert before.keys() == after.keys()
    moved = after["blocks.0.attention.qkv.weight"] - before["blocks.0.attention.qkv.weight"]
    assert 0 < torch.linalg.matrix_rank(moved[:32], atol=1e-5) <= 2  # q: a change of rank 2
    assert torch.equal(after["embedding.weight"], before["embedding.weight"])
    assert main(["export", str(made.path), str(tmp_path / "adapter"), "--to", "peft"]) == 0  # checked with its base
    scores = json.loads((made.path / "scores.json").read_text(encoding="utf-8"))["model"]
    assert scores["reward_margin"]["value"] > 0


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    run: Chat, start: Chat, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    settings = [f"data.source={data}", *settings_of(start)]
    real = preference.preferred
    steps = 0

    def dying(beta: float, label_smoothing: float) -> Any:
        objective = real(beta, label_smoothing)

        def die(model: Any, batch: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == 14:
                raise KeyboardInterrupt
            return objective(model, batch)

        return die

    with monkeypatch.context() as patch:
        patch.setattr(preference, "preferred", dying)
        with pytest.raises(KeyboardInterrupt):
            zhixing.train("dpo", *settings, out=str(out))
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000010"]
    with pytest.raises(InputError, match=r"begun with train\.beta"):
        zhixing.train("dpo", *settings, "train.beta=0.3", out=str(out), resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(preference, "weights_hash", lambda _: "another")
        with pytest.raises(InputError, match="another start"):
            zhixing.train("dpo", *settings, out=str(out), resume=True)
    made = cast(Chat, zhixing.train("dpo", *settings, out=str(out), resume=True))
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(made.model.state_dict()[name], tensor), name
    wanted, found = (
        [{k: v for k, v in line.items() if "second" not in k} for line in lines(path / "metrics.jsonl")]
        for path in (run.path, out)
    )
    assert found == wanted


# ---- reading


def test_texts_and_messages_say_the_same(tmp_path: Path) -> None:
    texts = {"prompt": "Hi", "chosen": " Hello! ", "rejected": "What?", "group": 3}
    user, good, bad = (
        [{"role": role, "content": text}]
        for role, text in (("user", "Hi"), ("assistant", "Hello!"), ("assistant", "What?"))
    )
    messages = {"prompt": user, "chosen": good, "rejected": bad, "group": "3"}
    repeated = {"prompt": "Hi", "chosen": [*user, *good], "rejected": [*user, *bad], "group": "3"}
    rows = read_preferences(
        str(write_rows(tmp_path / "p.jsonl", [texts, messages, repeated])), DataSettings(duplicates="keep")
    )
    assert len(rows) == 3 and rows[0] == rows[1] == rows[2]
    assert rows[0] == Preference((Message("user", "Hi"),), (Message("assistant", "Hello!"),),
                                 (Message("assistant", "What?"),), "3")  # fmt: skip
    again = write_rows(tmp_path / "q.jsonl", [row.to_dict() for row in rows])
    assert read_preferences(str(again), DataSettings(duplicates="keep")).items == rows.items
    table = tmp_path / "p.csv"
    table.write_text("prompt,chosen,rejected,system\nHi,Hello!,What?,Be kind\n", encoding="utf-8")
    (row,) = read_preferences(str(table))
    assert row.prompt == (Message("system", "Be kind"), Message("user", "Hi"))
    given = write_rows(tmp_path / "r.jsonl", [{**texts, "ref_chosen_logps": -3, "ref_rejected_logps": -4.5}])
    assert read_preferences(str(given))[0].reference == (-3.0, -4.5)


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "a", "chosen": "b"}, "a line holds no preference", "bad_records"),
    ({"chosen": "b", "rejected": "c"}, "it has no prompt", "bad_records"),
    ({"prompt": "a", "chosen": "b", "rejected": " b "}, "both replies are the same", "same_reply"),
    ({"prompt": "a", "chosen": "", "rejected": "c"}, "a message is empty", "empty_content"),
    ({"prompt": "a", "chosen": 3, "rejected": "c"}, "holds a int, no text", "empty_content"),
    ({"prompt": "a", "chosen": "b", "rejected": "\ud800"}, "half a character", "bad_records"),
    ({"prompt": [], "chosen": "b", "rejected": "c"}, "there are no messages", "no_reply"),
    ({"prompt": [{"role": "assistant", "content": "a"}], "chosen": "b", "rejected": "c"}, "do not take turns",
     "wrong_order"),
    ({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}], "chosen": "b",
      "rejected": "c"}, "a side does not end as it should", "no_reply"),
    ({"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}, {"role": "user", "content": "b"}],
      "rejected": "c"}, "prompt and chosen: the last message is of user", "no_reply"),
    ({"prompt": "a", "chosen": [{"role": "wizard", "content": "b"}], "rejected": "c"}, "nobody known", "unknown_role"),
    ({"prompt": "a", "chosen": ["b"], "rejected": "c"}, "a message is of nobody known", "unknown_role"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "group": "\ud800"}, "the group holds half a character",
     "bad_records"),
    *(({"prompt": "a", "chosen": "b", "rejected": "c", "ref_chosen_logps": -1, "ref_rejected_logps": number},
       "are no finite numbers", "bad_records") for number in (10**400, float("nan"), "x", True)),
]  # fmt: skip


@pytest.mark.parametrize(("row", "says", "kind"), BAD)
def test_a_bad_row_is_named_or_counted(
    row: dict[str, Any], says: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (good, row, good)), encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_preferences(str(path))
    assert says in str(error.value) and "p.jsonl:2" in str(error.value)
    for choice in ("skip", "quarantine"):
        aside = tmp_path / f"{choice}.jsonl"
        found = read_preferences(str(path), DataSettings(on_bad_record=cast(Any, choice)), quarantine=aside)
        assert len(found) == 1 and getattr(found.counts, kind) == 1 and found.counts.repeated == 1
        assert "left out: " in capsys.readouterr().err and aside.exists() == (choice == "quarantine")


def test_what_holds_no_preferences_is_refused(tmp_path: Path, start: Chat, data: Path) -> None:
    for text, name, says in (
        ("just text\n", "p.txt", "there are no conversations"),
        ("prompt,completion\na,b\n", "p.csv", "there is no column 'chosen'"),
        ("{", "p.jsonl", "p.jsonl:1"),
        ("", "p.jsonl", "p.jsonl"),
    ):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=says):
            read_preferences(str(path))
    for settings, says in (
        ([f"data.source={data}"], "starts from a chat model"),
        ([f"data.source={data}", "task.start=nowhere"], "there is no run"),
        ([f"task.start={start.path}"], "names no preferences"),
        (settings_of(start, f"data.source={data}", "model.max_len=4"), "no preference is short enough"),
    ):
        with pytest.raises(InputError, match=says):
            zhixing.train("dpo", *settings, out=str(tmp_path / "run"))


def test_a_start_without_a_template_is_refused(tmp_path: Path, data: Path, start: Chat) -> None:
    from zhixing.interchange.model_directory import write_model_directory

    folder = tmp_path / "plain"
    folder.mkdir()
    write_model_directory(folder, start.model, start.tokenizer)
    with pytest.raises(InputError, match=r"task\.start is no chat model"):
        zhixing.train("dpo", f"data.source={data}", f"task.start={folder}", out=str(tmp_path / "run"))


def test_no_prompt_is_on_both_sides(tmp_path: Path) -> None:
    rows = [{"prompt": f"Is it {n % 40}?", "chosen": f"yes {n}", "rejected": "no"} for n in range(120)]
    every = read_preferences(str(write_rows(tmp_path / "p.jsonl", rows)))
    train, held, repeats = split_preferences(every, 0.1, 0)
    assert (len(train), len(held), repeats) == (108, 12, 0)
    assert not {item.prompt for item in train} & {item.prompt for item in held}
    assert split_preferences(every, 0.1, 0)[1].items == held.items != split_preferences(every, 0.1, 1)[1].items
    grouped = read_preferences(
        str(write_rows(tmp_path / "g.jsonl", [{**row, "group": f"g{n % 40 // 8}"} for n, row in enumerate(rows)]))
    )
    train, held, repeats = split_preferences(grouped, 0.2, 0)
    assert (len(train), len(held), repeats) == (96, 24, 0) and len({item.group for item in held}) == 1
    assert with_other_prompts(every.pick(range(3)), every.pick([40, 3, 43, 1])) == (every.pick([3, 43]), 2)
    with pytest.raises(InputError, match="too few preferences"):
        split_preferences(every.pick([0, 40]), 0.1, 0)
    assert len(every.conversations()) == 120
    assert len(every.pick([0, 0]).conversations()) == 1


def test_of_conversations_preferences_are_made(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": ("Yes", "yes ", "no", f"r{n}")[n % 4], "group": n % 5} for n in range(40)]
    talks = read_conversations(str(write_rows(tmp_path / "t.jsonl", rows)))
    found = against_others(talks)
    assert len(found) == 40 and found.items == against_others(talks).items != against_others(talks, 1).items
    for item, row in zip(found, rows, strict=True):
        assert item.prompt == (Message("user", str(row["prompt"])),) and item.group == str(row["group"])
        assert item.chosen[0].content == str(row["completion"]).strip()
        assert item.rejected[0].content.lower() != item.chosen[0].content.lower()
    with pytest.raises(InputError, match="there are none"):
        against_others(talks.pick([0, 1]))
    jokes = [{"prompt": "A joke!" if n % 2 else f"q{n}", "completion": f"r{n}"} for n in range(40)]
    for item in against_others(read_conversations(str(write_rows(tmp_path / "j.jsonl", jokes)))):
        number = int(item.rejected[0].content[1:])
        assert item.prompt[-1].content != jokes[number]["prompt"], "a reply to the same is no wrong one"


def test_settings_that_cannot_be_are_refused() -> None:
    for settings, what in (
        (["model.family=lstm"], "model.family"),
        (["train.beta=0"], "train.beta"),
        (["train.label_smoothing=0.5"], "train.label_smoothing"),
        (["train.label_smoothing_factor=0.1"], "train.label_smoothing_factor"),
        (["train.per_device_train_batch_size=3"], "train.per_device_train_batch_size"),
        (["model.freeze_layers=1"], "model.freeze_layers"),
        (["task.pretrain_steps=3"], "task.pretrain_steps"),
        (["task.kind=dialogue", "train.beta=0.2"], "train.beta"),
        (["task.kind=dialogue", "train.label_smoothing=0.1"], "train.label_smoothing"),
    ):
        with pytest.raises(InputError, match=what.replace(".", r"\.") + " cannot be used"):
            parse_recipe("", "made", ["task.kind=preference", *settings])
    assert load_recipe("dpo").task.kind == "preference"
