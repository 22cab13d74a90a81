"""An average of classifiers: members in folders of their own, one answer, one explanation, and a resume that adds up."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import zhixing
from moods import ASKED, lay, rows
from reliability.launcher import Launcher
from zhixing.classifier import Classifier, Sentiment, compare_runs
from zhixing.cli import main
from zhixing.errors import InputError
from zhixing.explain.page import page
from zhixing.explain.terminal import terminal
from zhixing.files import verify_manifest
from zhixing.recipe import load_recipe, member_recipes, parse_recipe, recipe_names
from zhixing.training.checkpoint import list_steps

ROOT = Path(__file__).parents[1]
BAG = "rotten-tomatoes bag.buckets=1000 bag.epochs=3"
CNN = (
    "textcnn-rotten-tomatoes tokenizer.vocab_size=200 model.d_model=16 model.n_filters=8 model.max_len=16"
    " train.max_steps=40 train.eval_steps=10 train.save_steps=10 train.learning_rate=0.01"
)
COMMON = ("task.validation_fraction=0.15", "data.heldout_fraction=0.2", "train.bf16=false", "train.threads=1")


def recipe_of(folder: Path, source: Path, *members: str, more: str = "", name: str = "both") -> Path:
    """A recipe of an average, as a person writes one."""
    listed = ", ".join(json.dumps(member) for member in members)
    path = folder / f"{name}.toml"
    path.write_text(
        f"[data]\nsource = {json.dumps(str(source))}\n[task]\nkind = \"classification\"\n"
        f'[model]\nfamily = "average"\n[average]\nmembers = [{listed}]\n{more}',
        encoding="utf-8",
    )  # fmt: skip
    return path


def train(recipe: Path, out: Path, *settings: str, resume: bool = False) -> Classifier:
    return cast(Classifier, zhixing.train(str(recipe), *COMMON, *settings, out=str(out), resume=resume))


def bytes_of(run: Path) -> dict[str, str]:
    """What a run answers with, each file's SHA-256; not what it writes about times."""
    named = [
        run / "config.json",
        run / "calibration.json",
        run / "recipe.toml",
        *sorted(
            path
            for path in (run / "members").rglob("*")
            if path.is_file()
            and not {"checkpoints", "metrics.jsonl", "MANIFEST.json"} & set(path.relative_to(run).parts)
        ),
    ]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in named}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay(tmp_path_factory.mktemp("data") / "moods.jsonl", rows())


@pytest.fixture(scope="module")
def recipe(data: Path) -> Path:
    return recipe_of(data.parent, data, BAG, CNN)


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return train(recipe, tmp_path_factory.mktemp("runs") / "both")


# ---- one model ------------------------------------------------------------------------------------------------------


def test_it_learns_and_is_loaded_as_it_was(trained: Classifier, tmp_path: Path) -> None:
    scores = json.loads((trained.path / "scores.json").read_text(encoding="utf-8"))["model"]
    assert scores["accuracy"] >= 0.9
    verify_manifest(trained.path)
    moved = tmp_path / "moved"
    shutil.copytree(trained.path, moved)
    loaded = cast(Classifier, zhixing.load(moved))
    assert (loaded.labels, loaded.problem_type) == (("negative", "positive"), "single_label_classification")
    np.testing.assert_array_equal(loaded.probabilities(ASKED), trained.probabilities(ASKED))
    np.testing.assert_allclose(loaded.probabilities(ASKED).sum(axis=1), 1, atol=1e-9)
    result, found = loaded.evaluate()
    assert found.scores["accuracy"].value == scores["accuracy"] and len(result.targets) == 60
    card = loaded.show()
    assert "members/1-bag" in card and "members/2-textcnn" in card and BAG in card
    assert "average" in (moved / "report.html").read_text(encoding="utf-8")


def test_batch_equals_one_by_one(trained: Classifier) -> None:
    alone = np.concatenate([trained.probabilities([text]) for text in ASKED])
    np.testing.assert_allclose(alone, trained.probabilities(ASKED), atol=1e-6)
    assert trained([]) == [] and trained(ASKED[0]).label == "positive"
    with pytest.raises(InputError, match="empty"):
        trained(["good", " "])


def test_the_answer_is_the_weighted_mean_of_its_members(trained: Classifier, tmp_path: Path) -> None:
    shutil.copytree(trained.path, tmp_path / "run")
    (tmp_path / "run" / "MANIFEST.json").unlink()  # the change is meant
    each = [
        cast(Classifier, zhixing.load(tmp_path / "run" / "members" / name)).probabilities(ASKED)
        for name in ("1-bag", "2-textcnn")
    ]
    config, calibration = tmp_path / "run" / "config.json", tmp_path / "run" / "calibration.json"
    calibration.write_text('{"temperature": 1.0}', encoding="utf-8")
    for weights in ((1.0, 1.0), (3.0, 1.0), (1.0, 1e-9)):
        told = json.loads(config.read_text(encoding="utf-8"))
        for member, weight in zip(told["members"], weights, strict=True):
            member["weight"] = weight
        config.write_text(json.dumps(told), encoding="utf-8")
        expected = (weights[0] * each[0] + weights[1] * each[1]) / sum(weights)
        found = cast(Classifier, zhixing.load(tmp_path / "run")).probabilities(ASKED)
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert np.abs(each[0] - each[1]).max() > 0.01, "else weights would make no difference"


def test_it_has_a_temperature_of_its_own(trained: Classifier) -> None:
    """Fitted on what the members made of texts that they had not learnt from; the members keep theirs."""
    assert trained.stored.temperature != 1.0
    held = [np.load(trained.path / "members" / name / "validation.npy") for name in ("1-bag", "2-textcnn")]
    assert held[0].shape == held[1].shape and held[0].shape[1] == 2
    np.testing.assert_allclose(held[0].sum(axis=1), 1, atol=1e-9)


def test_all_that_a_classifier_can(
    trained: Classifier, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(trained.path)
    good, bad = Sentiment(trained)(ASKED[:2])
    assert bad.polarity < 0 < good.polarity
    comparison = compare_runs(run, str(trained.path / "members" / "1-bag"), str(data))
    assert comparison.n == 300
    for arguments in (["classify", run, ASKED[0], "--explain"], ["sentiment", run, ASKED[0]], ["evaluate", run],
                      ["show", run], ["compare", run, run], ["evaluate", str(trained.path / "members" / "2-textcnn"), str(data)],
                      ["explain", run, ASKED[1], "--page", str(tmp_path / "why.html")]):  # fmt: skip
        assert main(arguments) == 0, arguments
    said = capsys.readouterr()
    assert "an average of 2 models" in said.err + said.out


def test_several_labels_and_numbers(tmp_path: Path) -> None:
    made = []
    for i, row in enumerate(rows()):
        labels = [row["label"]] + ["long"] * (i % 3 == 0)
        made.append({**row, "text": row["text"] + " epic" * (i % 3 == 0), "label": labels})
    source = lay(tmp_path / "m.jsonl", made)
    learnt = "bag.epochs=20 bag.rates=idf"
    recipe = recipe_of(tmp_path, source, f"{BAG} {learnt}", f"{BAG} {learnt} bag.ngrams=1 bag.max_chars=0")
    several = train(recipe, tmp_path / "several")
    answer = cast(Classifier, zhixing.load(several.path))("the story was superb epic 7")
    assert set(answer.labels) == {"long", "positive"}
    explanation = several.explain("the story was superb epic 7", label="long", nearest=0)
    assert explanation.top_words(1)[0].word == "epic"
    numbers = train(
        recipe, tmp_path / "numbers", "task.kind=regression", "data.score_column=stars", "average.weights=[1, 3]"
    )
    loaded = cast(Classifier, zhixing.load(numbers.path))
    values = [loaded(text).score for text in ASKED[:2]]
    assert values[0] is not None and values[1] is not None and values[0] > 3 > values[1]
    each = [
        cast(Classifier, zhixing.load(f)).probabilities(ASKED) for f in sorted((numbers.path / "members").iterdir())
    ]
    np.testing.assert_allclose(loaded.probabilities(ASKED), 0.25 * each[0] + 0.75 * each[1], atol=1e-5)
    assert loaded.explain(ASKED[0], nearest=0).probability is None


def test_one_label_against_all_others(data: Path, tmp_path: Path) -> None:
    """A bag that learns by a sigmoid for each label still answers with one label, and its probabilities sum to 1."""
    made = [{**row, "label": row["label"] if i % 3 else "odd", "text": row["text"] + " odd" * (not i % 3)} for i, row in enumerate(rows())]  # fmt: skip
    source = lay(tmp_path / "three.jsonl", made)
    alone = zhixing.train("rotten-tomatoes", f"data.source={source}", *COMMON, "bag.loss=ova", "bag.buckets=1000",
                          out=str(tmp_path / "ova"))  # fmt: skip
    loaded = cast(Classifier, zhixing.load(tmp_path / "ova"))
    np.testing.assert_array_equal(loaded.probabilities(ASKED), cast(Classifier, alone).probabilities(ASKED))
    np.testing.assert_allclose(loaded.probabilities(ASKED).sum(axis=1), 1, atol=1e-9)
    assert loaded("a plot odd").label == "odd" and loaded(ASKED[0]).label == "positive"
    explanation = loaded.explain("a plot odd", nearest=0, method="integrated_gradients")
    assert explanation.complete and explanation.top_words(1)[0].word == "odd"
    assert explanation.probability == pytest.approx(loaded("a plot odd").probability, abs=1e-5)


# ---- why ------------------------------------------------------------------------------------------------------------


def test_an_explanation_is_the_weighted_sum_of_its_members(trained: Classifier) -> None:
    text = "the plot was quite dreadful and the music seemed again"
    whole = trained.explain(text)
    assert whole.label == "negative" and whole.top_words(1)[0].word == "dreadful" and whole.members == 2
    assert whole.probability == pytest.approx(trained(text).probability) and 0 < len(whole.nearest) <= 3
    parts = [
        cast(Classifier, zhixing.load(folder)).explain(text, nearest=0, label="negative", method="integrated_gradients")
        for folder in sorted((trained.path / "members").iterdir())
    ]
    for place, word in enumerate(whole.words):
        assert word.weight == pytest.approx(np.mean([part.words[place].weight for part in parts]), abs=1e-6)
    assert whole.baseline_score is not None and whole.complete
    added = sum(word.weight for word in whole.words) + whole.rest
    missed = abs(added - (whole.score - whole.baseline_score))
    assert missed == pytest.approx(whole.gap, abs=1e-6) and missed <= 0.01 * abs(whole.score - whole.baseline_score)
    score = trained.scores_of("negative")([text])
    assert whole.score == pytest.approx(float(score[0]), abs=1e-4)
    for shown in (terminal(whole, colour=False), page([whole])):
        assert "average of 2 models" in shown
    with pytest.raises(InputError, match="no rollout"):
        trained.explain(text, method="rollout")
    with pytest.raises(InputError, match="no label"):
        trained.explain(text, label="mixed")


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "settings", "message"),
    [
        ([BAG], (), "name two recipes"),
        ([BAG, " "], (), "one of them is empty"),
        ([BAG, "rotten"], (), "no recipe 'rotten'"),
        ([BAG, "austen"], (), "writes text"),
        ([BAG, "average-rotten-tomatoes"], (), "an average itself"),
        ([BAG, f"{BAG} bag.ngram=2"], (), "unknown key bag.ngram"),
        ([BAG, f"{BAG} 'bag.ngrams=2"], (), "No closing quotation"),
        ([BAG, f"{BAG} data.source=elsewhere"], (), "same texts"),
        ([BAG, f"{BAG} task.class_weights=balanced"], (), "same texts"),
        ([BAG] * 65, (), "64 at most"),
        ([BAG, CNN], ("average.weights=[1]",), "a number above 0 for each"),
        ([BAG, CNN], ("average.weights=[1, 0]",), "a number above 0 for each"),
        ([BAG, CNN], ("average.weights=[1, nan]",), "a number above 0 for each"),
        ([BAG, CNN], ("average.weights=[1, 'a']",), "a list of numbers"),
        ([BAG, CNN], ("average.weight=[1, 1]",), "did you mean weights"),
        ([BAG, CNN], ("train.max_steps=5",), "its members do"),
        ([BAG, CNN], ("bag.epochs=5",), "its members do"),
        ([BAG, CNN], ("model.d_model=5",), "its members do"),
        ([BAG, CNN], ("model.family=bag",), "has none"),
        ([BAG, CNN], ("task.kind=language",), "writes no text"),
        ([BAG, CNN], ("task.kind=regression", "data.score_column=stars"), "naive Bayes"),
    ],
)
def test_bad_settings_are_refused(
    members: list[str], settings: tuple[str, ...], message: str, data: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path, data, *members)
    with pytest.raises(InputError) as refusal:
        train(recipe, tmp_path / "run", *settings)
    assert message in str(refusal.value), refusal.value
    assert not (tmp_path / "run" / "members").exists() and not (tmp_path / "run" / "recipe.toml").exists()


def test_the_average_decides_what_all_members_share(data: Path, tmp_path: Path) -> None:
    more = "[train]\nseed = 3\n"
    path = recipe_of(tmp_path, data, BAG, f"{BAG} train.seed=2", "chinese-reviews bag.words='spaces'", more=more)
    recipe = load_recipe(str(path), ["task.class_weights=balanced", "task.on_too_long=split", "train.threads=1"])
    own = member_recipes(recipe)
    assert [member.train.seed for member in own] == [3, 5, 3] and own[2].bag.words == "spaces"
    for member in own:
        assert member.data == recipe.data and member.train.threads == 1
        assert (member.task.class_weights, member.task.on_too_long) == ("balanced", "split")
    assert parse_recipe(recipe.to_toml(), "its own text") == recipe


def test_the_averages_that_ship_have_members() -> None:
    averages = [recipe for recipe in map(load_recipe, recipe_names()) if recipe.model.family == "average"]
    assert averages
    for recipe in averages:
        assert len(member_recipes(recipe)) == len(recipe.average.members)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": []}, "2 to 64"),
        ({"members": [{"folder": "1-bag", "weight": 1.0}, {"folder": "../1-bag", "weight": 1.0}]}, "no member's folder"),
        ({"members": [{"folder": "1-bag", "weight": 1.0}, {"folder": "3-bag", "weight": 1.0}]}, "is missing"),
        ({"members": [{"folder": "1-bag", "weight": 1.0}, {"folder": "2-textcnn", "weight": 1e308}]}, "cannot be"),
        ({"members": [{"folder": "1-bag", "weight": 1.0}, {"folder": "2-textcnn", "weight": True}]}, "cannot be"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}, "other labels"),
    ],
)  # fmt: skip
def test_a_folder_that_lies_is_refused(
    change: dict[str, Any], message: str, trained: Classifier, tmp_path: Path
) -> None:
    shutil.copytree(trained.path, tmp_path / "run")
    (tmp_path / "run" / "MANIFEST.json").unlink()
    config = tmp_path / "run" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        zhixing.load(tmp_path / "run")


def test_a_run_answers_when_its_members_recipes_are_gone(data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "my own.toml"
    mine.write_text(
        '[data]\nsource = "elsewhere"\n[task]\nkind = "classification"\n[model]\nfamily = "bag"\n', encoding="utf-8"
    )
    recipe = recipe_of(tmp_path, data, BAG, f"'{mine}' bag.buckets=1000")
    run = train(recipe, tmp_path / "run")
    mine.unlink()
    loaded = cast(Classifier, zhixing.load(run.path))
    np.testing.assert_array_equal(loaded.probabilities(ASKED), run.probabilities(ASKED))
    assert loaded.evaluate()[1].n == 60
    with pytest.raises(InputError, match="there is no recipe"):
        train(recipe, tmp_path / "again")


# ---- stopped and gone on with ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def launcher() -> Any:
    with Launcher(ROOT) as found:
        yield found


@pytest.mark.slow
def test_killed_in_and_between_members_it_gives_the_same_bytes(
    launcher: Launcher, recipe: Path, tmp_path: Path
) -> None:
    begin = ["train", str(recipe), *COMMON]

    def start(run: Path, *more: str) -> None:
        launcher.start([*begin, "--out", str(run), *more], tmp_path / f"{run.name}.log")

    straight = tmp_path / "straight"
    start(straight)
    assert launcher.wait() == 0, (tmp_path / "straight.log").read_text()
    wanted = bytes_of(straight)
    members = ("1-bag", "2-textcnn")
    kinds = ("config.json", "model.safetensors", "calibration.json", "validation.npy")
    assert {f"members/{name}/{file}" for name in members for file in kinds} <= set(wanted)

    def kill_when(run: Path, reached: Any) -> None:
        end = time.monotonic() + 60
        while launcher.running() and not reached() and time.monotonic() < end:
            time.sleep(0.0005)
        launcher.send(signal.SIGKILL)
        assert launcher.wait() == -signal.SIGKILL, (tmp_path / f"{run.name}.log").read_text()

    run = tmp_path / "killed"
    first, second = (run / "members" / name for name in members)
    start(run)
    kill_when(run, lambda: (first / "recipe.toml").exists())  # in the first
    assert not (first / "MANIFEST.json").exists()
    (first / ".model.safetensors.tmp-1-0123abcd").write_bytes(b"half")  # as if it had been writing this
    start(run, "--resume")
    kill_when(run, lambda: (first / "MANIFEST.json").exists())  # between them, or as the second begins
    kept = (first / "model.safetensors").stat().st_mtime_ns
    start(run, "--resume")
    kill_when(run, lambda: max(list_steps(second), default=0) >= 10)  # in the second, which has saved something
    assert (first / "model.safetensors").stat().st_mtime_ns == kept, "what is finished is not trained again"
    start(run, "--resume")
    assert launcher.wait() == 0, (tmp_path / "killed.log").read_text()
    said = (tmp_path / "killed.log").read_text(encoding="utf-8")
    assert "finished already" in said and "resuming at step" in said
    assert bytes_of(run) == wanted
    for folder in (run, first, second):
        verify_manifest(folder)


def test_a_damaged_member_is_made_anew_and_another_recipe_refused(
    trained: Classifier, recipe: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.path, run)
    weights = run / "members" / "1-bag" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    train(recipe, run, resume=True)
    assert "damaged since" in capsys.readouterr().err
    assert bytes_of(run) == bytes_of(trained.path)
    mine = tmp_path / "own.toml"
    mine.write_text(
        '[task]\nkind = "classification"\n[model]\nfamily = "bag"\n[bag]\nbuckets = 1000\n', encoding="utf-8"
    )
    own = recipe_of(tmp_path, data, BAG, str(mine), name="own-average")
    train(own, tmp_path / "own")
    train(own, tmp_path / "own", resume=True)
    assert "nothing is trained again" in capsys.readouterr().err
    mine.write_text(mine.read_text(encoding="utf-8") + "epochs = 3\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"bag\.epochs"):
        train(own, tmp_path / "own", resume=True)
    verify_manifest(tmp_path / "own")  # it is as whole as it was
