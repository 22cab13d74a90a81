"""Small pairs that a tiny model learns in seconds: a phrase of known words, and each word's translation in its order."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = {
    "open": "打开", "close": "关闭", "save": "保存", "print": "打印", "the": "这个", "a": "一个", "red": "红色",
    "blue": "蓝色", "large": "大", "small": "小", "file": "文件", "table": "表格", "page": "页面", "cell": "单元格",
}  # fmt: skip
VERBS, ARTICLES = ("open", "close", "save", "print"), ("the", "a")
ADJECTIVES, NOUNS = ("red", "blue", "large", "small"), ("file", "table", "page", "cell")


def phrases(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Different phrases, each a group of its own by its number."""
    draw = random.Random(seed)
    made: dict[str, str] = {}
    while len(made) < count:
        words = [draw.choice(VERBS), draw.choice(ARTICLES), *draw.sample(ADJECTIVES, draw.randint(1, 3)),
                 draw.choice(NOUNS)]  # fmt: skip
        made[" ".join(words)] = "".join(WORDS[word] for word in words)
    return [{"source": s, "target": t, "group": str(n)} for n, (s, t) in enumerate(made.items())]


def lay(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
