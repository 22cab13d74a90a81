"""Damage a checkpoint's files at random and see that none of it goes unseen.

    PYTHONPATH=src:tests python -m reliability.corruption 10000        # prints one JSON object

Each time the newest of two checkpoints loses a file, an end, a block, or one bit; the loader must name it, set it aside
and give the older one, whole.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from reliability.crash_points import save
from zhixing.training.checkpoint import checkpoint_path, load_newest

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")


def damage(path: Path, kind: str, draw: random.Random) -> str:
    """Damage one file; returns what was done."""
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data))
    if kind == "bit":
        data[place] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "grow":
        data += draw.randbytes(draw.randrange(1, 100))
    elif kind == "block":
        end = min(place + 512, len(data))
        data[place:end] = bytes(b ^ 0xFF for b in data[place:end])
    elif kind == "remove":
        path.unlink()
        return f"{path.name} removed"
    path.write_bytes(data)
    return f"{path.name}: {kind} at byte {place}"


def corrupt(count: int, seed: int) -> dict[str, object]:
    """Damage `count` checkpoints; AssertionError names the first damage that went unseen."""
    draw = random.Random(seed)
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        for step in (5, 10):
            save(run, step)
        newest = checkpoint_path(run, 10)
        good = Path(place) / "good"
        shutil.copytree(newest, good)
        for number in range(count):
            kind = ("bit", "bit", "bit", "cut", "grow", "block", "remove")[number % 7]
            done = damage(newest / draw.choice(FILES), kind, draw)
            checkpoint = load_newest(run)
            assert checkpoint is not None and checkpoint.state.step == 5, done
            assert bool((checkpoint.model["weight"] == 5).all()), done
            assert len(checkpoint.messages) == 1 and "kept as step-00000010.bad" in checkpoint.messages[0], done
            bad = newest.with_name("step-00000010.bad")
            assert bad.is_dir() and not newest.exists(), done
            seen[kind] += 1
            shutil.rmtree(bad)
            shutil.copytree(good, newest)
        whole = load_newest(run)
        assert whole is not None and whole.state.step == 10, "the undamaged one was not taken"
    return {"damaged": count, "detected": sum(seen.values()), "kinds": dict(seen), "seed": seed}


if __name__ == "__main__":
    print(json.dumps(corrupt(int(sys.argv[1]) if len(sys.argv) > 1 else 200, seed=1)))
