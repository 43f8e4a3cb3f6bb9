"""Inputs of a whole batch, which Composer moves to the device by microbatches; data that are read beside training."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from composer.core import DataSpec, State
from composer.utils import dist
from torch import Tensor
from torch.utils.data import DistributedSampler

from ..batches import tensor_in
from ..connectivity.training_path import unmoved


def whole_input(name: str, state: State, input_key: Any) -> Tensor:
    """The inputs of all of a batch, images or features, on the device, to which all of the batch is moved.

    Only at BATCH_START is it whole. Raises ValueError where there is nothing at `input_key`, and TypeError for what is
    no tensor.
    """
    state.batch = state.device.batch_to_device(state.batch)
    return tensor_in(name, state.batch, input_key, "input_key")


class Part(NamedTuple):
    """A microbatch on the device, as the model sees it, and its samples: none where other ranks have them too."""

    batch: Any
    samples: int


def parts(
    state: State,
    spec: DataSpec,
    size: Any = None,
    limit: int | None = None,
    transform: Callable[[Any], Any] = lambda batch: batch,
) -> Iterator[Part]:
    """Gives a data set in microbatches of that size, as Composer's evaluation does; the loader is afterwards as before.

    Where a sampler fills up what the ranks get, the last rank's last sample is left out.
    """
    with unmoved(spec.dataloader) as loader:
        filled = _filled(loader)
        for number, whole in enumerate(islice(loader, limit)):
            batch = spec.batch_transforms(whole)
            split = isinstance(size, int | float) and size < spec.get_num_samples_in_batch(batch)
            micro = [*spec.split_batch(batch, size)] if split else [batch]
            for part, batch in enumerate(micro):
                batch = transform(spec.microbatch_transforms(state.device.batch_to_device(batch)))
                samples = int(spec.get_num_samples_in_batch(batch))
                if filled and number + 1 == len(loader) and part + 1 == len(micro):
                    samples -= 1
                    batch = spec.split_batch(batch, samples)[0] if samples else batch
                yield Part(batch, samples)


def _filled(loader: Any) -> bool:
    """Whether this rank's last sample is another one's too."""
    samplers = (getattr(loader, name, None) for name in ("batch_sampler", "sampler"))
    for sampler in samplers:
        if isinstance(sampler, DistributedSampler) and not loader.drop_last:
            filled = sampler.total_size - len(sampler.dataset)  # type: ignore[arg-type]
            return dist.get_global_rank() >= dist.get_world_size() - filled
    return False
