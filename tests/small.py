"""The tiny networks and data that the tests of every host share; no host is imported."""

from typing import Any

import numpy as np
import torch
from torch import nn

CLASSES = 4
SAMPLES = 30  # batches of 8 leave a last one of 6


def network(seed: int = 0) -> nn.Module:
    """Max-pool, strided 3x3 and strided 1x1; no batch norm, so that microbatches and ranks add up."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Conv2d(16, 32, 1, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def noisy_network(seed: int = 0) -> nn.Module:
    """With all that makes one training differ from another: batch norm, dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


def examples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(SAMPLES, 3, 12, 12, generator=generator),
        torch.randint(CLASSES, (SAMPLES,), generator=generator),
    )


def mixup_draws(alpha: float, samples: int, seed: int, step: int, rank: int = 0) -> tuple[float, torch.Tensor]:
    """MixUp's weight of the other examples, common to the ranks, and which these are, each rank's own."""
    z = np.random.default_rng((seed, step)).beta(alpha, alpha)
    return min(z, 1 - z), torch.from_numpy(np.random.default_rng((seed, step, rank)).permutation(samples))


WORDS, TOKENS = 40, 12


def hugging_face_lm(kind: str = "bert", seed: int = 0, **fields: Any) -> nn.Module:
    """A Hugging Face masked LM of one small layer, without dropout; `kind` is bert, roberta, distilbert, ..."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "distilbert":
        sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "dropout": 0.0, "attention_dropout": 0.0}
    elif kind != "modernbert":
        sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = AutoConfig.for_model(kind, vocab_size=WORDS, max_position_embeddings=32, pad_token_id=0, **sizes, **fields)
    return AutoModelForMaskedLM.from_config(config, attn_implementation="eager")


def sentences(samples: int = SAMPLES) -> dict[str, torch.Tensor]:
    """Every third of them padded at its end; a quarter of the tokens has a label, as many in every sentence."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, WORDS, (samples, TOKENS), generator=generator)
    chosen = torch.rand(samples, TOKENS - 4, generator=generator).argsort(1)[:, :3]
    labels = torch.full_like(ids, -100).scatter_(1, chosen, ids.gather(1, chosen))
    ids[::3, -4:] = 0
    return {"input_ids": ids.scatter(1, chosen, 1), "attention_mask": (ids != 0).long(), "labels": labels}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() != b.keys() or any(not torch.allclose(a[name], b[name], atol=1e-4) for name in a)


def timeless(state: Any) -> Any:
    """The same without the seconds, in which no two runs agree, and with numbers for tensors."""
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {name: timeless(value) for name, value in state.items() if name != "seconds"}
    return [timeless(value) for value in state] if isinstance(state, list) else state
