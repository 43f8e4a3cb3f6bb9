"""The weights an encoder starts from: a checkpoint of our own or Hugging Face's; no part of it stays random unsaid."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from accelerando.algorithms.checkpoints import some, weights_in

from ..config.errors import ArgumentError
from ..config.lookup import nearest

AUTO = {
    "masked_lm": "AutoModelForMaskedLM",
    "classification": "AutoModelForSequenceClassification",
    "question_answering": "AutoModelForQuestionAnswering",
}
COMMON = ("albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta")


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


def auto_class(objective: str) -> Any:
    """That of transformers which makes a network for the objective."""
    import transformers

    return getattr(transformers, AUTO[objective])


def classes_for(objective: str) -> Any:
    """The classes of networks for the objective, by those of their configurations."""
    return auto_class(objective)._model_mapping


def fields_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the configuration inside one of Composer's checkpoints; {} where there is none."""
    try:
        return dict(content["state"]["integrations"]["huggingface"]["model"]["config"]["content"])
    except (KeyError, TypeError):
        return {}


def config_of(
    model_type: str | None, saved: Mapping[str, Any], fields: Mapping[str, Any], num_labels: int, pretrained: str | None
) -> Any:
    """transformers' configuration of this type, or of that of the `saved` fields, with `fields` in their place."""
    from transformers import CONFIG_MAPPING

    found = saved.get("model_type")
    if model_type and found and model_type != found:
        raise ArgumentError("pretrained", f"{pretrained} holds a model of the type {found}: expected {model_type}")
    kind = model_type or found
    if not kind:
        whose = f"{pretrained} does not tell" if pretrained else "missing, without pretrained weights"
        raise ArgumentError("config.model_type", f"{whose}; expected one such as {', '.join(COMMON)}")
    if kind not in CONFIG_MAPPING:
        of = "" if model_type else f"{pretrained} holds a model of the type "
        name = "config.model_type" if model_type else "pretrained"
        raise ArgumentError(name, f"{of}{kind}, which transformers does not know{nearest(kind, COMMON)}")
    kind = CONFIG_MAPPING[kind]
    known = set(inspect.signature(kind).parameters) - {"self", "kwargs"}
    for name in fields:
        if name not in known:
            raise ValueError(f"{kind.__name__} has no field {name}{nearest(name, known)}")
    # The precision in which a file is saved is not that of a training, which begins with random weights, too.
    saved = {name: value for name, value in saved.items() if name not in ("dtype", "torch_dtype")}
    config = kind.from_dict({**saved, **fields}, num_labels=num_labels)
    # Else a regression that starts from a classifier would go on with the classifier's loss.
    config.problem_type = None
    return config


def load_encoder(model: Any, content: Mapping[str, Any], file: Path) -> None:
    """Gives a network of transformers the checkpoint's encoder, and what else a masked language model has in common.

    The head of any other task is new: whatever the checkpoint was fine-tuned for is not what comes next.
    """
    weights = {name.removeprefix("model."): value for name, value in weights_in(content, file).items()}
    own, prefix = model.state_dict(), model.base_model_prefix
    if not any(_of_encoder(name, prefix) for name in weights):
        raise ValueError(f"{file} holds no {model.config.model_type}: it has {', '.join(list(weights)[:3])}, ...")
    pretrained = _names_in_masked_lm(model.config)
    wanted = [name for name in own if name.startswith(f"{prefix}.") or name in pretrained]
    taken = {name: weights[name] for name in wanted if name in weights}
    wrong = [name for name, value in taken.items() if value.shape != own[name].shape]
    check_encoder(str(file), prefix, own.keys() - taken.keys(), wrong, weights.keys() - own.keys())
    model.load_state_dict(taken, strict=False)


def check_encoder(
    name: str, prefix: str, missing: Iterable[str], wrong: Iterable[str], extra: Iterable[str] = ()
) -> None:
    """ValueError where a part of the encoder would stay random, or where the checkpoint has more of an encoder."""
    found = {"lacks": missing, "has another shape of": wrong, "has, unknown to the model,": extra}
    parts = {verb: sorted(key for key in keys if _of_encoder(key, prefix)) for verb, keys in found.items()}
    if problems := [f"{verb} {some(keys, most=2)}" for verb, keys in parts.items() if keys]:
        raise ValueError(f"{name} does not fit the model: it {'; it '.join(problems)}")


def _of_encoder(name: str, prefix: str) -> bool:
    """But for the pooler, which not every objective has, and for a buffer of older versions."""
    apart = (f"{prefix}.pooler.", f"{prefix}.embeddings.position_ids")
    return name.startswith(f"{prefix}.") and not name.startswith(apart)


def _names_in_masked_lm(config: Any) -> set[str]:
    if type(config) not in classes_for("masked_lm"):
        return set()
    with torch.device("meta"):
        return set(auto_class("masked_lm").from_config(config).state_dict())
