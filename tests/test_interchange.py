"""Files that other tools load and that load from other tools: transformers with tiny random weights is the judge."""

from __future__ import annotations

import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zhixing.errors import InputError
from zhixing.interchange.import_export import CheckReport, export_model, greedy, import_model
from zhixing.interchange.model_directory import parse_size, read_model_directory, shard_names, write_model_directory
from zhixing.interchange.transformers_layout import TokenizerFacts, config_of, from_layout, settings_of, to_layout
from zhixing.interchange.word_vector_files import read_word_vectors
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.lstm import LSTM, LSTMSettings
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer

transformers = pytest.importorskip("transformers")

ENGLISH = """It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of
a wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth
is so well fixed in the minds of the surrounding families, that he is considered as the rightful property of some one or
other of their daughters. "My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park is let
at last?" Mr. Bennet replied that he had not. "But it is," returned she; "for Mrs. Long has just been here."
"""
CHINESE = """床前明月光，疑是地上霜。举头望明月，低头思故乡。春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。白日依山尽，黄河入海流。
欲穷千里目，更上一层楼。千山鸟飞绝，万径人踪灭。孤舟蓑笠翁，独钓寒江雪。红豆生南国，春来发几枝。愿君多采撷，此物最相思。
"""
PROMPTS = [
    "It is a truth",
    "My dear Mr. Bennet",
    "a single man in possession",
    "However little known",
    "the rightful property of",
    "some one or other of their daughters",
    "have you heard",
    "Netherfield Park is let at last?",
    "  two  spaces and 12345 numbers",
    "unseen wörds, naïve café & 🙂\n\n\ttabs",
    "床前明月光，",
    "疑是地上霜。",
    "举头望明月",
    "春眠不觉晓，处处",
    "夜来风雨声",
    "白日依山尽，黄河入海流。",
    "千山鸟飞绝",
    "没有见过的文字：鑫龘",
    "Mixed 中英文 text，“引号” and more",
    "愿君多采撷，此物最相思。\n红豆",
]
LAYOUTS = ["gpt2", "gpt2-untied", "llama", "llama-grouped-tied", "qwen3", "qwen3-grouped-tied"]


@pytest.fixture(scope="module", name="tokenizer")
def fixture_tokenizer() -> Tokenizer:
    return train_tokenizer([ENGLISH, CHINESE] * 4, "bpe", 400)


def settings_for(layout: str, vocab_size: int) -> GPTSettings:
    """Sizes that are all different, so that no axis can be taken for another."""
    name = layout.split("-")[0]
    return GPTSettings(
        vocab_size=vocab_size,
        layout=name,  # type: ignore[arg-type]
        d_model=48,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2 if "grouped" in layout else 4,
        d_ff=80,
        max_len=72,
        tie_embeddings="tied" in layout.split("-") or layout == "gpt2",
        rope_theta=10_000.0 if name == "gpt2" else 5000.0,
        norm_eps=3e-6,
    )


def shake(model: torch.nn.Module) -> None:
    """Random weights that are far from the start of training: biases and norms too, all told apart."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_norm else 0.2 * noise)


def our_model(layout: str, vocab_size: int) -> GPT:
    model = GPT(settings_for(layout, vocab_size)).eval()
    shake(model)
    return model


def their_model(layout: str, vocab_size: int) -> Any:
    """The same sizes, made by transformers itself from its own config class."""
    s = settings_for(layout, vocab_size)
    common = {"vocab_size": s.vocab_size, "tie_word_embeddings": s.tie_embeddings, "eos_token_id": 0, "bos_token_id": 0}
    if s.layout == "gpt2":
        config = transformers.GPT2Config(
            n_embd=s.d_model, n_layer=s.n_layers, n_head=s.n_heads, n_inner=s.d_ff, n_positions=s.max_len,
            layer_norm_epsilon=s.norm_eps, **common,
        )  # fmt: skip
    else:
        classes = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}
        config = classes[s.layout](
            hidden_size=s.d_model, num_hidden_layers=s.n_layers, num_attention_heads=s.n_heads,
            num_key_value_heads=s.n_kv_heads, head_dim=s.d_model // s.n_heads, intermediate_size=s.d_ff,
            max_position_embeddings=s.max_len, rms_norm_eps=s.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": s.rope_theta}, **common,
        )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    shake(model)
    return model


def load_with_transformers(folder: Path) -> tuple[Any, Any]:
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def assert_same(ours: GPT, tokenizer: Tokenizer, theirs: Any, their_tokenizer: Any) -> None:
    """Ids, logits within 1e-4 in fp32, greedy text: for the 20 prompts."""
    vocab_size = tokenizer.vocab_size
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        assert their_tokenizer(prompt)["input_ids"] == ids
        logits = theirs(torch.tensor([ids])).logits[..., :vocab_size]
        torch.testing.assert_close(ours.logits(ours(torch.tensor([ids]))), logits, atol=1e-4, rtol=0)
        made = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), max_new_tokens=12,
            min_new_tokens=12, do_sample=False,
        )[0].tolist()  # fmt: skip
        # min_new_tokens keeps the end token away there, so it is kept away here
        assert made[len(ids) :] == greedy_without(ours, ids, 12, tokenizer.eos_id)
        assert tokenizer.decode(made) == their_tokenizer.decode(made, skip_special_tokens=True)


def greedy_without(model: GPT, ids: list[int], n_new: int, banned: int) -> list[int]:
    """Greedy ids by the full forward pass, without the cache: a second way to the same."""
    made = list(ids)
    for _ in range(n_new):
        logits = model.logits(model(torch.tensor([made])))[0, -1]
        logits[banned] = -torch.inf
        made.append(int(logits.argmax()))
    return made[len(ids) :]


# --- parity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ours_to_transformers(layout: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A directory of ours loads with AutoModelForCausalLM and AutoTokenizer as it is."""
    model = our_model(layout, tokenizer.vocab_size)
    write_model_directory(tmp_path, model, tokenizer)
    theirs, their_tokenizer = load_with_transformers(tmp_path)
    classes = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    assert type(theirs).__name__ == classes[layout.split("-")[0]]
    assert their_tokenizer.model_max_length == 72
    assert theirs.generation_config.eos_token_id == tokenizer.eos_id
    assert_same(model, tokenizer, theirs, their_tokenizer)

    again, tokenizer_again, config = read_model_directory(tmp_path)
    assert again.settings == model.settings
    assert config["zhixing"]["tokenizer_fingerprint"] == tokenizer_again.fingerprint() == tokenizer.fingerprint()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ours_in_shards_to_transformers(layout: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = our_model(layout, tokenizer.vocab_size)
    write_model_directory(tmp_path / "one", model, tokenizer)
    write_model_directory(tmp_path / "many", model, tokenizer, max_shard_size="40kb")
    assert [path.name for path in (tmp_path / "one").glob("*.safetensors")] == ["model.safetensors"]
    shards = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    ones, manys = (load_with_transformers(tmp_path / name)[0].state_dict() for name in ("one", "many"))
    assert ones.keys() == manys.keys()
    assert all(torch.equal(manys[name], tensor) for name, tensor in ones.items())
    again, _, _ = read_model_directory(tmp_path / "many")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_to_ours(layout: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A directory that transformers wrote, sharded, is imported; and the import loads with transformers again."""
    theirs = their_model(layout, tokenizer.vocab_size)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    tokenizer.save(tmp_path / "theirs")
    report = import_model(tmp_path / "theirs", tmp_path / "ours")
    assert report.transformers == transformers.__version__
    assert report.n_parameters == theirs.num_parameters()
    model, tokenizer_again, _ = read_model_directory(tmp_path / "ours")
    assert isinstance(model, GPT)
    assert replace(model.settings, dropout=0.0) == settings_for(layout, tokenizer.vocab_size)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert_same(model, tokenizer_again, theirs, their_tokenizer)


def test_padded_vocabulary_is_cut_on_import(tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = their_model("qwen3", tokenizer.vocab_size + 27)
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    with pytest.raises(InputError, match=f"{tokenizer.vocab_size} tokens, the model {tokenizer.vocab_size + 27}"):
        read_model_directory(tmp_path / "theirs")
    assert import_model(tmp_path / "theirs", tmp_path / "ours").rows_cut == 27
    model, _, _ = read_model_directory(tmp_path / "ours")
    ids = torch.tensor([tokenizer.encode(PROMPTS[0])])
    with torch.inference_mode():
        expected = theirs(ids).logits[..., : tokenizer.vocab_size]
        torch.testing.assert_close(model.logits(model(ids)), expected, atol=1e-4, rtol=0)


def test_half_precision_keeps_its_bits(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = our_model("qwen3-grouped-tied", tokenizer.vocab_size)
    write_model_directory(tmp_path / "run", model, tokenizer)
    export_model(tmp_path / "run", tmp_path / "bf16", dtype="bfloat16")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "bf16")
    assert theirs.dtype == torch.bfloat16
    again, _, _ = read_model_directory(tmp_path / "bf16")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.bfloat16().float()), name
    assert import_model(tmp_path / "bf16", tmp_path / "back").dtype == "bfloat16"
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("bf16", "back"))
    assert one == two


@pytest.mark.parametrize("tied", [True, False])
def test_lstm_round_trip(tied: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = LSTMSettings(tokenizer.vocab_size, d_model=20, n_layers=3, max_len=30, dropout=0.1, tie_embeddings=tied)
    model = LSTM(settings).eval()
    shake(model)
    write_model_directory(tmp_path / "run", model, tokenizer)
    report = export_model(tmp_path / "run", tmp_path / "out", max_shard_size="30kb")
    assert report.transformers == ""
    again, _, config = read_model_directory(tmp_path / "out")
    assert again.settings == settings
    assert config["model_type"] == "zhixing_lstm"
    ids = tokenizer.encode(PROMPTS[3])
    assert torch.equal(again(torch.tensor([ids])), model(torch.tensor([ids])))
    assert greedy(again, ids, 8) == greedy(model, ids, 8)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert all(their_tokenizer(prompt)["input_ids"] == tokenizer.encode(prompt) for prompt in PROMPTS)


# --- the layout as pure functions --------------------------------------------------------------------------------


def test_layout_of_gpt2_is_conv1d_and_ties_once() -> None:
    model = our_model("gpt2", 50)
    tensors = to_layout(model.state_dict(), model.settings)
    assert "lm_head.weight" not in tensors
    assert tensors["transformer.h.0.mlp.c_fc.weight"].shape == (48, 80)  # [in, out]
    assert torch.equal(
        tensors["transformer.h.1.attn.c_attn.weight"].T, model.state_dict()["blocks.1.attention.qkv.weight"]
    )
    pointers = [tensor.data_ptr() for tensor in tensors.values()]
    assert len(set(pointers)) == len(pointers)
    assert all(tensor.is_contiguous() for tensor in tensors.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_and_back_is_the_identity(layout: str) -> None:
    model = our_model(layout, 50)
    config = config_of(model.settings, TokenizerFacts(eos_id=0, pad_id=1, fingerprint="f"), "float32")
    settings, state = from_layout(to_layout(model.state_dict(), model.settings), json.loads(json.dumps(config)))
    assert settings == model.settings
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_names_of_openai_gpt2_files() -> None:
    """The first GPT-2 files leave `transformer.` out and hold the masks beside the weights."""
    model = our_model("gpt2", 50)
    config = config_of(model.settings, TokenizerFacts(0, 0, ""), "float32")
    tensors = {n.removeprefix("transformer."): t for n, t in to_layout(model.state_dict(), model.settings).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 72, 72)
    _, state = from_layout(tensors, config)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_tensor_under_two_names_is_refused() -> None:
    model = our_model("gpt2", 50)
    config = config_of(model.settings, TokenizerFacts(0, 0, ""), "float32")
    tensors = to_layout(model.state_dict(), model.settings)
    tensors["h.0.ln_1.weight"] = tensors["transformer.h.0.ln_1.weight"] + 1
    with pytest.raises(InputError, match=r"transformer\.h\.0\.ln_1\.weight twice"):
        from_layout(tensors, config)


def test_tied_head_that_is_stored_twice() -> None:
    model = our_model("llama-grouped-tied", 50)
    config = config_of(model.settings, TokenizerFacts(0, 0, ""), "float32")
    tensors = to_layout(model.state_dict(), model.settings)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    from_layout(dict(tensors), config)
    tensors["lm_head.weight"][3, 4] += 1
    with pytest.raises(InputError, match="tie_word_embeddings"):
        from_layout(dict(tensors), config)


@pytest.mark.parametrize(
    "layout, key, value",
    [
        ("llama", "model_type", "mamba"),
        ("llama", "model_type", ["llama"]),
        ("llama", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("llama", "rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 7.0}),  # rope_theta says 5000
        ("llama", "rope_theta", float("nan")),
        ("llama", "attention_bias", True),
        ("llama", "mlp_bias", True),
        ("llama", "hidden_act", "gelu"),
        ("llama", "head_dim", 16),
        ("llama", "num_key_value_heads", 3),
        ("llama", "num_attention_heads", 5),
        ("llama", "num_attention_heads", 0),
        ("llama", "hidden_size", 48.0),
        ("llama", "hidden_size", True),
        ("llama", "num_hidden_layers", 10**9),
        ("llama", "max_position_embeddings", 10**15),
        ("llama", "quantization_config", {"quant_method": "gptq"}),
        ("llama", "auto_map", {"AutoModelForCausalLM": "evil.Model"}),
        ("qwen3", "use_sliding_window", True),
        ("qwen3", "sliding_window", 128),
        ("qwen3", "layer_types", ["full_attention", "sliding_attention"]),
        ("qwen3", "tie_word_embeddings", "yes"),
        ("gpt2", "activation_function", "relu"),
        ("gpt2", "n_ctx", 71),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "n_embd", None),
        ("gpt2", "resid_pdrop", 1.5),
    ],
)
def test_config_that_we_do_not_compute_is_refused(layout: str, key: str, value: Any) -> None:
    config = config_of(settings_for(layout, 50), TokenizerFacts(0, 0, ""), "float32")
    settings_of(config)
    with pytest.raises(InputError) as caught:
        settings_of(config | {key: value})
    assert key in caught.value.message()


# --- directories that are wrong ----------------------------------------------------------------------------------


@pytest.fixture(name="run")
def fixture_run(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    write_model_directory(
        tmp_path / "run", our_model("qwen3-grouped-tied", tokenizer.vocab_size), tokenizer, max_shard_size="40kb"
    )
    return tmp_path / "run"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")


def test_rewritten_directory_holds_one_model(run: Path, tokenizer: Tokenizer) -> None:
    model = our_model("llama", tokenizer.vocab_size)
    write_model_directory(run, model, tokenizer)
    assert not list(run.glob("model-*")) and not (run / "model.safetensors.index.json").exists()
    assert read_model_directory(run)[0].settings == model.settings
    load_with_transformers(run)


def test_pickles_are_refused_by_name(run: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (Path(run / "ran"),))  # type: ignore[return-value]

    for file in [*run.glob("*.safetensors"), run / "model.safetensors.index.json"]:
        file.unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.pth", "weights.ckpt", "model.pkl"):
        (run / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            read_model_directory(run)
        (run / name).unlink()
    assert not (run / "ran").exists()


def test_tokenizer_of_another_run(run: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    other = train_tokenizer([CHINESE * 4, ENGLISH[:300]], "bpe", tokenizer.vocab_size)
    assert other.vocab_size == tokenizer.vocab_size
    other.save(run)
    with pytest.raises(InputError, match="not the one that the model was trained with"):
        read_model_directory(run)
    smaller = train_tokenizer([ENGLISH, CHINESE], "bpe", 300)
    smaller.save(run)
    with pytest.raises(InputError, match="the tokenizer has 300 tokens"):
        read_model_directory(run)
    with pytest.raises(InputError, match="300 tokens"):
        write_model_directory(tmp_path / "new", our_model("qwen3", tokenizer.vocab_size), smaller)


def test_damaged_directories(run: Path, tmp_path: Path) -> None:
    """One sound directory, one thing made wrong at a time; each is an InputError that names the place."""
    shard = sorted(run.glob("model-*"))[1]
    index, config = run / "model.safetensors.index.json", run / "config.json"

    def crafted(header: dict[str, Any]) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text

    huge = {"model.norm.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    cases: list[tuple[Path, bytes | None, str]] = [
        (shard, None, shard.name),
        (shard, b"", "damaged"),
        (shard, shard.read_bytes()[:-4], "damaged"),
        (shard, b"\xff" * 64, "damaged"),
        (shard, crafted(huge), "damaged"),
        (shard, crafted({}), "do not agree"),
        (index, b"{", "not JSON"),
        (index, b"[" * 100_000, "not JSON"),
        (index, b'{"weight_map": {"a": "../../outside.safetensors"}}', "not the name of a shard"),
        (index, b'{"weight_map": {"a": 3}}', "not the name of a shard"),
        (config, None, "no config.json"),
        (config, b"[]", "not a JSON object"),
        (config, b"\xff\xfe{}", "not JSON"),
    ]
    for file, content, message in cases:
        sound = file.read_bytes()
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_model_directory(run)
        assert message in caught.value.message(), (file.name, content)
        file.write_bytes(sound)
    read_model_directory(run)
    with pytest.raises(InputError, match="no folder"):
        read_model_directory(tmp_path / "nowhere")


def test_weights_of_another_shape(run: Path) -> None:
    edit_json(run / "config.json", intermediate_size=81)
    with pytest.raises(InputError, match=r"gate_proj.weight has the shape \[80, 48\], config.json makes it \[81, 48\]"):
        read_model_directory(run)
    edit_json(run / "config.json", intermediate_size=80, num_hidden_layers=3)
    with pytest.raises(InputError, match=r"missing \(the first is model.layers.2."):
        read_model_directory(run)
    edit_json(run / "config.json", num_hidden_layers=1)
    with pytest.raises(InputError, match=r"not known \(the first is model.layers.1."):
        read_model_directory(run)


def test_export_writes_whole_or_not_at_all(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = export_model(run, tmp_path / "out")
    assert isinstance(report, CheckReport)
    assert report.largest_difference < 1e-4
    with pytest.raises(InputError, match="exists"):
        export_model(run, tmp_path / "out")

    calls = iter([False, True])

    def damaged_second(folder: Path) -> Any:
        model, tokenizer, config = read_model_directory(folder)
        if next(calls):
            model.norm.weight.data += 1e-3
        return model, tokenizer, config

    monkeypatch.setattr("zhixing.interchange.import_export.read_any_model", damaged_second)
    with pytest.raises(RuntimeError, match=r"norm\.weight was not read back"):
        export_model(run, tmp_path / "bad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_any_value_in_a_config_is_refused_or_works() -> None:
    """Every key of every layout with values of every kind: settings or an InputError, nothing else."""
    odd = [None, True, 0, -1, 1, 7, 10**30, 0.5, -1e400, float("nan"), "", "x", [], [1], {}, {"rope_theta": "x"}]
    refused = 0
    for settings in (*(settings_for(layout, 50) for layout in LAYOUTS), LSTMSettings(vocab_size=50)):
        config = config_of(settings, TokenizerFacts(0, 0, ""), "float32")
        for key in config:
            for value in odd:
                try:
                    settings_of(config | {key: value})
                except InputError:
                    refused += 1
    assert refused > 1000


def test_every_flipped_bit_of_an_export_is_seen(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "out")
    generator = torch.Generator().manual_seed(5)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "MANIFEST.json"):
        file = tmp_path / "out" / name
        sound = file.read_bytes()
        for place in torch.randint(8 * len(sound), (12,), generator=generator).tolist():
            flipped = bytearray(sound)
            flipped[place // 8] ^= 1 << place % 8
            file.write_bytes(flipped)
            with pytest.raises(InputError):
                read_model_directory(tmp_path / "out")
        file.write_bytes(sound)
    read_model_directory(tmp_path / "out")


def test_crafted_headers_end_in_an_input_error(run: Path, tokenizer: Tokenizer) -> None:
    """Without a manifest nothing vouches for the weights: a bit of the header flipped is an error or changes nothing."""
    write_model_directory(run, our_model("llama", tokenizer.vocab_size), tokenizer)
    file = run / "model.safetensors"
    sound = file.read_bytes()
    header = 8 + struct.unpack("<Q", sound[:8])[0]
    seen = 0
    for place in torch.randint(8 * header, (150,), generator=torch.Generator().manual_seed(6)).tolist():
        flipped = bytearray(sound)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        try:
            read_model_directory(run)
        except InputError:
            seen += 1
    assert seen > 140


# --- small parts -------------------------------------------------------------------------------------------------


def test_sizes_and_shards() -> None:
    assert [parse_size(s) for s in (7, "7", "5GB", "2 KiB", "3mb")] == [7, 7, 5 * 10**9, 2048, 3 * 10**6]
    for wrong in ("", "0", "-1", "5 potatoes", "1e9", 0):
        with pytest.raises(InputError):
            parse_size(wrong)
    assert shard_names({"a": 3, "b": 3, "c": 9, "d": 1}, 6) == [["a", "b"], ["c"], ["d"]]


GLOVE = "the 0.5 -1 2\nof 1e-3 0 0.25\n中 1 2 3\n. . . 7 8 9\nthe 9 9 9\n"


@pytest.mark.parametrize("header", ["", "5 3\n"])
def test_word_vectors(header: str, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text(header + GLOVE, encoding="utf-8")
    matrix, found = read_word_vectors(tmp_path / "v.txt", ["of", "absent", "the", "中", ". . .", "the"])
    assert found.tolist() == [True, False, True, True, True, True]
    the = [0.5, -1.0, 2.0]  # the first of two
    assert matrix.tolist() == [[pytest.approx(1e-3), 0.0, 0.25], [0.0] * 3, the, [1.0, 2.0, 3.0], [7.0, 8.0, 9.0], the]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no word vectors"),
        (b"2 3\n", "not possible"),
        (b"a 1 2\nb 1\n", "v.txt:2"),
        (b"a 1 2\nb 1 x\n", "no number"),
        (b"a 1 2\nb 1 inf\n", "not finite"),
        (b"a 1 2\n\xff 1 2\n", "byte 0 of the line"),
        (b"3 999999999999\na 1 2\n", "not possible"),
        (b"a" * (1 << 21), "longer than"),
    ],
)
def test_wrong_word_vectors(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_word_vectors(tmp_path / "v.txt", ["a", "b"])
    assert message in caught.value.message()


def test_word_vectors_start_an_lstm(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text(GLOVE, encoding="utf-8")
    model = LSTM(LSTMSettings(vocab_size=2, d_model=3, n_layers=1))
    model.load_embeddings(*read_word_vectors(tmp_path / "v.txt", ["中", "absent"]))
    assert model.embedding.weight[0].tolist() == [1.0, 2.0, 3.0]
    assert model.embedding.weight[1].abs().max() <= 0.1
