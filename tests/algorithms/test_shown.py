"""What objects show of themselves, and what tab completion shows of packages."""

import copy
import importlib
import inspect
import pickle
import warnings

import pytest
from torch import nn

import accelerando.algorithms
from accelerando.algorithms import Distiller, Mixer, MultiplicativeCyclicLR, NoEffectWarning, Pruner, SnapshotWriter
from accelerando.algorithms.shown import Shown

PACKAGES = ["", ".connectivity", ".pruning"]
HOSTS = {"composer": "composer", "lightning": "lightning", "transformers": "accelerate"}


def package_of(name):
    host = name.split(".")[1] if name else ""
    if host in HOSTS:
        pytest.importorskip(HOSTS[host])
    return importlib.import_module(f"accelerando.algorithms{name}")


@pytest.mark.parametrize(
    "name", [*PACKAGES, *(f".{host}" for host in HOSTS), ".composer.pruning", ".lightning.pruning"]
)
def test_public_names_alone_are_shown_and_their_objects_show_arguments(name):
    package = package_of(name)
    assert dir(package) == sorted(package.__all__)
    lazy = getattr(package, "_OF_COMPOSER", ())  # those of .composer
    for thing in (getattr(package, one) for one in package.__all__ if one not in lazy):
        if inspect.isclass(thing):
            assert thing.__repr__ is not object.__repr__, thing
            assert issubclass(thing, Shown | tuple | nn.Module | Warning) or hasattr(thing, "__dataclass_fields__"), (
                thing
            )


@pytest.mark.parametrize("host", HOSTS)
def test_of_each_host(host):
    package = package_of(f".{host}")
    assert repr(package.LabelSmoothing(smoothing=0.2)).startswith("LabelSmoothing(smoothing=0.2, ")
    pruning = repr(package.MagnitudePruning(0.1, exclude=["head*"]))
    assert pruning.startswith("MagnitudePruning(density=0.1, start=") and "exclude=['head*']" in pruning
    assert repr(package.Snapshots(["1ep", "0.5dur"])).startswith("Snapshots(at=['1ep', '0.5dur'], full=False, ")


def test_arguments_and_defaults():
    assert repr(Mixer(0.3)) == "Mixer(alpha=0.3, seed=0, interpolate_loss=False, ignore_index=-100)"
    assert repr(SnapshotWriter("snaps", at=["1ep"], batches_per_epoch=4)) == (
        "SnapshotWriter(folder='snaps', at=['1ep'], steps=None, batches_per_epoch=4, full=None, owner='SnapshotWriter')"
    )


def test_what_is_no_number_or_text_is_its_class_or_its_name():
    model = nn.Linear(2, 2)
    assert repr(Pruner(model)).startswith("Pruner(model=Linear(...), optimizers=(), include=('*',), ")
    taught = repr(Distiller([model, nn.Linear(2, 2)], loss=nn.functional.mse_loss))
    assert "teachers=[Linear(...), Linear(...)]" in taught and "loss=mse_loss" in taught and "make=Teacher" in taught


def test_copies_and_subclasses():
    mixer = Mixer(alpha=0.3)
    assert repr(copy.deepcopy(mixer)) == repr(pickle.loads(pickle.dumps(mixer))) == repr(mixer)

    class Other(Mixer):
        def __init__(self, often: bool = True):
            super().__init__(0.5)

    assert repr(Other()) == "Other(often=True)" and [*inspect.signature(Other).parameters] == ["often"]
    assert [*inspect.signature(MultiplicativeCyclicLR).parameters][:2] == ["optimizer", "warmup"]


def test_a_wrong_call_and_a_warning_are_as_they_were():
    with pytest.raises(TypeError, match="alfa"):
        Mixer(alfa=0.3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Mixer(alpha=0)
    assert told[0].category is NoEffectWarning and told[0].filename == __file__


def test_none_of_the_public_names_is_missing():
    assert all(name in dir(accelerando.algorithms) for name in ("MixUp", "Mixer", "prune_at_init"))
