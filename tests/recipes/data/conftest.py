"""Images in MDS shards."""

import pytest
from formats import picture
from streaming import MDSWriter


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """70 JPEGs to train on and 11 to evaluate in MDS shards, with the columns of MosaicML's converter of ImageNet."""
    root = tmp_path_factory.mktemp("shards")
    for split, count in [("train", 70), ("val", 11)]:
        columns = {"i": "int", "x": "jpeg", "y": "int"}
        with MDSWriter(out=str(root / split), columns=columns, size_limit=20_000) as writer:
            for i in range(count):
                writer.write({"i": i, "x": picture(i), "y": int(i >= 3)})
    return root


@pytest.fixture(scope="session")
def numbered(tmp_path_factory):
    """37 images, whose labels tell which one it is."""
    root = tmp_path_factory.mktemp("numbered")
    with MDSWriter(out=str(root), columns={"x": "jpeg", "y": "int"}, size_limit=5000) as writer:
        for i in range(37):
            writer.write({"x": picture(i, (8, 8)), "y": i})
    return root
