"""`zhixing.train` and `zhixing.load`, whatever a recipe or a folder is of: a language model or a classifier."""

from __future__ import annotations

from pathlib import Path

from zhixing.classifier import Classifier, load_classifier, train_classifier
from zhixing.interchange.classifier_directory import is_classifier
from zhixing.run import Run, asked_recipe, load, started, train


def train_any(source: str, *overrides: str, out: str | None = None, resume: bool = False) -> Run | Classifier:
    """Train what `source` says: a recipe's name or file, or a file or folder of text (a language model).

    Overrides are ``table.key=value``; task.kind=classification makes a classifier of labelled texts. `out` is the
    folder to make (runs/NAME if not given); with `resume` the run in it goes on. InputError says what to mend.
    """
    recipe = asked_recipe(source, list(overrides))
    if recipe.task.kind == "language":
        return train(source, *overrides, out=out, resume=resume)
    with started(source, out, resume) as (run_dir, parallel):
        return train_classifier(recipe, run_dir, resume, parallel)


def load_any(path: str | Path) -> Run | Classifier:
    """A trained run of either kind, or a model folder of transformers in a layout we know."""
    return load_classifier(path) if is_classifier(Path(path)) else load(path)
