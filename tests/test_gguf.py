"""A GGUF file holds the weights, the tokens and the settings of a run; transformers reads the same model off it.

What llama.cpp itself makes of it is measured by benchmarks/gguf_parity.py: its Python package is built from source for
minutes. Here its part is played where it must be wrong, to see that nothing is left behind.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zhixing import cli
from zhixing.errors import InputError
from zhixing.interchange import gguf_file
from zhixing.interchange.chat_directory import StoredChat, write_chat
from zhixing.interchange.gguf_file import GGUFReport, export_gguf, halved, interleaved
from zhixing.interchange.import_export import PROMPTS, greedy
from zhixing.interchange.model_directory import write_model_directory
from zhixing.interchange.seq2seq_directory import StoredSeq2Seq, write_seq2seq
from zhixing.interchange.transformers_layout import LabelFacts
from zhixing.models.bert import Bert, BertClassifier, BertSettings
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.lstm import LSTM, LSTMSettings
from zhixing.models.marian import Marian, MarianSettings
from zhixing.tasks.chat_template import CONTROLS, DEFAULT_TEMPLATE, end_ids
from zhixing.tokens.tokenizer import Kind, Tokenizer, train_tokenizer

gguf: Any = pytest.importorskip("gguf")

TEXTS = [
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife. "
    "However little known the feelings or views of such a man may be on his first entering a neighbourhood.",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。白日依山尽，黄河入海流。",
]
LAYOUTS = {
    "qwen3": {"layout": "qwen3", "n_kv_heads": 2},
    "qwen3-untied": {"layout": "qwen3", "tie_embeddings": False},
    "llama": {"layout": "llama"},
    "llama-grouped-untied": {"layout": "llama", "n_kv_heads": 2, "tie_embeddings": False},
    "gpt2": {"layout": "gpt2"},
    "gpt2-untied": {"layout": "gpt2", "tie_embeddings": False},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 4, "bpe", 360)


def make(tokenizer: Tokenizer, layout: str = "qwen3", **settings: Any) -> GPT:
    """Sizes that are all different, weights far from the start of training."""
    sizes: dict[str, Any] = {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "d_ff": 96, "max_len": 72}
    given = {"rope_theta": 5000.0, "norm_eps": 3e-6, **sizes, **LAYOUTS[layout], **settings}
    model = GPT(GPTSettings(vocab_size=tokenizer.vocab_size, **given)).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_norm else 0.0, 0.2, generator=generator)
    return model


def lay(folder: Path, model: GPT, tokenizer: Tokenizer) -> Path:
    write_model_directory(folder, model, tokenizer)
    return folder


def read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the package itself reads: settings, and tensors in fp32."""
    reader = gguf.GGUFReader(file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    return facts, tensors


def expected(model: GPT) -> dict[str, Tensor]:
    """Every tensor of the file, cut out of our state dict by hand."""
    s, state = model.settings, model.state_dict()
    found = {"token_embd.weight": state["embedding.weight"], "output_norm.weight": state["norm.weight"]}
    if s.layout == "gpt2":
        found |= {"position_embd.weight": state["positions.weight"], "output_norm.bias": state["norm.bias"]}
    if not s.tie_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    for i in range(s.n_layers):
        mine, theirs = f"blocks.{i}", f"blk.{i}"
        pairs = {"attention_norm": "attn_norm", "attention.out": "attn_output", "feed_forward_norm": "ffn_norm",
                 "feed_forward.down": "ffn_down"}  # fmt: skip
        if s.layout == "gpt2":
            pairs |= {"attention.qkv": "attn_qkv", "feed_forward.up": "ffn_up"}
        if s.layout == "qwen3":
            pairs |= {"attention.q_norm": "attn_q_norm", "attention.k_norm": "attn_k_norm"}
        for ours, other in pairs.items():
            for kind in ("weight", "bias"):
                if f"{mine}.{ours}.{kind}" in state:
                    found[f"{theirs}.{other}.{kind}"] = state[f"{mine}.{ours}.{kind}"]
        if s.layout == "gpt2":
            continue
        head = s.d_model // s.n_heads
        q, k, v = state[f"{mine}.attention.qkv.weight"].split([s.n_heads * head, *[s.n_kv_heads * head] * 2])
        if s.layout == "llama":  # channel j of a head's first half goes to 2j, of its second to 2j + 1
            order = [j // 2 + head // 2 * (j % 2) for j in range(head)]
            q, k = (torch.cat([rows[order] for rows in part.split(head)]) for part in (q, k))
        found |= {f"{theirs}.attn_q.weight": q, f"{theirs}.attn_k.weight": k, f"{theirs}.attn_v.weight": v}
        gate, up = state[f"{mine}.feed_forward.gate_up.weight"].split(s.d_ff)
        found |= {f"{theirs}.ffn_gate.weight": gate, f"{theirs}.ffn_up.weight": up}
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_is_ours(layout: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make(tokenizer, layout)
    run = lay(tmp_path / "run", model, tokenizer)
    report = export_gguf(run, tmp_path / "out.gguf")
    facts, tensors = read(tmp_path / "out.gguf")
    wanted = expected(model)
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(tensors[name], tensor), name
    s, arch = model.settings, model.settings.layout
    assert facts["general.architecture"] == arch and facts["general.file_type"] == gguf.LlamaFileType.ALL_F32
    assert facts["general.name"] == "run"
    sizes = {"context_length": 72, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96,
             "attention.head_count": 4}  # fmt: skip
    if arch == "gpt2":
        sizes["attention.layer_norm_epsilon"] = pytest.approx(3e-6)
    else:
        sizes |= {"attention.head_count_kv": s.n_kv_heads, "attention.key_length": 16, "rope.freq_base": 5000.0,
                  "attention.layer_norm_rms_epsilon": pytest.approx(3e-6), "rope.dimension_count": 16}  # fmt: skip
    assert {name: facts[f"{arch}.{name}"] for name in sizes} == sizes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "run"]
    assert (report.n_parameters, report.n_left, report.dtype) == (sum(p.numel() for p in model.parameters()), 0, "f32")


@pytest.mark.parametrize("dtype", ["bf16", "q8_0"])
@pytest.mark.parametrize("layout", ["qwen3", "llama-grouped-untied", "gpt2-untied"])
def test_matrices_are_rounded_and_nothing_else(layout: str, dtype: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make(tokenizer, layout)
    report = export_gguf(lay(tmp_path / "run", model, tokenizer), tmp_path / "out.gguf", dtype)
    facts, tensors = read(tmp_path / "out.gguf")
    assert facts["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{dtype.upper()}"] and report.n_left == 0
    rounded = 0
    for name, tensor in expected(model).items():
        if tensor.dim() == 1 or name == "position_embd.weight":
            assert torch.equal(tensors[name], tensor), name
            continue
        off = (tensors[name] - tensor).abs()
        if dtype == "bf16":
            assert torch.equal(tensors[name], tensor.bfloat16().float()), name
            assert (off <= tensor.abs() * 2**-8).all()
        else:  # half a step of the group's largest, and a little: the step is fp16
            largest = tensor.unflatten(-1, (-1, 32)).abs().amax(-1).repeat_interleave(32, -1)
            assert (off <= 0.57 / 127 * largest + 1e-6).all(), name
        rounded += bool(off.max() > 0)
    assert rounded == sum(t.dim() == 2 and n != "position_embd.weight" for n, t in expected(model).items())
    size = (tmp_path / "out.gguf").stat().st_size
    export_gguf(tmp_path / "run", tmp_path / "whole.gguf")
    assert size < (tmp_path / "whole.gguf").stat().st_size * 0.9


def test_rows_that_no_group_fits_stay(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """48 is no multiple of 32: only what the feed-forward of 96 is multiplied by is rounded."""
    model = make(tokenizer, d_model=48)
    report = export_gguf(lay(tmp_path / "run", model, tokenizer), tmp_path / "out.gguf", "q8_0")
    _, tensors = read(tmp_path / "out.gguf")
    different = {name for name, tensor in expected(model).items() if not torch.equal(tensors[name], tensor)}
    assert different == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"}
    assert report.n_left == 13
    assert "13 matrices are f32: their rows are no multiple of 32" in report.summary()


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_transformers_reads_the_same_model(layout: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Its own reader of GGUF moves llama's rows back and turns GPT-2's matrices, by code that is not ours."""
    transformers: Any = pytest.importorskip("transformers")
    model = make(tokenizer, layout)
    export_gguf(lay(tmp_path / "run", model, tokenizer), tmp_path / "out.gguf")
    config = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file="out.gguf")
    if model.settings.layout == "gpt2":  # what it does not take over from the file
        config.n_positions, config.n_inner = 72, 96
    config.head_dim = 16
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    reader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")  # from_pretrained wants accelerate
    stored = reader.load_gguf_checkpoint(tmp_path / "out.gguf", return_tensors=True, model_to_load=theirs)["tensors"]
    absent, odd = theirs.load_state_dict(stored, strict=False)
    assert odd == [] and absent == (["lm_head.weight"] if model.settings.tie_embeddings else [])
    for text in ("However little known the feelings", "床前明月光，疑是"):
        ids = torch.tensor([tokenizer.encode(text)])
        ours, other = model.logits(model(ids)), theirs(ids).logits
        assert (ours - other).abs().max() < 1e-4 * ours.abs().max()


def test_channels_move_and_come_back() -> None:
    weight = torch.arange(24.0).view(12, 2)  # two heads of six
    moved = interleaved(weight, 2)
    assert (moved[:, 0] / 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert torch.equal(halved(moved, 2), weight)


def test_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = lay(tmp_path / "run", make(tokenizer), tokenizer)
    export_gguf(run, tmp_path / "out.gguf")
    facts, _ = read(tmp_path / "out.gguf")
    said = {name.removeprefix("tokenizer."): value for name, value in facts.items() if name.startswith("tokenizer.")}
    assert (said["ggml.model"], said["ggml.pre"]) == ("gpt2", "gpt-2")
    assert said["ggml.tokens"] == tokenizer.vocabulary()
    kinds = {gguf.TokenType.CONTROL: {tokenizer.eos_id, tokenizer.pad_id}}
    control = {i for i, kind in enumerate(said["ggml.token_type"]) if kind != gguf.TokenType.NORMAL}
    assert control == kinds[gguf.TokenType.CONTROL]
    assert all(said["ggml.token_type"][i] == gguf.TokenType.CONTROL for i in control)
    merges = json.loads((run / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert said["ggml.merges"] == [" ".join(pair) for pair in merges] and len(merges) > 50
    ids = [said[f"ggml.{name}_token_id"] for name in ("bos", "eos", "padding")]
    assert ids == [tokenizer.eos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert said["ggml.add_bos_token"] is False and said["ggml.add_eos_token"] is False
    assert "chat_template" not in said


def test_the_tokens_cut_as_ours_do(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The merges by the book: of all neighbours in a word the pair that comes first in the list is joined."""
    transformers: Any = pytest.importorskip("transformers")
    export_gguf(lay(tmp_path / "run", make(tokenizer), tokenizer), tmp_path / "out.gguf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="out.gguf")
    for text in PROMPTS:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text), text


def test_a_gap_between_ids_has_a_name_of_its_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = lay(tmp_path / "run", make(tokenizer), tokenizer)
    said = json.loads((run / "tokenizer.json").read_text(encoding="utf-8"))
    n = tokenizer.vocab_size
    plain = {**said["added_tokens"][0], "id": n, "content": "plain", "special": False}
    said["added_tokens"].append(plain)
    said["model"]["vocab"]["late"] = n + 2
    (run / "tokenizer.json").write_text(json.dumps(said), encoding="utf-8")
    found = gguf_file._vocabulary(run, Tokenizer.load(run))
    assert found.tokens[n:] == [f"<unused_{n}>", "plain", "late"]
    assert found.types[n:] == ["UNUSED", "USER_DEFINED", "NORMAL"]
    assert found.types.count("CONTROL") == 2


def test_a_chat_model(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS * 4, "bpe", 360)
    tokenizer.add_controls(CONTROLS)
    stored = StoredChat(make(tokenizer), tokenizer, DEFAULT_TEMPLATE, 0.5, 0.75, 1.25)
    write_chat(tmp_path / "run", stored, end_ids(tokenizer, DEFAULT_TEMPLATE))
    export_gguf(tmp_path / "run", tmp_path / "out.gguf")
    facts, _ = read(tmp_path / "out.gguf")
    assert facts["tokenizer.chat_template"] == DEFAULT_TEMPLATE
    assert facts["tokenizer.ggml.eot_token_id"] == tokenizer.token_id("<|end|>")
    assert facts["tokenizer.ggml.eos_token_id"] == tokenizer.eos_id
    names = ("temp", "top_p", "penalty_repeat")
    assert [facts[f"general.sampling.{name}"] for name in names] == [0.5, 0.75, 1.25]
    kinds = facts["tokenizer.ggml.token_type"]
    assert all(kinds[tokenizer.controls[name]] == gguf.TokenType.CONTROL for name in CONTROLS)
    prompts = gguf_file._prompts(tokenizer, stored)
    assert prompts[4][0] == "<|user|>床前明月光，<|end|><|assistant|>"
    names_asked = [tokenizer.controls[name] for name in ("<|user|>", "<|end|>", "<|assistant|>")]
    assert prompts[4][1] == [names_asked[0], *tokenizer.encode("床前明月光，"), *names_asked[1:]]


# ---- what llama.cpp says ---------------------------------------------------------------------------------------------


Answers = Callable[..., str]
FEW = 8  # new tokens


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Have a program answer in llama.cpp's place, in a process of its own as it has; the Python to give."""
    monkeypatch.setattr(gguf_file, "NEW_TOKENS", FEW)

    @torch.inference_mode()
    def answer(model: GPT, *, louder: float = 1.0, **wrong: Any) -> str:
        ids = [tokenizer.encode(text) for text in PROMPTS]
        room = model.settings.max_len
        kept = [row[: room - FEW] for row in ids]
        said = {"version": "9.9", "cut": ids, "ends": [tokenizer.eos_id], **wrong}
        said.setdefault("written", [greedy(model, row, FEW) for row in kept])
        rows = [[*row, *new[:-1]] for row, new in zip(kept, said["written"], strict=True)]
        logits = [model.logits(model(torch.tensor([row])))[0] * louder for row in rows]
        file = tmp_path_factory.mktemp("answers") / "answer"
        line = json.dumps(said).encode() + b"\n"
        file.write_bytes(line + b"".join(part.numpy().tobytes() for part in logits))
        program = f"import sys; sys.stdout.buffer.write(open({str(file)!r}, 'rb').read())"
        monkeypatch.setattr(gguf_file, "LLAMA_CPP", program)
        return sys.executable

    return answer


def test_what_agrees_appears(answers: Answers, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make(tokenizer)
    report = export_gguf(lay(tmp_path / "run", model, tokenizer), tmp_path / "out.gguf", python=answers(model))
    assert (report.llama_cpp, report.n_prompts, report.equal) == ("9.9", 8, 8)
    assert report.largest_difference < 1e-5
    assert (tmp_path / "out.gguf").is_file()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cut": [[1]] * 8}, r"llama\.cpp gives 'It is a truth universally acknowledged' the ids \[1\], we"),
        ({"written": [[5] * FEW] * 8}, r"the greedy continuation of 'It is a truth .* differs"),
        ({"written": [[5]] * 8}, "by 1 tokens, not by 8"),
        ({"louder": 1.001}, r"differs by 0\.001 of the largest between llama\.cpp and the weights in the file"),
        ({"louder": float("nan")}, "differs by nan"),
        ({"ends": [9]}, r"ends a text with the tokens \[9\]"),
    ],
    ids=["tokens", "text", "short", "logits", "nan", "end"],
)
def test_nothing_is_left_where_llama_cpp_says_something_else(
    wrong: dict[str, Any], said: str, answers: Answers, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make(tokenizer)
    run = lay(tmp_path / "run", model, tokenizer)
    with pytest.raises(RuntimeError, match=said):
        export_gguf(run, tmp_path / "new" / "out.gguf", python=answers(model, **wrong))
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("program", "python"), [("import os; os.abort()", sys.executable), ("", "/no/python")], ids=["aborts", "absent"]
)
def test_nothing_is_left_where_it_does_not_run(
    program: str, python: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "LLAMA_CPP", program)
    run = lay(tmp_path / "run", make(tokenizer), tokenizer)
    with pytest.raises(RuntimeError, match=r"llama\.cpp does not run"):
        export_gguf(run, tmp_path / "out.gguf", python=python)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_nothing_is_left_where_a_weight_came_back_otherwise(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way back is another than the way there."""
    monkeypatch.setattr(gguf_file, "halved", lambda weight, heads: weight)
    run = lay(tmp_path / "run", make(tokenizer, "llama"), tokenizer)
    with pytest.raises(RuntimeError, match=r"qkv\.weight was not read back as it was written"):
        export_gguf(run, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_tie_is_no_difference(answers: Answers, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Two tokens of one embedding: whichever is taken, the logits of both are the same."""
    model = make(tokenizer)
    ids = tokenizer.encode(PROMPTS[0])
    first = greedy(model, ids, 1)[0]
    twin = next(i for i in range(10, 300) if i != first and i not in ids)
    with torch.no_grad():
        model.embedding.weight[twin] = model.embedding.weight[first]
    written = [greedy(model, tokenizer.encode(text)[: 72 - FEW], FEW) for text in PROMPTS]
    assert written[0][0] in (first, twin)
    written[0][0] = first + twin - written[0][0]
    python = answers(model, written=written)
    report = export_gguf(lay(tmp_path / "run", model, tokenizer), tmp_path / "out.gguf", python=python)
    assert report.equal == 7 and report.largest_difference < 1e-5


def test_a_report_says_what_was_checked() -> None:
    report = GGUFReport(Path("out"), "q8_0", 1000, 0, "0.3.36", 8, 8, 0.012, False)
    same = "llama.cpp (llama-cpp-python 0.3.36) cuts the same tokens and goes on greedily with the same"
    off = "its logits are 1.2e-02 of the largest off at most"
    written = "1,000 parameters as q8_0, read back as they were to be written"
    assert report.summary() == f"{written}; {same} for all of 8 prompts; {off}"
    fewer = f"{same} for 6 of 8 prompts, the others part at two near equals; {off}"
    assert replace(report, equal=6).summary() == f"{written}; {fewer}"
    assert "pip install llama-cpp-python" in replace(report, llama_cpp="").summary()


# ---- the command, and what is refused --------------------------------------------------------------------------------


def test_the_command(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = lay(tmp_path / "run", make(tokenizer), tokenizer)
    out = tmp_path / "models" / "it's mine.gguf"
    assert cli.main(["export", str(run), str(out), "--to", "gguf", "--dtype", "bf16"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "parameters as bf16, read back" in said.err
    words = shlex.split(said.err[said.err.index("next:") :])
    assert words[1:3] == ["python", "-c"] and f"Llama({str(out)!r}, n_ctx=0" in words[3]
    compile(words[3], "next", "exec")
    assert read(out)[0]["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A folder of runs that cannot be exported."""
    folder = tmp_path_factory.mktemp("others")
    n, made = tokenizer.vocab_size, {kind: train_tokenizer(TEXTS, kind, 400) for kind in _kinds()}
    write_model_directory(folder / "lstm", LSTM(LSTMSettings(n, d_model=16, n_layers=1)).eval(), tokenizer)
    sizes: dict[str, Any] = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16, "max_len": 16}
    for kind in ("char", "word"):
        lay(folder / kind, GPT(GPTSettings(made[kind].vocab_size, **{**sizes, "n_kv_heads": 2})).eval(), made[kind])
    reads = made["wordpiece"]
    bert = BertSettings(vocab_size=reads.vocab_size, **sizes)
    write_model_directory(folder / "bert", Bert(bert).eval(), reads)
    classifier = BertClassifier(replace(bert, head="classifier", n_labels=2)).eval()
    labels = LabelFacts(("a", "b"), "single_label_classification")
    write_model_directory(folder / "classifier", classifier, reads, labels=labels)
    ended = train_tokenizer(TEXTS, "bpe", 300)
    ended.end_texts()
    marian = MarianSettings(ended.vocab_size, start_id=ended.pad_id, n_encoder_layers=1, **sizes)
    write_seq2seq(
        folder / "marian", StoredSeq2Seq(Marian(marian).eval(), ended, "translation", "en", "zh"), num_beams=1
    )
    lay(folder / "foreign", make(tokenizer), tokenizer)
    said = json.loads((folder / "foreign" / "tokenizer.json").read_text(encoding="utf-8"))
    said["normalizer"] = {"type": "NFC"}
    (folder / "foreign" / "tokenizer.json").write_text(json.dumps(said), encoding="utf-8")
    (folder / "foreign" / "MANIFEST.json").unlink(missing_ok=True)
    return folder


def _kinds() -> tuple[Kind, ...]:
    return ("char", "word", "wordpiece")


@pytest.mark.parametrize(
    ("name", "what", "mend"),
    [
        ("lstm", "this is an lstm", "model.family=gpt"),
        ("char", "of the kind char", "tokenizer.kind=bpe"),
        ("word", "of the kind word", "tokenizer.kind=bpe"),
        ("bert", "writes no text", "--to transformers"),
        ("classifier", "classifies", "--to transformers"),
        ("marian", "writes for a text that it reads", "--to ctranslate2"),
        ("foreign", "cuts texts otherwise", "convert_hf_to_gguf"),
        ("nowhere", "there is no folder", "finished run"),
    ],
)
def test_another_run_is_told_what_it_can_do(name: str, what: str, mend: str, others: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=what) as refused:
        export_gguf(others / name, tmp_path / "new" / "out.gguf")
    assert mend in refused.value.mend
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}},
        {"pre_tokenizer": None},
        {"model": {"ignore_merges": True}},
    ],
    ids=["prefix", "no-regex", "sequence", "none", "merges"],
)
def test_a_tokenizer_that_cuts_otherwise(change: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = lay(tmp_path / "run", make(tokenizer), tokenizer)
    said = json.loads((run / "tokenizer.json").read_text(encoding="utf-8"))
    said |= {**change, "model": {**said["model"], **change.get("model", {})}}
    (run / "tokenizer.json").write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(InputError, match="cuts texts otherwise"):
        gguf_file._vocabulary(run, tokenizer)


def test_words_that_do_not_go_together(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lay(tmp_path / "run", make(tokenizer), tokenizer)
    here = str(tmp_path / "out.gguf")
    for arguments, what in (
        ([str(run), here, "--to", "gguf", "--dtype", "q4_0"], "f32, bf16, q8_0"),
        ([str(run), here, "--to", "gguf", "--max-shard-size", "1MB"], "leave out --max-shard-size"),
        ([str(run), here, "--dtype", "bf16"], "leave out --dtype"),
        ([str(run), str(run), "--to", "gguf"], "exists"),
    ):
        assert cli.main(["export", *arguments]) == cli.USER_ERROR
        assert re.search(what, capsys.readouterr().err), arguments
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else real(name))
    with pytest.raises(InputError, match="not installed") as refused:
        export_gguf(run, tmp_path / "out.gguf")
    assert refused.value.mend == "pip install 'zhixing[gguf]'"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
