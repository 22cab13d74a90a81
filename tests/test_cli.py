"""The command line, through its real entry: results on stdout, everything else on stderr, and the exit codes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zhixing import cli

if TYPE_CHECKING:
    from zhixing.run import Run

PROMPT = "It was a"
SHORT = ("--max-new-tokens", "12")


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`zhixing ARGUMENTS` in this process; `stdin` are the bytes it can read."""

    def run(*arguments: str, stdin: bytes = b"") -> Answer:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        code = cli.main(arguments)
        return Answer(code, *capsys.readouterr())

    return run


def shell(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "zhixing", *arguments]


# ---- the outside ----------------------------------------------------------------------------------------------------

COMMANDS = ["train", "generate", "evaluate", "show", "import", "export", "doctor", "demo", "recipes", "data list", "data show",
            "data fetch", "tokenizer train", "tokenizer report"]  # fmt: skip


def test_help_names_every_command(command: Command) -> None:
    answer = command("--help")
    assert answer.code == 0
    assert all(name.split()[0] in answer.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(command: Command, name: str) -> None:
    answer = command(*name.split(), "--help")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"Usage: zhixing {name}")


def test_version(command: Command) -> None:
    from zhixing import __version__

    assert command("--version").out == f"zhixing {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Usage: zhixing"),
        (["trian"], "trian"),
        (["train"], "RECIPE_OR_FOLDER"),
        (["train", "x", "--oot", "y"], "--oot"),
        (["generate", "run"], "PROMPT"),
        (["generate", "run", "x", "--top-k", "many"], "--top-k"),
        (["generate", "run", "x", "y", "--stream"], "--stream takes one prompt"),
        (["generate", "run", "x", "--stream", "--n", "2"], "--stream takes one prompt"),
        (["data"], "Usage: zhixing data"),
    ],
)
def test_wrong_use_is_said_and_leaves_with_2(command: Command, arguments: list[str], says: str) -> None:
    answer = command(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err
    assert "Traceback" not in answer.err


# ---- what leaves how ------------------------------------------------------------------------------------------------


def test_a_bug_says_so_with_its_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("our mistake")

    monkeypatch.setattr("zhixing.recipe.recipe_names", broken)
    answer = command("recipes")
    assert (answer.code, answer.out) == (1, "")
    assert "Traceback" in answer.err
    assert "ZeroDivisionError: our mistake" in answer.err
    assert "this is a bug in zhixing" in answer.err


def test_a_missing_file_that_nobody_looked_for_is_a_bug(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zhixing.recipe.recipe_names", lambda: open("/nonexistent"))  # noqa: SIM115
    assert command("recipes").code == 1


def test_what_the_machine_refuses_can_be_mended(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zhixing.recipe.recipe_names", lambda: (tmp_path / ("x" * 300)).read_text())
    answer = command("recipes")
    assert answer.code == 2
    assert "xxx" in answer.err
    assert "mend: take a shorter path" in answer.err
    assert "Traceback" not in answer.err


def test_interrupted(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("zhixing.recipe.recipe_names", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits an ignored SIGINT
    try:
        assert command("recipes").code == 130
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_colour_where_no_terminal_is(command: Command) -> None:
    assert "\033" not in command("recipes", "nothing-of-this-name").err


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("1", False)])
def test_colour_only_on_a_terminal_without_no_color(no_color: str | None, coloured: bool) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"}
    if no_color:
        environment["NO_COLOR"] = no_color
    ours, theirs = os.openpty()
    process = subprocess.Popen(shell("recipes", "nothing"), stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while chunk := _read(ours):
        seen += chunk
    os.close(ours)
    assert process.wait() == 2
    assert b"there is no recipe" in seen
    assert (b"\033[" in seen) == coloured


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b""


def test_a_reader_that_leaves_is_no_error() -> None:
    """`zhixing recipes austen | head -0`: quiet, whenever the reader leaves."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(shell("recipes", "austen"), stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (process.returncode, process.stderr) == (141, "")


def test_a_terminal_that_knows_no_chinese_still_shows_the_rest() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    process = subprocess.run(shell("--help"), env=environment, capture_output=True)
    assert process.returncode == 0
    assert b"Train a model on text" in process.stdout


# ---- recipes, data, doctor, tokenizers ------------------------------------------------------------------------------


def test_recipes_are_listed_and_printed(command: Command, tmp_path: Path) -> None:
    from zhixing.recipe import load_recipe, recipe_names

    listed = command("recipes").out.splitlines()
    assert [line.split()[0] for line in listed] == recipe_names()
    assert all(len(line.split()) > 2 for line in listed), "each with a few words on what it is"
    for name in recipe_names():
        mine = tmp_path / f"{name}-mine.toml"
        mine.write_text(command("recipes", name).out, encoding="utf-8")
        assert load_recipe(str(mine)) == load_recipe(name)


def test_data_is_listed_and_shown_without_a_network(command: Command) -> None:
    listed = command("data", "list")
    assert listed.code == 0
    for name in ("austen", "tang"):
        assert name in listed.out
        shown = command("data", "show", name)
        assert shown.code == 0
        assert "licen" in shown.out.lower()


def test_shipped_data_is_fetched_without_a_network(command: Command) -> None:
    answer = command("data", "fetch", "tang")
    assert answer.code == 0
    assert all(Path(line).exists() for line in answer.out.splitlines())


def test_doctor(command: Command) -> None:
    answer = command("doctor")
    assert answer.code == 0
    assert "torch" in answer.out
    assert "python" in answer.out.lower()


def test_tokenizer_trained_then_reported(command: Command, tiny_folder: Path, tmp_path: Path) -> None:
    from zhixing.tokens.tokenizer import Tokenizer

    out = tmp_path / "tokenizer"
    made = command("tokenizer", "train", str(tiny_folder), "--out", str(out), "--vocab-size", "500")
    assert (made.code, made.out) == (0, f"{out}\n")
    assert Tokenizer.load(out).vocab_size == 500
    report = command("tokenizer", "report", str(out), str(tiny_folder))
    assert report.code == 0
    assert "bytes" in report.out
    assert "Chinese" in report.out


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_train_prints_the_run_alone_on_stdout(
    command: Command, tiny_folder: Path, tiny_settings: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    answer = command(
        "train", str(tiny_folder), *tiny_settings, "train.max_steps=4", "train.eval_steps=2", "--out", str(out)
    )
    assert (answer.code, answer.out) == (0, f"{out}\n"), answer.err
    assert (out / "report.html").is_file()
    assert "parameters" in answer.err


def test_generate_prints_what_comes_after_the_prompt(command: Command, tiny_run: Run) -> None:
    answer = command("generate", str(tiny_run.path), PROMPT, *SHORT, "--temperature", "0")
    assert answer.code == 0
    assert answer.out == tiny_run.generate(PROMPT, max_new_tokens=12, temperature=0.0) + "\n"


def test_streamed_and_whole_are_the_same(command: Command, tiny_run: Run) -> None:
    options = [str(tiny_run.path), PROMPT, *SHORT, "--seed", "3", "--top-k", "20", "--repetition-penalty", "1.1"]
    assert command("generate", *options, "--stream").out == command("generate", *options).out


@pytest.mark.parametrize("line_end", [b"", b"\n", b"\r\n"])
def test_a_prompt_from_stdin(command: Command, tiny_run: Run, line_end: bytes) -> None:
    options = [*SHORT, "--seed", "1"]
    expected = command("generate", str(tiny_run.path), "春眠不觉晓", *options).out
    assert (
        command("generate", str(tiny_run.path), "-", *options, stdin="春眠不觉晓".encode() + line_end).out == expected
    )


def test_the_same_seed_writes_the_same(command: Command, tiny_run: Run) -> None:
    options = ["generate", str(tiny_run.path), PROMPT, "--max-new-tokens", "30", "--temperature", "1"]
    first, again, other = (command(*options, "--seed", seed).out for seed in ("1", "1", "2"))
    assert first == again != other


def test_several_prompts_and_continuations(command: Command, tiny_run: Run) -> None:
    answer = command("generate", str(tiny_run.path), "She", "They", *SHORT, "--n", "2", "--seed", "1", "--json")
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [row["prompt"] for row in rows] == ["She", "She", "They", "They"]
    assert all(row["finish_reason"] in ("stop", "length") for row in rows)
    plain = command("generate", str(tiny_run.path), "She", "They", *SHORT, "--n", "2", "--seed", "1")
    assert plain.out == "".join(row["text"] + "\n" for row in rows)
    assert plain.err.count("---") == 4


def test_log_probabilities(command: Command, tiny_run: Run) -> None:
    answer = command("generate", str(tiny_run.path), PROMPT, *SHORT, "--temperature", "0", "--logprobs", "2")
    row = json.loads(answer.out)
    assert len(row["logprobs"]) == len(row["ids"]) > 0
    for token, logprob, top in zip(row["ids"], row["logprobs"], row["top_logprobs"], strict=True):
        assert top[0][0] == token, "greedy takes the likeliest"
        assert top[0][1] == pytest.approx(logprob, abs=1e-5)
        assert logprob <= 0


def test_beams(command: Command, tiny_run: Run) -> None:
    answer = command("generate", str(tiny_run.path), PROMPT, *SHORT, "--num-beams", "3", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["score"] < 0


def test_stop_strings_end_the_text(command: Command, tiny_run: Run) -> None:
    options = ["generate", str(tiny_run.path), PROMPT, "--max-new-tokens", "60", "--temperature", "0"]
    whole = command(*options).out
    stop = whole[4:6]
    assert command(*options, "--stop", stop).out == whole[: whole.index(stop)] + "\n"


def test_evaluate(command: Command, tiny_run: Run, tmp_path: Path, english_text: str) -> None:
    held = command("evaluate", str(tiny_run.path), "--json")
    scores = json.loads(held.out)
    assert 0 < scores["bits_per_byte"] < 8
    assert scores["low"] <= scores["bits_per_byte"] <= scores["high"]
    other = tmp_path / "other.txt"
    other.write_text(english_text[200_000:210_000], encoding="utf-8")
    shown = command("evaluate", str(tiny_run.path), str(other))
    assert [line.split("  ")[0] for line in shown.out.splitlines()] == [
        "loss",
        "perplexity",
        "bits per byte",
        "accuracy",
    ]
    assert "tokens" in shown.err


def test_a_resume_that_is_refused_changes_nothing(command: Command, tiny_run: Run, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run.path, tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = command("train", str(run / "recipe.toml"), "--resume", "train.max_steps=999", "--out", str(run))
    assert done.code == 2 and "begun with" in done.err
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "run.lock"}
    assert after == {path: data for path, data in before.items() if path.name != "run.lock"}


def test_show(command: Command, tiny_run: Run) -> None:
    answer = command("show", str(tiny_run.path))
    assert answer.code == 0
    assert "bits" in answer.out


def test_exported_and_imported_it_writes_the_same(command: Command, tiny_run: Run, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    out = command("export", str(tiny_run.path), str(there), "--to", "transformers", "--max-shard-size", "40kB")
    assert (out.code, out.out) == (0, f"{there}\n"), out.err
    assert (there / "model.safetensors.index.json").is_file()
    assert command("import", str(there), str(back)).out == f"{back}\n"
    texts = [command("generate", str(run), PROMPT, *SHORT, "--temperature", "0").out for run in (tiny_run.path, back)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("second", [False, True])
def test_a_signal_ends_a_training_that_can_go_on(
    tiny_folder: Path, tiny_settings: tuple[str, ...], tmp_path: Path, second: bool
) -> None:
    out = tmp_path / "run"
    options = [
        str(tiny_folder),
        *tiny_settings,
        "train.max_steps=100000",
        "train.save_steps=50000",
        "train.eval_steps=50000",
    ]
    process = subprocess.Popen(
        shell("train", *options, "--out", str(out)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 200  # the machine may be busy with other work
        while not (out / "metrics.jsonl").is_file() or not (out / "metrics.jsonl").read_text().count("\n") > 1:
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        if second:
            process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=200)
    finally:
        process.kill()
    assert stdout == b""
    assert b"Traceback" not in stderr, stderr.decode()
    if second:  # it may still have finished its step and saved, but never as if nothing had happened
        assert process.returncode != 0
        return
    assert process.returncode == 130, stderr.decode()
    assert b"--resume" in stderr
    steps = sorted(p.name for p in (out / "checkpoints").iterdir() if p.name.startswith("step-"))
    assert steps, "the step it was at is saved"
