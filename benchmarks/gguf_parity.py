"""Greedy text of llama.cpp beside ours: 20 prompts, English and Chinese, after an export to GGUF.

    PEERS_PYTHON=PYTHON python benchmarks/gguf_parity.py [RUN ...] [--dtypes f32 bf16 q8_0] [--train-steps 140]

PEERS_PYTHON has llama-cpp-python. Without a RUN a small model of each layout (qwen3, llama, gpt2) is trained on the
shipped novels and poems first. Prints one JSON line; a row for each run and dtype:

    equal             prompts for which Llama(...)(prompt, temperature=0) writes the text that the run writes
    equal_fp16_cache  the same with llama.cpp's own cache of keys and values, which rounds them to fp16
    agreed            of all characters that the run writes, the share before the two texts part
    check             what the export itself found

Chat models are asked by messages, without blanks at their ends, which zhixing takes away. `control`: an export in which llama's q and k stay as they are; it must be refused.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import peers

LAYOUTS = ("qwen3", "llama", "gpt2")
PROMPTS = (
    "It is a truth universally acknowledged",
    "Mr. Darcy",
    "She was not",
    "“I am quite sure,” said Elizabeth,",
    "The next morning",
    "There is no",
    "A letter from her sister",
    "Mrs. Bennet was",
    "  two spaces, a tab\tand 1,234 numbers",
    "unseen wörds, naïve café & 🙂\n\n",
    "春",
    "明月",
    "床前明月光，",
    "白日依山尽，黄河入海流。",
    "送友人\n李白\n",
    "山中",
    "千里",
    "今天天气很好，我们",
    "没有见过的文字：鑫龘",
    "Mixed 中英文 text — “引号” 和标点。",
)
MOST = 64  # new tokens


def read(task: dict[str, Any]) -> None:
    """By the peers' Python: what llama.cpp writes, with a cache in fp32 and with its own."""
    llama_cpp = importlib.import_module("llama_cpp")
    found: dict[str, Any] = {"llama_cpp": llama_cpp.__version__}
    for name, cache in (("fp32", llama_cpp.GGML_TYPE_F32), ("fp16", None)):
        model = llama_cpp.Llama(
            task["file"], n_ctx=task["room"], n_gpu_layers=0, n_threads=peers_threads(), type_k=cache, type_v=cache,
            verbose=False,
        )  # fmt: skip
        how = {"max_tokens": MOST, "temperature": 0.0, "repeat_penalty": 1.0}
        texts = []
        for prompt in PROMPTS:
            model.reset()
            if task["chat"]:
                (choice,) = model.create_chat_completion([{"role": "user", "content": prompt.strip()}], **how)[
                    "choices"
                ]
                texts.append(choice["message"]["content"])
            else:
                texts.append(model(prompt, **how)["choices"][0]["text"])
        found[name] = texts
    print(json.dumps(found), flush=True)


def peers_threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "2"))


def llama_cpp_texts(file: Path, room: int, *, chat: bool) -> dict[str, Any]:
    task = {"file": str(file), "room": room, "chat": chat}
    command = [peers.PYTHON, str(Path(__file__).resolve()), "--read", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def our_texts(run: Any) -> tuple[list[str], bool]:
    """What the run writes, in the way that its users call it, and whether it replies."""
    from zhixing.dialogue import Chat
    from zhixing.text.conversations import Message

    if not isinstance(run, Chat):
        return run.generate(PROMPTS, max_new_tokens=MOST, temperature=0.0), False
    settings = run.settings(max_new_tokens=MOST, temperature=0.0, repetition_penalty=1.0)
    return [run.reply([Message("user", prompt)], settings).text for prompt in PROMPTS], True


def same_part(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def measure(path: Path, dtypes: list[str], folder: Path) -> list[dict[str, Any]]:
    import zhixing
    from zhixing.interchange.gguf_file import export_gguf

    run: Any = zhixing.load(path)
    ours, chat = our_texts(run)
    # a character that was not written to its end is U+FFFD of ours, and nothing of theirs
    ours = [text.replace("\ufffd", "") for text in ours]
    rows = []
    for dtype in dtypes:
        file = folder / f"{path.name}.{dtype}.gguf"
        report = export_gguf(path, file, dtype, python=peers.PYTHON)
        found = llama_cpp_texts(file, run.model.settings.max_len, chat=chat)
        theirs = [text.strip() if chat else text for text in found["fp32"]]
        usual = [text.strip() if chat else text for text in found["fp16"]]
        rows.append(
            {
                "run": path.name,
                "layout": run.model.settings.layout,
                "dtype": dtype,
                "mb": round(file.stat().st_size / 1e6, 2),
                "equal": sum(a == b for a, b in zip(ours, theirs, strict=True)),
                "equal_fp16_cache": sum(a == b for a, b in zip(ours, usual, strict=True)),
                "different_texts": len(set(ours)),
                "agreed": round(sum(map(same_part, ours, theirs)) / max(1, sum(map(len, ours))), 3),
                "check": report.summary(),
                "llama_cpp": found["llama_cpp"],
            }
        )
        print(json.dumps(rows[-1], ensure_ascii=False), file=sys.stderr, flush=True)
    return rows


def control(path: Path, folder: Path) -> str:
    """What an export is told whose q and k llama.cpp cannot read."""
    from zhixing.interchange import gguf_file

    kept = gguf_file.interleaved, gguf_file.halved
    gguf_file.interleaved = gguf_file.halved = lambda weight, heads: weight
    try:
        gguf_file.export_gguf(path, folder / "control.gguf", python=peers.PYTHON)
    except RuntimeError as error:
        return f"refused: {error}"
    finally:
        gguf_file.interleaved, gguf_file.halved = kept
    return "NOT refused"


def train(folder: Path, steps: int) -> list[Path]:
    """A small model of each layout, of English and Chinese; llama's has a head of its own and groups of queries."""
    import zhixing
    from zhixing.text.catalogue import dataset_files
    from zhixing.text.readers import read_texts

    texts = folder / "text"
    texts.mkdir()
    for name, characters in (("austen", 900_000), ("tang", 400_000)):
        text = "\n".join(read_texts(dataset_files(name)[0]))
        (texts / f"{name}.txt").write_text(text[:characters], encoding="utf-8")
    runs = []
    for layout in LAYOUTS:
        path = folder / layout
        zhixing.train(
            str(texts), f"model.layout={layout}", "model.d_model=128", "model.n_layers=4", "model.n_heads=4",
            f"model.n_kv_heads={4 if layout == 'gpt2' else 2}", f"model.tie_embeddings={str(layout != 'llama').lower()}",
            "model.max_len=192", "tokenizer.vocab_size=2048", f"train.max_steps={steps}",
            "train.per_device_train_batch_size=8", f"train.eval_steps={steps}", out=str(path),
        )  # fmt: skip
        runs.append(path)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--dtypes", nargs="+", default=["f32", "bf16", "q8_0"])
    parser.add_argument("--train-steps", type=int, default=140)
    parser.add_argument("--read", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(options.read)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = options.runs or train(folder, options.train_steps)
        rows = [row for run in runs for row in measure(run, options.dtypes, folder)]
        llama = next((Path(run) for run, row in zip(runs, rows[:: len(options.dtypes)], strict=True)
                      if row["layout"] == "llama"), None)  # fmt: skip
        result = {"bench": "gguf_parity", "prompts": len(PROMPTS), "new_tokens": MOST, "rows": rows}
        if llama is not None:
            result["control"] = control(llama, folder)
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
