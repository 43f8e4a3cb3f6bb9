"""What only the files can tell of the tasks of GLUE: the pretrained checkpoint, the tokenizer and the data."""

from __future__ import annotations

from collections.abc import Mapping

from ..config.errors import REFUSALS, ArgumentError, Source, show
from ..config.recipe import Recipe
from ..data.checks import hub_or_cache

DATA = "train_data.hugging_face_text"


def check_files(source: Source, recipes: Mapping[str, Recipe]) -> None:
    """Of each task's recipe, as it starts from the checkpoint; brings what is on the hub here once, not for each run.

    Raises:
        ConfigError: the tokenizer or the length do not fit the model, or the labels do not fit the task.
    """
    from transformers import AutoTokenizer

    from accelerando.algorithms.generators import untouched_generators

    config = None
    for task, recipe in recipes.items():
        if config is None:
            with untouched_generators():
                config = recipe.model.build().config
        arguments = recipe.config["train_data"]["hugging_face_text"]
        with recipe.source.blame(f"{DATA}.tokenizer", *REFUSALS), hub_or_cache(arguments["tokenizer"]):
            words = len(AutoTokenizer.from_pretrained(arguments["tokenizer"]))
        if words > config.vocab_size:
            hint = f"{words} words, but the pretrained model has {config.vocab_size}"
            raise recipe.source.error(f"{DATA}.tokenizer", f"{arguments['tokenizer']} has {hint}")
        if (longest := config.max_position_embeddings) < arguments.get("seq_len", 0):
            raise recipe.source.error(f"{DATA}.seq_len", f"above the pretrained model's {longest} positions")
        for part in ("train_data", "eval_data"):
            _check_labels(source, recipe, task, part)


def _check_labels(source: Source, recipe: Recipe, task: str, part: str) -> None:
    """Reads those of what is trained on or evaluated."""
    from ..data.text import HuggingFaceText, labels_of

    key, classes = f"tasks.{task}", recipe.config["model"]["bert"]["num_labels"]
    data = HuggingFaceText(**recipe.config[part]["hugging_face_text"])
    if not data.label_column:
        raise recipe.source.error(f"{DATA}.label_column", "missing; expected the column that holds the labels")
    for split in [data.split] if isinstance(data.split, str) else data.split:
        try:
            labels = labels_of(data.rows(split), data.label_column, split)
        except ArgumentError as error:
            raise source.error(key, error.message) from error
        except REFUSALS as error:
            raise source.error(key, str(error)) from error
        expected = f"whole numbers below {classes}" if classes > 1 else "fractional numbers"
        for label in labels:
            if isinstance(label, float) != (classes == 1) or (classes > 1 and label >= classes):
                raise source.error(key, f"{split} has the label {show(label)}; expected {expected}")
