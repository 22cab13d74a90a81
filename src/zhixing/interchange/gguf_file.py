"""A GPT for llama.cpp, ollama and LM Studio as one file, GGUF, and the proof that it says the same there.

The `gguf` package writes the file and gives the names; llama.cpp's own converter is not used, as it refuses a tokenizer
that it does not know. What is in the file, and how it differs from our tensors:

    qwen3   as they are: the halves of a head turn against one another (channel i with i + K/2) there as here
    llama   rows of q and k move, as neighbours turn there (2i with 2i + 1):  0 1 2 | 3 4 5  ->  0 3 1 4 2 5
    gpt2    as they are: GGUF wants [out, in], which only transformers' files of GPT-2 have the other way round
    output.weight only where the head is not tied; norms, biases and GPT-2's positions are f32 whatever the dtype

    dtype   bytes   a weight is
    f32     4       as it was
    bf16    2       rounded to 8 significant bits; llama.cpp rounds what it is multiplied by likewise
    q8_0    1.06    one of 255 steps of the largest of 32 neighbours in its row; what it is multiplied by likewise

The tokenizer is llama.cpp's "gpt2" with the pre-tokenizer "gpt-2", which is the regular expression that ours learns
with. No token is put before a text, as our models do not begin with one; a text from nothing begins with bos, which is
eos. Special tokens are control: whether a text that spells one out becomes one is up to who calls llama.cpp.

Nothing appears under the final name until the file has been read back, and, where llama-cpp-python is installed,
until llama.cpp has cut the same tokens and gone on greedily with the same logits. It runs in a process of its own, as
it ends the process where it does not like a file.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zhixing.errors import InputError
from zhixing.files import fsync_path, temporary_beside
from zhixing.interchange.chat_directory import StoredChat, is_chat, read_chat
from zhixing.interchange.classifier_directory import is_classifier
from zhixing.interchange.import_export import PROMPTS, greedy
from zhixing.interchange.model_directory import build_model, read_any_model, read_json
from zhixing.interchange.seq2seq_directory import is_seq2seq
from zhixing.interchange.transformers_layout import layout_rows
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.lstm import LSTM
from zhixing.progress import Progress
from zhixing.tasks.chat_template import encode_chat, end_ids, render_chat, template_tokens
from zhixing.text.conversations import Message
from zhixing.tokens.tokenizer import Tokenizer

DTYPES = {"f32": "F32", "bf16": "BF16", "q8_0": "Q8_0"}  # ours, and what gguf calls them
FILE_TYPES = {"f32": "ALL_F32", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
GROUP = 32  # neighbours in a row that share a step of q8_0
NEW_TOKENS = 32  # that a prompt to compare is continued by
# How far a logit may be off, as a share of the largest where that is above 1. llama.cpp rounds what it multiplies by to
# the file's dtype, and looks GPT-2's gelu up in a table of fp16. Measured of trained models: 1e-6 (gpt2 2e-4), 4e-3 and
# 1e-2; of random large weights ten times as much in bf16 and q8_0; where a trained llama's q and k were not moved, 0.6.
TOLERANCE = {"f32": 1e-4, "bf16": 0.1, "q8_0": 0.3}
GELU_TOLERANCE = 3e-3
MOST_SECONDS = 600  # for llama.cpp to load and go on with some prompts

LLAMA_CPP = """
import json, sys
import llama_cpp

task = json.load(sys.stdin)
exact = llama_cpp.GGML_TYPE_F32  # the cache's, else it is fp16
model = llama_cpp.Llama(
    task["file"], n_ctx=max(len(ids) + count for _, ids, count in task["prompts"]), n_gpu_layers=0,
    n_threads=task["threads"], n_threads_batch=task["threads"], type_k=exact, type_v=exact, logits_all=True,
    verbose=False,
)
cut, written, logits = [], [], []
for text, ids, count in task["prompts"]:
    cut.append(model.tokenize(text.encode(), add_bos=True, special=task["special"]))  # bos if the file asks for it
    model.reset()
    found = []
    for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
        found.append(token)
        if len(found) == count:
            break
    written.append(found)
    logits.append(model.scores[: len(ids) + count - 1].tobytes())
ends = [i for i in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(model._model.vocab, i)]
said = {"version": llama_cpp.__version__, "cut": cut, "written": written, "ends": ends}
sys.stdout.buffer.write(json.dumps(said).encode() + b"\\n" + b"".join(logits))
"""


@dataclass(frozen=True)
class GGUFReport:
    """What was found before a file was put in its place."""

    file: Path
    dtype: str
    n_parameters: int
    n_left: int  # matrices that are f32 all the same, as their rows are no multiple of 32
    llama_cpp: str  # the version of llama-cpp-python; empty where it is not installed
    n_prompts: int
    equal: int  # prompts that llama.cpp continues as the run does, token by token
    largest_difference: float  # between its logits and those of the weights as they are stored, a share of the largest
    replies: bool  # whether it is a chat model

    def summary(self) -> str:
        """What was checked, in a line or two."""
        left = f" ({self.n_left} matrices are f32: their rows are no multiple of {GROUP})" if self.n_left else ""
        said = f"{self.n_parameters:,} parameters as {self.dtype}{left}, read back as they were to be written; "
        if not self.llama_cpp:
            return said + "llama.cpp has not read it: for that, pip install llama-cpp-python and export again"
        said += f"llama.cpp (llama-cpp-python {self.llama_cpp}) cuts the same tokens and goes on greedily with the same"
        off = f"its logits are {self.largest_difference:.1e} of the largest off at most"
        if self.equal == self.n_prompts:
            return f"{said} for all of {self.n_prompts} prompts; {off}"
        return f"{said} for {self.equal} of {self.n_prompts} prompts, the others part at two near equals; {off}"

    def usage(self) -> str:
        """A command that has llama.cpp go on with a text, or reply to one; n_ctx=0 is the model's own context."""
        asked = f"({PROMPTS[0]!r}, max_tokens=64)['choices'][0]['text']"
        if self.replies:
            message = {"role": "user", "content": "Hello!"}
            asked = f".create_chat_completion([{message}])['choices'][0]['message']['content']"
        code = f"from llama_cpp import Llama; print(Llama({str(self.file)!r}, n_ctx=0, verbose=False){asked})"
        return f"python -c {shlex.quote(code)}"


def export_gguf(run: Path, out: Path, dtype: str = "f32", *, python: str | None = None) -> GGUFReport:
    """Write the GPT of a run, or of any model directory, to a new file `out`.

    python: one that has llama-cpp-python; this one if not given, and then only where it is installed.
    InputError: gguf is not installed, the run is no gpt or its tokenizer is another, or `out` exists; RuntimeError,
    and no `out`, if a check fails.
    """
    if dtype not in DTYPES:
        raise InputError(f"there is no dtype {dtype!r}", mend=f"those known are {', '.join(DTYPES)}")
    model, tokenizer, chat = _read(run)
    vocabulary = _vocabulary(run, tokenizer)
    if importlib.util.find_spec("gguf") is None:
        what = "an export to gguf needs the package gguf"
        raise InputError(what, why="it is not installed", mend="pip install 'zhixing[gguf]'")
    if os.path.lexists(out):
        raise InputError(f"{str(out)!r} exists", why="nothing is ever written over", mend="give a new name")
    gguf: Any = importlib.import_module("gguf")
    if python is None and importlib.util.find_spec("llama_cpp") is not None:
        python = sys.executable
    version, equal, largest = "", 0, 0.0
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(out)
    try:
        with Progress("writing and checking", 3) as progress:
            n_left = _write(gguf, temporary, run.resolve().name, model, tokenizer, vocabulary, chat, dtype)
            progress.update(1)
            state = _read_back(gguf, temporary, model, dtype)
            progress.update(2)
            if python is not None:
                as_stored = build_model(model.settings, state)
                assert isinstance(as_stored, GPT)
                version, equal, largest = _check_llama_cpp(python, temporary, model, as_stored, tokenizer, chat, dtype)
        fsync_path(temporary)
        os.replace(temporary, out)
        fsync_path(out.parent)
    finally:
        temporary.unlink(missing_ok=True)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    return GGUFReport(out, dtype, n_parameters, n_left, version, len(PROMPTS), equal, largest, chat is not None)


def _read(run: Path) -> tuple[GPT, Tokenizer, StoredChat | None]:
    """The model, its tokenizer, and of a chat model its template. InputError where it is no GPT."""
    if is_seq2seq(run):
        mend = "a marian or t5 that translates or summarizes: --to ctranslate2"
        raise InputError("only a gpt is exported to gguf, and this model writes for a text that it reads", mend=mend)
    if is_classifier(run):
        mend = "transformers loads it: --to transformers (of a gpt or bert)"
        raise InputError("only a gpt that writes is exported to gguf, and this one classifies", mend=mend)
    chat = None
    model: Any
    if is_chat(run):
        chat = read_chat(run)
        model, tokenizer = chat.model, chat.tokenizer
    else:
        model, tokenizer, _ = read_any_model(run)
    if isinstance(model, LSTM):
        mend = "train a gpt (model.family=gpt), or use the run with zhixing"
        raise InputError("only a gpt is exported to gguf, and this is an lstm", why="llama.cpp has none", mend=mend)
    if not isinstance(model, GPT):
        mend = "transformers loads it: --to transformers"
        raise InputError("only a gpt is exported to gguf, and this model writes no text", mend=mend)
    return model, tokenizer, chat


# ---- what is in the file ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vocabulary:
    """Each token with its gguf.TokenType, and the merges in their order."""

    tokens: list[str]
    types: list[str]
    merges: list[str]


def _vocabulary(run: Path, tokenizer: Tokenizer) -> Vocabulary:
    """What tokenizer.json says. InputError where llama.cpp would cut texts otherwise."""
    if tokenizer.kind != "bpe":
        raise InputError(
            f"only a byte-level BPE is exported to gguf, and this tokenizer is of the kind {tokenizer.kind}",
            where=str(run),
            why="llama.cpp has none of this kind",
            mend="train with tokenizer.kind=bpe, or give the model to transformers: --to transformers",
        )
    said = read_json(run / "tokenizer.json")
    model, cuts = said["model"], said.get("pre_tokenizer") or {}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
                           "ignore_merges") if model.get(key)]  # fmt: skip
    if said.get("normalizer") or odd or any(cuts.get(key, True) != value for key, value in plain.items()):
        raise InputError(
            "this tokenizer cuts texts otherwise than those that zhixing trains",
            where=str(run / "tokenizer.json"),
            why="a gguf file names a way that llama.cpp knows: gpt-2's is the only one written here",
            mend="export it --to transformers; llama.cpp's convert_hf_to_gguf.py knows tokenizers such as Qwen's",
        )
    tokens = tokenizer.vocabulary()
    types = ["NORMAL" if token else "UNUSED" for token in tokens]
    special = {token["content"]: token["special"] for token in said.get("added_tokens", ())}
    for token, i in tokenizer.controls.items():
        types[i] = "CONTROL" if special.get(token, True) else "USER_DEFINED"
    tokens = [token or f"<unused_{i}>" for i, token in enumerate(tokens)]  # each needs a name of its own
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return Vocabulary(tokens, types, merges)


def _write(
    gguf: Any,
    file: Path,
    name: str,
    model: GPT,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    chat: StoredChat | None,
    dtype: str,
) -> int:
    """Write the file; how many matrices had to stay f32."""
    s = model.settings
    writer = gguf.GGUFWriter(file, s.layout)
    try:
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
        if dtype == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_settings(writer, s)
        _add_tokenizer(gguf, writer, tokenizer, vocabulary)
        if chat is not None:
            _add_chat(writer, tokenizer, chat)
        n_left = 0
        for their_name, tensor in _tensors(gguf, model):
            kind = gguf.GGMLQuantizationType[_stored_as(their_name, tensor, dtype)]
            n_left += kind.name == "F32" and DTYPES[dtype] != "F32" and _is_matrix(their_name, tensor)
            writer.add_tensor(their_name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return n_left


def _add_settings(writer: Any, s: GPTSettings) -> None:
    writer.add_vocab_size(s.vocab_size)
    writer.add_context_length(s.max_len)
    writer.add_embedding_length(s.d_model)
    writer.add_block_count(s.n_layers)
    writer.add_feed_forward_length(s.d_ff)
    writer.add_head_count(s.n_heads)
    if s.layout == "gpt2":
        writer.add_layer_norm_eps(s.norm_eps)
        return
    head_size = s.d_model // s.n_heads
    writer.add_head_count_kv(s.n_kv_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(s.rope_theta)
    writer.add_layer_norm_rms_eps(s.norm_eps)


def _add_tokenizer(gguf: Any, writer: Any, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([gguf.TokenType[kind] for kind in vocabulary.types])
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(tokenizer.eos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _add_chat(writer: Any, tokenizer: Tokenizer, chat: StoredChat) -> None:
    """The template, what ends a reply, and how one is sampled unless told otherwise."""
    writer.add_chat_template(chat.template)
    for end in end_ids(tokenizer, chat.template)[:1]:
        if end != tokenizer.eos_id:
            writer.add_eot_token_id(end)
    writer.add_sampling_temp(chat.temperature)
    writer.add_sampling_top_p(chat.top_p)
    writer.add_sampling_penalty_repeat(chat.repetition_penalty)


def _places(gguf: Any, s: GPTSettings) -> Iterator[tuple[str, str, slice, int]]:
    """Each tensor of the file: our parameter, its name there, which rows, and how many heads' channels move."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[s.layout.upper()], s.n_layers)
    for row in layout_rows(s):
        begin = 0
        for stored, shape in row.stored:
            rows = shape[-1] if row.transposed else shape[0]
            moved = 0
            if s.layout == "llama" and stored.endswith(("q_proj.weight", "k_proj.weight")):
                moved = s.n_heads if stored.endswith("q_proj.weight") else s.n_kv_heads
            name = names.get_name(stored, try_suffixes=(".weight", ".bias"))
            assert name is not None, stored
            yield row.ours, name, slice(begin, begin + rows), moved
            begin += rows


def _tensors(gguf: Any, model: GPT) -> Iterator[tuple[str, Tensor]]:
    """The file's tensors in fp32, each contiguous."""
    state = model.state_dict()
    for ours, name, rows, heads in _places(gguf, model.settings):
        tensor = state[ours].detach().cpu().float()[rows]
        yield name, (interleaved(tensor, heads) if heads else tensor).contiguous()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows (H K, D) in another order: of each head 0, K/2, 1, K/2 + 1, ..."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def halved(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `interleaved`."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is one that a smaller dtype is for."""
    return tensor.dim() == 2 and name != "position_embd.weight"


def _stored_as(name: str, tensor: Tensor, dtype: str) -> str:
    """gguf's name of what a tensor is stored as."""
    fits = dtype != "q8_0" or tensor.shape[-1] % GROUP == 0
    return DTYPES[dtype] if _is_matrix(name, tensor) and fits else "F32"


# ---- the proof -------------------------------------------------------------------------------------------------------


def _read_back(gguf: Any, file: Path, model: GPT, dtype: str) -> dict[str, Tensor]:
    """The file's weights as a state dict of ours. RuntimeError where one is not as it should have been rounded."""
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    state: dict[str, list[Tensor]] = {}
    given = model.state_dict()
    for ours, name, rows, heads in _places(gguf, model.settings):
        stored = found.pop(name)
        tensor = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type).copy())
        tensor = halved(tensor, heads) if heads else tensor
        before = given[ours].detach().cpu().float()[rows]
        kind = _stored_as(name, before, dtype)
        if stored.tensor_type.name != kind or not is_rounded(tensor, before, kind):
            raise RuntimeError(f"{ours} was not read back as it was written")
        state.setdefault(ours, []).append(tensor)
    if found:
        raise RuntimeError(f"the file holds {', '.join(found)}, which the model does not")
    return {name: torch.cat(parts) for name, parts in state.items()}


def is_rounded(tensor: Tensor, before: Tensor, kind: str) -> bool:
    """Whether `tensor` is what `before` becomes in a dtype of gguf's."""
    if tensor.shape != before.shape:
        return False
    if kind != "Q8_0":
        return torch.equal(tensor, before if kind == "F32" else before.bfloat16().float())
    step = before.reshape(-1, GROUP).abs().amax(-1, keepdim=True) / 127  # (groups, 1), stored in fp16
    most = 0.5 * step + 127 * (step * 2**-11 + 2**-25)  # half a step, and what the step itself was rounded by
    off = (tensor - before).reshape(-1, GROUP).abs()
    return bool((off <= most * 1.001).all())


@torch.inference_mode()
def _check_llama_cpp(
    python: str, file: Path, model: GPT, as_stored: GPT, tokenizer: Tokenizer, chat: StoredChat | None, dtype: str
) -> tuple[str, int, float]:
    """Compare tokens, logits and greedy text: the version, how many prompts go on as the run's, the largest difference.

    Logits are those of the weights as they are stored, of each prompt with what llama.cpp writes after it.
    RuntimeError names what differs.
    """
    prompts, s = _prompts(tokenizer, chat), model.settings
    asked = []
    for text, ids in prompts:
        kept = ids[: max(1, s.max_len - NEW_TOKENS)]
        asked.append((text, kept, min(NEW_TOKENS, s.max_len - len(kept))))
    task = {"file": str(file.resolve()), "threads": torch.get_num_threads(), "prompts": asked}
    found, numbers = _ask_llama_cpp(python, {**task, "special": chat is not None})
    ends = end_ids(tokenizer, chat.template) if chat is not None else (tokenizer.eos_id,)
    if not set(ends) <= set(found["ends"]):
        raise RuntimeError(f"llama.cpp ends a text with the tokens {found['ends']}, we with {sorted(ends)}")
    most = max(TOLERANCE[dtype], GELU_TOLERANCE if s.layout == "gpt2" else 0.0)
    equal, largest = 0, 0.0
    for (text, whole), (_, ids, count), cut, written in zip(
        prompts, asked, found["cut"], found["written"], strict=True
    ):
        if cut != whole:
            raise RuntimeError(f"llama.cpp gives {text!r} the ids {cut}, we {whole}")
        ours = as_stored.logits(as_stored(torch.tensor([[*ids, *written[:-1]]])))[0]  # (T, V)
        theirs, numbers = numbers[: ours.numel()].view(-1, s.vocab_size), numbers[ours.numel() :]
        if len(written) != count or theirs.shape != ours.shape:
            raise RuntimeError(f"llama.cpp goes on with {text!r} by {len(written)} tokens, not by {count}")
        scale = float(ours.abs().max().clamp(min=1.0))
        difference = float((ours - theirs).abs().max()) / scale
        if not difference <= most:
            off = f"{difference:.2g} of the largest"
            raise RuntimeError(f"a logit of {text!r} differs by {off} between llama.cpp and the weights in the file")
        chosen = ours[len(ids) - 1 :]  # (count, V)
        behind = chosen.amax(-1) - chosen.gather(-1, torch.tensor(written)[:, None])[:, 0]  # (count,)
        if not float(behind.max()) <= 2 * most * scale:
            raise RuntimeError(f"the greedy continuation of {text!r} differs between llama.cpp and us")
        largest = max(largest, difference)
        equal += written == greedy(model, ids, count)
    return str(found["version"]), equal, largest


def _prompts(tokenizer: Tokenizer, chat: StoredChat | None) -> list[tuple[str, list[int]]]:
    """Texts and their ids; of a chat model, questions as its template writes them."""
    if chat is None:
        return [(text, tokenizer.encode(text)) for text in PROMPTS]
    tokens = template_tokens(tokenizer)
    found = []
    for text in PROMPTS:
        asked = [Message("user", text)]
        rendered = render_chat(chat.template, asked, add_generation_prompt=True, tokens=tokens)
        found.append((rendered, encode_chat(tokenizer, chat.template, asked)))
    return found


def _ask_llama_cpp(python: str, task: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """What LLAMA_CPP writes: a line, and logits. RuntimeError with its last words if it does not."""
    command, given = [python, "-c", LLAMA_CPP], json.dumps(task).encode()
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=MOST_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"llama.cpp does not run: {error}"[:300]) from None
    if done.returncode:
        last = " ".join(done.stderr.decode(errors="replace").split()[-60:])
        raise RuntimeError(f"llama.cpp does not run, or cannot read the file (code {done.returncode}): {last}")
    line, _, numbers = done.stdout.partition(b"\n")
    answer: dict[str, Any] = json.loads(line)
    return answer, torch.frombuffer(bytearray(numbers), dtype=torch.float32)
