"""Loops give the same bits in the process that compiles them and in those that find them on disk.

They need not: a function that is compiled once by itself and once inside its caller adds up in two orders, and which of
the two is called depends on whether it was compiled or loaded. So what sums is inlined (forceinline).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import hashlib
import numpy as np, torch
from zhixing.models.activations import activation
from zhixing.models.cpu_attention import attention
from zhixing.models.bag import BagTraining
from zhixing.tasks.bag import train_bag
from zhixing.tokens.ngrams import NgramSettings
from zhixing.training.softmax_rows import cross_entropy_in_place

torch.set_num_threads(2)
def tell(name, *arrays):
    print(name, hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest())

for dtype in (torch.float32, torch.bfloat16):
    torch.manual_seed(0)
    x = torch.randn(37, 502).to(dtype)
    z = x.clone()
    losses = cross_entropy_in_place(z, torch.arange(37), -100, 0.1)
    tell("loss", losses.numpy(), z.float().numpy())
    for name in ("gelu", "swiglu"):
        own = x.clone().requires_grad_()
        activation(own, name).square().sum().backward()
        tell(name, own.grad.float().numpy())
    parts = [torch.randn(2, 3, 150, 24).to(dtype).requires_grad_() for _ in range(3)]
    attention(*parts, None).square().sum().backward()
    tell("attention", *(p.grad.float().numpy() for p in parts))
texts = [(f"{w} film {v} day", (label,)) for w, label in (("good", "p"), ("bad", "n")) for v in "abcdefghijkl"]
for start in ("random", "labels"):
    for problem in ("single_label_classification", "multi_label_classification"):
        training = BagTraining(epochs=3, start=start, rates="idf", dropout=0.3)
        bag = train_bag(texts, NgramSettings(buckets=50), training, problem=problem, power=0.5, d_model=11)
        tell(f"bag {start} {problem}", bag.weights.embedding, bag.weights.head, bag.predict([t for t, _ in texts]))
"""


@pytest.mark.slow
def test_bits_do_not_depend_on_who_compiled(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "2"}
    told = [
        subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert any(tmp_path.rglob("*.nbc"))  # the first did compile
    assert told[0].splitlines() == told[1].splitlines() and told[0].count("\n") == 12
