"""Scores of the training examples, and which of them are forgotten, in a run of Composer's Trainer."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from composer.core import DataSpec, State, ensure_data_spec, get_precision_context
from composer.devices import Device
from composer.loggers import Logger
from torch import Tensor

from ..batches import device_of, moved
from ..examples.files import data_digest, save_scores
from ..examples.forgetting import Forgetting
from ..examples.scores import check_order, chosen_scores, score_batch, score_examples
from ..snapshots import SnapshotWriter
from ..untouched import evaluating
from ..validation import check
from .for_recipes import Folder, Supply
from .host import composer_model
from .snapshots import KeepsWeights, is_first, trained

Data = Iterable[Any] | DataSpec
Examples = Data | Callable[[Device], Data]


class LooksAtExamples(KeepsWeights):
    """The base of what looks at all training examples at moments of a run, in evaluation mode and not augmented."""

    scores: Sequence[str]

    def __init__(self, data: Examples, target_key: Any, save_folder: str | None):
        name = type(self).__name__
        check(name, "data", data is not None, "a DataLoader or DataSpec of the examples", data)
        check(name, "save_folder", "://" not in (save_folder or ""), "a local folder", save_folder)
        self.data, self.target_key = data, target_key
        self._spec: DataSpec | None = None
        super().__init__(save_folder)

    def _start(self, state: State, logger: Logger) -> None:
        """Tries the first batch: that it cannot be scored must not come up after hours."""
        writer: Any = self._writer
        spec, model, owner = self.spec(state), composer_model(state), type(self).__name__
        writer.data, device, forward = spec.dataloader, device_of(model), partial(_outputs, state, spec)
        with trained(state), evaluating(model):
            for batch in islice(spec.dataloader, 1):
                chosen = chosen_scores(owner, self.scores)
                score_batch([model], moved(batch, device), chosen, forward, self.target_key, owner)
        super()._start(state, logger)

    def scored(self, state: State) -> dict[str, Tensor]:
        """Returns scores of each example by name, `(N,)`, by the network that is trained, in the run's precision."""
        spec, model = self.spec(state), composer_model(state)
        with trained(state):
            found = score_examples(
                model,
                spec.dataloader,
                self.scores,
                forward=partial(_outputs, state, spec),
                target_key=self.target_key,
                owner=type(self).__name__,
            )
        return {name: values[0] for name, values in found.items()}

    def spec(self, state: State) -> DataSpec:
        """Returns the examples, which are built when training begins; ValueError where they are not in order."""
        if self._spec is None:
            self._spec = ensure_data_spec(self.data(state.device) if callable(self.data) else self.data)
            check_order(type(self).__name__, self._spec.dataloader)
        return self._spec


def _outputs(state: State, spec: DataSpec, model: Any, batch: Any) -> Any:
    batch = spec.microbatch_transforms(spec.batch_transforms(batch))
    with get_precision_context(state.precision, state.precision_config, fp8_autocast_enabled=False):
        return model(batch)


class ForgettingEvents(LooksAtExamples):
    """Count how often the run unlearns each example, which it had classified correctly before.

        forgetting = ForgettingEvents(DataLoader(train_set, 1000))
        Trainer(..., algorithms=[forgetting]).fit()
        forgetting.forgetting.events

    All examples are looked at in evaluation mode and not augmented where an interval ends, first one interval after the
    beginning; `forgetting` is the `Forgetting` that holds what was found, and says what counts. In the folder stands
    `forgetting.safetensors`, the scores by the last look. Of several ranks each may have a share of the data, by a
    `DistributedSampler`. Nothing of the run is changed.

    Args:
        data: a DataLoader or DataSpec of the examples in their order, not shuffled and not augmented; or a function
            from the device to one.
        interval: in ep, ba, sp, tok or dur; an end that lies within a batch is that batch's.
        target_key: where a batch holds the classes; in a mapping the default means "labels".
        save_folder: where; by default in `{run_name}/forgetting`.
    """

    supplied: ClassVar = {"data": Supply.EXAMPLES, "save_folder": Folder(name="forgetting")}
    scores = ("error",)

    def __init__(self, data: Examples, interval: str = "1ep", target_key: Any = 1, save_folder: str | None = None):
        self.interval = interval
        super().__init__(data, target_key, save_folder)

    def new_writer(self, folder: str) -> Any:
        return Forgetting(None, self.interval, file=Path(folder, "forgetting.safetensors"), owner="ForgettingEvents")

    @property
    def forgetting(self) -> Forgetting:
        writer: Any = self._writer
        return writer

    def due(self, state: State) -> Tensor:
        return self.scored(state)["error"] == 0


class ExampleScores(LooksAtExamples):
    """Score the training examples at these moments, as the network is then: how hard each one is for it.

    The files are `ba500.safetensors` and so on, by the number of updates, as those of Snapshots: `find_snapshot` knows
    them by moment. Each tells of which data it is, and holds the scores by name, as `load_scores` reads them; the data
    source `subset` takes such files, of several replicates too. One is written before any checkpoint of its moment. Of
    several ranks each may have a share of the data, by a `DistributedSampler`. Nothing of the run is changed.

    Args:
        data: as of ForgettingEvents.
        at: moments of the whole run in ep, ba, sp, tok or dur; `0ba` is before the first update, `1dur` the end.
        scores: which: el2n, error_l1, margin, loss, error.
        target_key: where a batch holds the classes; in a mapping the default means "labels".
        save_folder: where; by default in `{run_name}/scores`.
    """

    supplied: ClassVar = {"data": Supply.EXAMPLES, "save_folder": Folder(name="scores")}

    def __init__(
        self,
        data: Examples,
        at: Sequence[str],
        scores: Sequence[str] = ("el2n",),
        target_key: Any = 1,
        save_folder: str | None = None,
    ):
        self.at, self.scores = at, [*chosen_scores("ExampleScores", scores)]
        super().__init__(data, target_key, save_folder)

    def new_writer(self, folder: str) -> SnapshotWriter:
        return _ScoreWriter(folder, self.at, owner="ExampleScores")

    def due(self, state: State) -> dict[str, Tensor]:
        return self.scored(state)


class _ScoreWriter(SnapshotWriter):
    """Keeps scores in the place of weights; all ranks make them."""

    data: Any = None

    def write(self, weights: Callable[[], Any], batch: int, texts: dict[str, str]) -> None:
        scores = weights()
        if is_first():
            save_scores(self.file(batch), scores, data_digest(self.data), **texts)
