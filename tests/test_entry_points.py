"""llm-foundry finds each class under the name that it has in our YAMLs."""

from importlib.metadata import entry_points

import pytest
from composer.core import Algorithm
from composer.optim import ComposerScheduler

from accelerando.algorithms import composer as ours
from accelerando.recipes.config.sections import SECTIONS


@pytest.mark.parametrize(
    ("group", "section", "base"),
    [("llmfoundry_algorithms", "algorithms", Algorithm), ("llmfoundry_schedulers", "scheduler", ComposerScheduler)],
)
def test_every_class_has_one_entry_point(group, section, base):
    classes = [getattr(ours, name) for name in ours.__all__]
    found = {entry.name: entry.load() for entry in entry_points(group=group) if entry.value.startswith("accelerando.")}
    assert {*found.values()} == {thing for thing in classes if isinstance(thing, type) and issubclass(thing, base)}
    assert found == {name: SECTIONS[section].find(name) for name in found}
    assert all(name.islower() for name in found) and len(found) == len({*found.values()})
