"""The weights a BERT starts from: a checkpoint of our own or Hugging Face's; no part of it stays random unsaid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from accelerando.algorithms.checkpoints import read_content, some, weights_in

if TYPE_CHECKING:
    from transformers import BertConfig

# What another objective has no use for, and what it starts anew.
HEADS = ("bert.pooler.", "cls.", "classifier.")
OLD_BUFFER = "bert.embeddings.position_ids"


def find_checkpoint(pretrained: str) -> Path | None:
    """The file, if `pretrained` is one or the folder of a run; None for what only Hugging Face's loader can know."""
    path = Path(pretrained)
    if path.suffix == ".pt" or path.is_file():
        return path
    if (path / "config.json").is_file() or not any((path / name).exists() for name in ("checkpoints", "config.yaml")):
        return None
    # Composer's links to the latest one, one for each rank that has saved its own.
    if links := sorted(link for link in path.glob("checkpoints/*") if link.is_symlink() and link.exists()):
        return links[0]
    raise FileNotFoundError(f"{path} has no latest checkpoint: expected checkpoints/latest-rank0.pt")


def from_checkpoint(
    model_class: Any, file: Path, fields: Mapping[str, Any], num_labels: int, attention: str
) -> nn.Module:
    """A model of the checkpoint's own size, with its encoder, and its head where that is for the same objective.

    A classifier is always new: whatever the checkpoint was fine-tuned for is not what comes next.
    """
    from transformers import BertConfig

    content = read_content(file)
    weights = {name.removeprefix("model."): value for name, value in weights_in(content, file).items()}
    saved = BertConfig.from_dict(_saved_fields(content, file), num_labels=num_labels, **fields)
    model = model_class.from_config(forget_problem(saved), attn_implementation=attention)
    own = model.state_dict()
    if not any(name.startswith("bert.encoder.") for name in weights):
        raise ValueError(f"{file} holds no BERT: it has {', '.join(list(weights)[:3])}, ...")
    taken = {name: value for name, value in weights.items() if name in own and not name.startswith("classifier.")}
    extra = [name for name in weights if name not in own and name != OLD_BUFFER and not name.startswith(HEADS)]
    wrong = [name for name, value in taken.items() if value.shape != own[name].shape]
    check_encoder(str(file), own.keys() - taken.keys(), wrong, extra)
    model.load_state_dict(taken, strict=False)
    return model


def _saved_fields(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The BertConfig inside one of Composer's checkpoints; {} where there is none."""
    try:
        fields = content["state"]["integrations"]["huggingface"]["model"]["config"]["content"]
    except (KeyError, TypeError):
        return {}
    if fields.get("model_type") != "bert":
        raise ValueError(f"{file} holds a model of the type {fields.get('model_type')}: expected bert")
    return fields


def forget_problem(config: BertConfig) -> BertConfig:
    """Else a regression that starts from a classifier would go on with the classifier's loss."""
    config.problem_type = None
    return config


def check_encoder(name: str, missing: Iterable[str], wrong: Iterable[str], extra: Iterable[str] = ()) -> None:
    """ValueError where a part of the encoder would stay random, or where the checkpoint has more of an encoder."""
    found = {
        "lacks": [key for key in missing if not key.startswith(HEADS)],
        "has another shape of": [key for key in wrong if not key.startswith("classifier.")],
        "has, unknown to the model,": list(extra),
    }
    if problems := [f"{verb} {some(sorted(keys), most=2)}" for verb, keys in found.items() if keys]:
        raise ValueError(f"{name} does not fit the model: it {'; it '.join(problems)}")
