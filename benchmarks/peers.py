"""Where the peers are, and how to run one: the scripts of shared/peers/ with a Python that has their packages.

PEERS          the folder with gpt_train.py, gen.py, ... (default ../shared/peers)
PEERS_PYTHON   a Python with requirements.txt of that folder (default .venv-peers/bin/python)
PEERS_DATA     where make_text.py and make_model.py put their files (default peers-data)
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(os.environ.get("PEERS", ROOT.parent / "shared" / "peers")).resolve()
DATA = Path(os.environ.get("PEERS_DATA", ROOT / "peers-data")).resolve()
PYTHON = os.environ.get("PEERS_PYTHON", str(ROOT / ".venv-peers" / "bin" / "python"))
GPT_SIZE = {"n_layers": 6, "d_model": 384, "n_heads": 6, "max_len": 256, "vocab_size": 16384, "batch": 8}


def environment(threads: int = 2) -> dict[str, str]:
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "true",
    }
    return {**os.environ, **quiet, "PEERS_DATA": str(DATA), "OMP_NUM_THREADS": str(threads)}


def last_json(command: list[str], cwd: Path = ROOT) -> dict[str, Any]:
    """Run a command to its end; the last JSON line that it printed."""
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"{' '.join(command)} printed no result:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def peer(script: str, *arguments: str) -> dict[str, Any]:
    return last_json([PYTHON, str(PEERS / script), *arguments], cwd=PEERS)


def ours(script: str, *arguments: str) -> dict[str, Any]:
    return last_json([sys.executable, str(ROOT / "benchmarks" / script), *arguments])


def pairs(name: str, a: Any, b: Any, rounds: int) -> dict[str, Any]:
    """A B A B ...: run both in turn, print each pair, and return the ratio of each pair and the median of the ratios."""
    rows = []
    for number in range(rounds):
        first, second = a(), b()
        ratio = second["median"] / first["median"]
        rows.append(
            {
                "peer": first["median"],
                "ours": second["median"],
                "ratio": round(ratio, 2),
                "peer_mb": first.get("peak_rss_mb"),
                "ours_mb": second.get("peak_rss_mb"),
                "foreign_load": [first.get("foreign_load"), second.get("foreign_load")],
                **{k: second[k] for k in ("equal_ids",) if k in second},
            }
        )
        print(f"{name}  pair {number + 1}: {json.dumps(rows[-1])}", file=sys.stderr, flush=True)
    result = {
        "bench": name,
        "ratio": round(statistics.median(r["ratio"] for r in rows), 2),
        "pairs": rows,
        "unit": first["unit"],
    }
    print(json.dumps(result), flush=True)
    return result
