"""What every test shares: no network, two threads, real text, and one tiny trained run.

Sockets are blocked (`--disable-socket` in pyproject.toml); a test marked `network` or `browser` may open them. With
CI=true a skipped test is a failed one: there everything a test needs must have been installed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch is first imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

if TYPE_CHECKING:
    from zhixing.run import Run

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A test that trains with other threads must not leave them to the next: two such processes wait for each other."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("network") or item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.enable_socket)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _no_skip_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _no_skip_in_ci((yield))


def _no_skip_in_ci(report: Any) -> Any:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI=true does not allow: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def english_text() -> str:
    """The English sample that ships with the package."""
    return _sample("austen")


@pytest.fixture(scope="session")
def chinese_text() -> str:
    """The Chinese sample that ships with the package."""
    return _sample("tang")


def _sample(name: str) -> str:
    from zhixing.recipe import DataSettings
    from zhixing.text.readers import read_documents

    text = "\n\n".join(read_documents(name, DataSettings()))
    assert len(text) > 100_000, f"the shipped sample {name} is too short: {len(text)} characters"
    return text


TINY = (
    "model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.max_len=64", "tokenizer.vocab_size=400",
    "train.max_steps=40", "train.warmup_steps=5", "train.per_device_train_batch_size=8", "train.eval_steps=20",
    "train.compile=false", "train.bf16=false", "train.threads=1", "eval.max_sequences=16", "eval.max_new_tokens=20",
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny_settings() -> tuple[str, ...]:
    """Settings of a model that trains in a second or two."""
    return TINY


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, english_text: str, chinese_text: str) -> Path:
    """A folder of 60 KB of text in twenty files: English in sixteen, Chinese in four."""
    folder = tmp_path_factory.mktemp("tiny_text")
    for number in range(16):
        (folder / f"english-{number}.txt").write_text(english_text[number * 3_000 :][:3_000], encoding="utf-8")
    for number in range(4):
        (folder / f"chinese-{number}.txt").write_text(chinese_text[number * 1_000 :][:1_000], encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Run:
    """A very small gpt after 40 steps on 60 KB. Read it; a test that changes its folder copies it first."""
    from zhixing.run import train

    return train(str(tiny_folder), *TINY, out=str(tmp_path_factory.mktemp("tiny") / "run"))


@pytest.fixture(scope="module")
def browser() -> Generator[Any, None, None]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield started
        started.close()
