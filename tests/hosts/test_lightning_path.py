"""LinearPath in Lightning: the values of a plain loop, after a kill too."""

import shutil
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from accelerando.algorithms import find_snapshot, interpolate
from accelerando.algorithms import lightning as lightnings
from light import TENSORS_ALONE, Kill, Module, Shuffled, checkpoints, loader, module_for, trainer, weights
from small import CLASSES, assert_same, examples, noisy_network

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument"),
    pytest.mark.filterwarnings("ignore:LinearPath. the path is not drawn, as matplotlib is missing"),
]


class Measured(Module):
    """Logs a metric of torchmetrics besides, as an object and in a dict."""

    def __init__(self, model: torch.nn.Module):
        super().__init__(model)
        self.right = MulticlassAccuracy(CLASSES, average="micro")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        outputs = self(batch)
        self.right.update(outputs, batch[1])
        self.log_dict({"right": self.right, "loss": F.cross_entropy(outputs, batch[1])}, batch_size=len(batch[1]))


def test_the_curves_in_lightning_are_those_of_a_plain_loop(tmp_path):
    path = lightnings.LinearPath("2ba", points=3, train=True, save_folder=str(tmp_path))
    module = Measured(noisy_network())
    run = trainer([path])
    run.fit(module, loader("images"), loader("images", 7))
    first, last = find_snapshot(tmp_path, "2ba").weights(), weights(module)
    inputs, targets = examples()
    for point, alpha in enumerate(path.result.alphas):
        for mode in ("interpolate", "recompute"):
            model = noisy_network()
            state = interpolate(first, last, alpha)
            model.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
            model.eval()
            if mode == "recompute":
                norm = model[1].train()
                norm.reset_running_stats()
                norm.momentum = None
                for batch, _ in loader("images"):
                    model(batch)
            outputs = model.eval()(inputs).detach()
            loss, right = F.cross_entropy(outputs, targets), (outputs.argmax(1) == targets).float().mean()
            for data in ("val", "train"):
                assert path.result.curves[f"{mode}/{data}/loss"][point] == pytest.approx(float(loss), abs=1e-5)
                assert path.result.curves[f"{mode}/{data}/right"][point] == pytest.approx(float(right), abs=1e-6)
    found = run.validate(module, loader("images", 7), verbose=False)[0]
    assert path.result.curves["interpolate/val/right"][-1] == found["right"]
    assert path.result.curves["interpolate/val/loss"][-1] == pytest.approx(found["loss"], abs=1e-6)
    assert (tmp_path / "path.csv").read_text().startswith("alpha,interpolate/val/")


def test_a_killed_training_finds_the_same_path_and_nothing_is_changed(tmp_path):
    def fitted(folder, *extra, own=True, **place):
        path = lightnings.LinearPath("3ba", points=3, train=True, save_folder=str(tmp_path / folder))
        module = Module(noisy_network())
        torch.manual_seed(7)
        trainer([*([path] if own else []), *extra]).fit(module, Shuffled("images"), loader("images", 7), **place)
        return path.result, weights(module), torch.get_rng_state().tolist()

    whole, plain = fitted("whole"), fitted("none", own=False)
    assert_same(whole[1], plain[1])
    assert whole[2] == plain[2]

    def killed(folder):
        path = lightnings.LinearPath("3ba", points=3, train=True, save_folder=str(tmp_path / folder))
        return trainer([path, checkpoints(tmp_path / "saved"), Kill(5)])

    def at(folder):
        path = lightnings.LinearPath("3ba", points=3, train=True, save_folder=str(tmp_path / folder))
        place = {"ckpt_path": tmp_path / "saved" / "step=5.ckpt", **TENSORS_ALONE}
        trainer([path]).fit(module_for("images"), Shuffled("images"), loader("images", 7), **place)
        return path.result

    once = lightnings.LinearPath("3ba", points=3, train=True, save_folder=str(tmp_path / "once"))
    trainer([once]).fit(module_for("images"), Shuffled("images"), loader("images", 7))
    with pytest.raises(KeyError, match="killed"):
        killed("own").fit(module_for("images"), Shuffled("images"), loader("images", 7))
    assert at("own") == once.result
    shutil.rmtree(tmp_path / "own")
    with pytest.raises(ValueError, match=r"LinearPath: start=3ba had passed at 5ba, .* are not in .*own") as error:
        at("own")
    assert "\n" not in str(error.value)


def test_what_cannot_work_in_lightning_is_told(tmp_path):
    def fit(*callbacks, **options):
        trainer([*callbacks], **options).fit(module_for("images"), loader("images"))

    with pytest.raises(ValueError, match="LinearPath has nothing to measure on: give it train=True"):
        fit(lightnings.LinearPath(save_folder=str(tmp_path)))
    own = {"points": 3, "train": True, "save_folder": str(tmp_path)}
    with pytest.raises(ValueError, match=r"LinearPath: start must be before the end .* lasts 2ep, got '8ba'"):
        fit(lightnings.LinearPath("8ba", **own))
    path, pruning = lightnings.LinearPath("0ba", **own), lightnings.MagnitudePruning(0.5, start="2ba")
    with pytest.warns(UserWarning, match="LinearPath: the start is not zero where the network is pruned"):
        fit(path, pruning)
    assert set(path.result.outside) == {*pruning.masks}
    path = lightnings.LinearPath("3ba", **own)
    fit(path, lightnings.MagnitudePruning(0.5, start="2ba"))
    assert path.result.outside == []
