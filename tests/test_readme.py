"""What the pages tell a person to type is what works: every command parses, those of the READMEs run, every link leads."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import typer

from phrases import phrases
from zhixing import cli
from zhixing.entry import train_any
from zhixing.recipe import PAIR_TASKS, load_recipe, parse_recipe, recipe_names

ROOT = Path(__file__).parent.parent
READMES = ["README.md", "README.zh-CN.md"]
RUN = ["README.md", pytest.param("README.zh-CN.md", marks=pytest.mark.slow)]  # the same commands with other names
PAGES = [*READMES, "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]


# A classifier that trains in a second; what no bag has is left alone by it.
SMALL_CLASSIFIER = ("data.heldout_fraction=0.3", "bag.buckets=1000")

# A translator or summarizer that trains in a few seconds, and writes something.
SMALL_WRITER = (
    "data.heldout_fraction=0.1", "tokenizer.vocab_size=400", "model.d_model=32", "model.n_layers=1",
    "model.n_encoder_layers=1", "model.n_heads=2", "model.max_len=48", "train.max_tokens_per_batch=600", "train.optim=adamw",
    "train.learning_rate=0.01", "train.max_steps=40", "train.eval_steps=40", "train.warmup_steps=5", "train.bf16=false",
    "eval.num_beams=2",
)  # fmt: skip


def write_reviews(*names: str) -> None:
    """Labelled texts: words for and against, in sentences that differ."""
    said = {"positive": ["a delight", "well acted", "funny"], "negative": ["dull", "far too long", "a mess"]}
    rows = [
        f"The film of day {number} is {words[number % 3]} and {words[number % 2]},{label}"
        for number in range(30)
        for label, words in said.items()
    ]
    for name in names:
        Path(name).write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")


def write_pairs(*names: str) -> None:
    """Phrases and their translations, as tsv or csv."""
    for name in names:
        between = "\t" if name.endswith(".tsv") else ","
        rows = [f"{row['source']}{between}{row['target']}\n" for row in phrases(200)]
        Path(name).write_text(f"source{between}target\n" + "".join(rows), encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def shell_lines(page: str) -> list[tuple[str, list[str]]]:
    """(what is echoed into it, words after `zhixing`) of each command in the page's sh blocks."""
    found = []
    for line in "".join(blocks(page, "sh")).splitlines():
        match = re.match(r'(?:echo "(.*)" \| )?zhixing (.*)', line)
        if match:
            found.append((match[1] or "", shlex.split(match[2].split(" > ")[0], comments=True)))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page: str) -> None:
    for _, words in shell_lines(page):
        command = typer.main.get_command(cli.app)
        rest = words
        while hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[0], list(rest))  # raises what the person would see


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_is_known(page: str) -> None:
    found = 0
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        settings = re.findall(r"\b((?:data|task|bag|tokenizer|model|train|eval)\.\w+=[\w.+-]+)", line)
        family = next((f for f in ("bert", "gpt") if f"train {f}-" in line), "bert" if "task." in line else "gpt")
        told = ["task.kind=classification", f"model.family={family}"]  # what the recipe of the line says
        if "model.pointer=" in line:
            told = ["task.kind=summarization", "model.family=lstm"]
        parse_recipe("", page, [*told, *settings])  # those of a line together
        found += len(settings)
    if page.startswith(("docs/first-model", "docs/classifiers", "docs/translation")):
        assert found > 6


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    here = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        to = here / path if path else ROOT / page
        assert to.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", to.read_text(encoding="utf-8"), re.M)
            assert heading in [re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in headings], target


@pytest.mark.parametrize("page", READMES)
def test_the_table_of_recipes_is_complete(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", text, re.M)) == recipe_names()


@pytest.mark.parametrize("page", READMES)
def test_the_demo_has_its_place(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    first_screen = text[: text.index("<!-- /demo-output -->")]
    assert "<!-- demo-output -->" in first_screen
    assert first_screen.count("\n") < 60


@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_the_readme_run(
    page: str,
    tiny_folder: Path,
    tiny_settings: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One after another, as they stand, in an empty folder with some text; trainings with a very small model."""
    monkeypatch.chdir(tmp_path)
    for name in ("my_texts", "我的文本"):
        shutil.copytree(tiny_folder, name)
    for name in ("other.txt", "另一个.txt"):
        shutil.copy(tiny_folder / "english-1.txt", name)
    write_reviews("reviews.csv", "评论.csv")
    write_pairs("pairs.tsv", "双语.tsv", "summaries.csv", "摘要.csv")
    for name in ("new.txt", "新的.txt"):
        Path(name).write_text("A delight.\nA dull film.\n", encoding="utf-8")
    lines = shell_lines(page)
    assert len(lines) >= 25
    for echoed, words in lines:
        if words[0] == "train":
            given = {word.partition("=")[0] for word in words}
            writes = words[1] in recipe_names() and load_recipe(words[1]).task.kind in PAIR_TASKS
            small = SMALL_WRITER if writes else (*tiny_settings, "train.max_steps=3", "train.eval_steps=3")
            words += [s for s in small if s.partition("=")[0] not in given]
            if writes:
                words += [] if "data.source" in given else ["data.source=pairs.tsv"]
            elif words[1] in recipe_names():  # a recipe's own text is long
                recipe = load_recipe(words[1])
                classifier = recipe.task.kind == "classification"
                words += SMALL_CLASSIFIER if classifier else ()
                words += ["task.pretrain_steps=2"] if recipe.task.pretrain_steps else []
                if "data.source" not in given:
                    words += ["data.source=reviews.csv" if classifier else "data.source=my_texts"]
            if not writes:
                words = ["train.max_steps=3" if word.startswith("train.max_steps=") else word for word in words]
        if words[0] == "generate":
            words += ["--max-new-tokens", "8"]
        if words[0] == "import":  # the folder that somebody else gave us: the one we gave them
            shutil.copytree(next(p for p in Path().iterdir() if p.name in ("for_others", "给别人")), words[1])
        reading, writing = os.pipe()  # as a shell has it: some read the descriptor itself
        os.write(writing, f"{echoed}\n".encode())
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            code = cli.main(words)
        said = capsys.readouterr()
        assert code == 0, f"zhixing {shlex.join(words)}\n{said.err}"
        assert said.out.strip(), f"zhixing {shlex.join(words)} printed nothing"


@pytest.mark.parametrize("page", RUN)
def test_the_python_of_the_readme_runs(
    page: str,
    tiny_folder: Path,
    tiny_settings: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my_texts", "我的文本"):
        shutil.copytree(tiny_folder, name)
    write_reviews("reviews.csv")
    code, classifying, translating = blocks(page, "python")
    assert '"train.max_steps=500"' in code
    small = [s for s in tiny_settings if "_steps" not in s] + ["train.max_steps=3", "train.warmup_steps=0"]
    code = code.replace('"train.max_steps=500"', ", ".join(map(repr, small))).replace(
        "max_new_tokens=100", "max_new_tokens=8"
    )
    exec(compile(code, page, "exec"), {})  # noqa: S102
    assert "bits_per_byte" in capsys.readouterr().out
    assert 'load("runs/imdb")' in classifying
    train_any("imdb", "data.source=reviews.csv", *SMALL_CLASSIFIER, out="runs/imdb")
    exec(compile(classifying, page, "exec"), {})  # noqa: S102
    assert "Prediction(label='" in capsys.readouterr().out
    write_pairs("pairs.tsv")
    assert 'load("runs/pairs")' in translating
    train_any("en-zh-small", "data.source=pairs.tsv", *SMALL_WRITER, out="runs/pairs")
    exec(compile(translating, page, "exec"), {})  # noqa: S102
    assert len(capsys.readouterr().out.strip("\n").split("\n")) >= 4
