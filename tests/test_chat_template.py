"""The chat template: the same text as transformers renders, what a person says never control, exact borders, limits."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import torch

from zhixing.errors import InputError
from zhixing.interchange.chat_directory import StoredChat, read_chat, write_chat
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.tasks.chat_template import (
    CONTROLS,
    DEFAULT_TEMPLATE,
    encode_chat,
    encode_turns,
    end_ids,
    render_chat,
)
from zhixing.text.conversations import Message
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer
from zhixing.tokens.turns import LearntRows

TEXTS = ["Hello there, how are you?", "你好，今天天气怎么样？", "system user assistant fine, it's 12 o'clock"]
TALK = [
    Message("system", "Be brief."),
    Message("user", "Hello there"),
    Message("assistant", "'s fine. 你好"),
    Message("user", "  two spaces\n\nand lines "),
    Message("assistant", "Hello"),
]


@pytest.fixture(scope="module", params=["bpe", "char"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made = train_tokenizer(TEXTS * 3, request.param, 400)
    made.add_controls(CONTROLS)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model with random weights, as a run directory has it."""
    tokenizer = train_tokenizer(TEXTS * 3, "bpe", 400)
    tokenizer.add_controls(CONTROLS)
    out = tmp_path_factory.mktemp("model") / "chat"
    settings = GPTSettings(tokenizer.vocab_size, d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=64, max_len=128)
    model = GPT(settings, torch.Generator().manual_seed(0)).eval()
    write_chat(out, StoredChat(model, tokenizer, DEFAULT_TEMPLATE), end_ids(tokenizer, DEFAULT_TEMPLATE))
    return out


def test_the_text_by_hand() -> None:
    assert render_chat(DEFAULT_TEMPLATE, TALK[:3], add_generation_prompt=True) == (
        "<|system|>Be brief.<|end|><|user|>Hello there<|end|><|assistant|>'s fine. 你好<|end|><|assistant|>"
    )


def test_transformers_renders_and_encodes_the_same(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    ours = read_chat(folder)
    assert ours.template == DEFAULT_TEMPLATE
    for end in range(1, len(TALK) + 1):
        messages = [m.to_dict() for m in TALK[:end]]
        for prompt in (True, False):
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert text == render_chat(DEFAULT_TEMPLATE, TALK[:end], add_generation_prompt=prompt)
    messages = [m.to_dict() for m in TALK[:4]]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(ids) == encode_chat(ours.tokenizer, DEFAULT_TEMPLATE, TALK[:4])
    whole = theirs.apply_chat_template([m.to_dict() for m in TALK], return_dict=False)
    assert list(whole) == encode_turns(ours.tokenizer, DEFAULT_TEMPLATE, [TALK])[0].ids


OTHERS = {
    "generation tags": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "json and breaks": "{% for m in messages %}{{ m | tojson }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}",
    "blocks on lines": "{% for m in messages %}\n    {% if m.role == 'user' %}\n[INST] {{ m.content | trim }} [/INST]\n"
    "    {% else %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n",
    "joined": "{{ bos_token }}{{ messages | map(attribute='content') | join(' / ') }}{% if add_generation_prompt %}>{% endif %}",
    "replace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n ~ m.content.replace('e', 'ee') }}"
    "{% endfor %}",
}


@pytest.mark.parametrize("name", OTHERS)
def test_templates_of_others_render_as_in_transformers(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for prompt in (True, False):
        (theirs,), _ = render_jinja_template(
            [[m.to_dict() for m in TALK]], chat_template=OTHERS[name], add_generation_prompt=prompt, bos_token="<s>"
        )
        ours = render_chat(OTHERS[name], TALK, add_generation_prompt=prompt, tokens={"bos_token": "<s>"})
        assert ours == theirs


def test_what_a_person_says_is_never_control(tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    parts = [*CONTROLS, "<|endoftext|>", "<|pad|>", "<|en", "d|>", "system", "\ufdd0", "<", "|", "a b"]
    controls = set(tokenizer.controls.values()) - {tokenizer.unk_id}  # what is unknown is text all the same
    for _ in range(200):
        content = "".join(draw.choices(parts, k=draw.randint(1, 6)))
        ids = encode_chat(tokenizer, DEFAULT_TEMPLATE, [Message("user", content)])
        found = [i for i in ids if i in controls]
        assert found == [tokenizer.controls[token] for token in ("<|user|>", "<|end|>", "<|assistant|>")]
        start, end = ids.index(found[0]), ids.index(found[1])
        if tokenizer.unk_id is None:
            assert tokenizer.decode(ids[start:end]) == content


def test_replies_and_their_ends_are_learnt_and_nothing_else(tokenizer: Tokenizer) -> None:
    (turns,) = encode_turns(tokenizer, DEFAULT_TEMPLATE, [TALK])
    end = tokenizer.token_id("<|end|>")
    assert end is not None
    runs: list[list[int]] = []
    before = False
    for i, learnt in zip(turns.ids, turns.learnt, strict=True):
        if learnt and not before:
            runs.append([])
        if learnt:
            runs[-1].append(i)
        before = learnt
    assert runs == [[*tokenizer.encode(m.content), end] for m in TALK if m.role == "assistant"]
    for place in (2, 4):  # what is asked with is the beginning of what was learnt
        asked = encode_chat(tokenizer, DEFAULT_TEMPLATE, TALK[:place])
        assert turns.ids[: len(asked)] == asked
        assert turns.learnt[len(asked)] and not turns.learnt[len(asked) - 1]
    assert end_ids(tokenizer, DEFAULT_TEMPLATE) == (end, tokenizer.eos_id)


def test_rows_become_batches_with_targets_only_where_they_are_learnt() -> None:
    rows, learnt = [[5, 6, 7, 8], [1, 2, 3]], [[False, False, True, True], [False, True, True]]
    batches = LearntRows(rows, learnt, pad_id=0, budget=100, seed=0)
    assert (len(batches), batches.n_tokens, batches.n_targets) == (1, 5, 4)
    batch = batches.sequential(0, 1)
    assert batch.inputs.tolist() == [[5, 6, 7], [1, 2, 0]] or batch.inputs.tolist() == [[1, 2, 0], [5, 6, 7]]
    by_first = {int(row[0]): t.tolist() for row, t in zip(batch.inputs, batch.targets, strict=True)}
    assert by_first == {5: [-100, 7, 8], 1: [2, 3, -100]}
    many = LearntRows([[1, 2, 3]] * 9, [[False, True, True]] * 9, pad_id=0, budget=20, seed=1)
    seen = sum(len(many.batch(n, 1).inputs) for n in range(len(many)))
    assert seen == 9 and len(many) > 1


BOMBS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "repetition": "{{ 'a' * 10 ** 12 }}",
    "list": "{{ [0] * 10 ** 12 }}",
    "center": "{{ 'a'.center(10 ** 12) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "power": "{{ 2 ** (10 ** 10) }}",
    "doubling": "{% set x = namespace(v='a' * 1000000) %}{% for i in range(99999) %}{% set x.v = x.v + x.v %}{% endfor %}",
    "tilde": "{% set x = namespace(v='a' * 1000000) %}{% for i in range(99999) %}{% set x.v = x.v ~ x.v %}{% endfor %}",
    "replace": "{{ ('a' * 1000000) | replace('a', 'a' * 1000000) }}",
    "join": "{{ (['a' * 1000000] * 100000) | join }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "changing": "{{ messages.append(1) }}",
    "classes": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__['__builtins__'] }}",
    "refusing": "{{ raise_exception('no system, please') }}",
    "no template": "{% if %}",
    "too long": " " * 70_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_template_takes_time_or_memory(name: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError):
        render_chat(BOMBS[name], TALK)
    assert time.monotonic() - began < 10


def test_a_template_that_rewrites_history_cannot_be_learnt_from(tokenizer: Tokenizer) -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="left to right"):
        encode_turns(tokenizer, template, [TALK])


def test_the_folder_says_what_ends_a_reply(folder: Path) -> None:
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    stored = read_chat(folder)
    assert generation["eos_token_id"] == [stored.tokenizer.token_id("<|end|>"), stored.tokenizer.eos_id]
    assert generation["do_sample"] is True
    assert (stored.temperature, stored.top_p) == (0.7, 0.9)
