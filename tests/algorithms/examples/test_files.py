"""Scores as files: what they tell, and whose scores are refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from accelerando.algorithms import data_digest, load_scores, save_scores

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6)


def test_a_digest_is_of_inputs_labels_and_their_order():
    digest = data_digest(TensorDataset(X, Y))
    assert digest == data_digest(DataLoader(TensorDataset(X, Y), 4)) == data_digest(TensorDataset(X.clone(), Y.clone()))
    other = X.clone()
    other[3, 1] += 1e-6
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    others = [(other, Y), (X, Y.flip(0)), (X[order], Y[order]), (X[:5], Y[:5]), (X.double(), Y), (X.view(6, 3, 1), Y)]
    digests = [data_digest(TensorDataset(*tensors)) for tensors in others]
    assert len({digest, *digests}) == 7
    rows = [*zip(X, Y.tolist(), strict=True)]
    assert data_digest(rows) == data_digest([*rows]) != data_digest(rows[::-1])


class Folder:
    def __init__(self, samples):
        self.samples = samples


def test_of_a_folder_a_digest_is_of_names_sizes_and_labels(tmp_path):
    def folder(place, sizes, labels=(0, 1)):
        files = [tmp_path / place / "cat" / f"{number}.jpeg" for number in range(len(sizes))]
        for file, size in zip(files, sizes, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x" * size)
        return data_digest(Folder([*zip(map(str, files), labels, strict=True)]))

    assert folder("here", (3, 4)) == folder("there", (3, 4))
    assert len({folder("here", (3, 4)), folder("here", (3, 5)), folder("here", (3, 4), (1, 1))}) == 3


def test_scores_come_back_as_replicates(tmp_path):
    digest, one = data_digest(TensorDataset(X, Y)), torch.rand(6)
    save_scores(tmp_path / "one.safetensors", {"el2n": one, "loss": 2 * one}, digest)
    two = torch.rand(2, 6)
    save_scores(tmp_path / "two.safetensors", {"el2n": two}, digest, network="two")
    save_scores(tmp_path / "shared.safetensors", {"one": two, "another": two}, digest)
    found = load_scores([tmp_path / "one.safetensors", tmp_path / "two.safetensors"], digest, 6, "el2n")
    assert found.shape == (3, 6) and torch.equal(found[0], one.double())
    assert torch.equal(load_scores(str(tmp_path / "two.safetensors"), digest, 6), found[1:])
    assert [file.stem for file in sorted(tmp_path.iterdir())] == ["one", "shared", "two"]


def test_what_does_not_fit_is_one_line(tmp_path):
    digest, file = data_digest(TensorDataset(X, Y)), tmp_path / "scores.safetensors"

    def refused(*words, path=file, digest=digest, size=6, name=None):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            load_scores(path, digest, size, name)
        assert all(word in str(error.value) for word in (str(path), *words)) and "\n" not in str(error.value)

    save_scores(file, {"el2n": torch.rand(6), "loss": torch.full((6,), float("nan"))}, digest)
    refused("holds the scores el2n, loss: expected the name of one, not None")
    refused("expected the name of one, not margin", name="margin")
    refused("of other data than these 6 examples", digest=data_digest(TensorDataset(X, Y.flip(0))), name="el2n")
    refused("has scores of 6 examples: expected those of the data's 7", size=7, name="el2n")
    refused("NaN", name="loss")
    for shape in ((), (0,), (0, 6), (2, 3, 6)):
        odd = tmp_path / "odd.safetensors"
        save_file({"el2n": torch.ones(shape)}, odd, {"digest": digest})
        refused(f"has scores of the shape {shape}: expected (N,) or (replicates, N)", path=odd)
    refused("is no file", path=tmp_path / "nothing.safetensors")
    torch.save({"weight": torch.rand(6)}, tmp_path / "other.pt")
    refused("does not tell of which data its scores are", path=tmp_path / "other.pt")
    (tmp_path / "broken.safetensors").write_bytes(file.read_bytes()[:40])
    refused("no readable safetensors", path=tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"save_scores: scores must be .* of the same N"):
        save_scores(file, {"a": torch.rand(3), "b": torch.rand(4)}, digest)
    with pytest.raises(ValueError, match=r"save_scores: scores must be .* got {'a': \(2, 3, 4\)}"):
        save_scores(file, {"a": torch.rand(2, 3, 4)}, digest)
    with pytest.raises(ValueError, match="data must be a data set with indices and a length, got 'generator'"):
        data_digest(row for row in X)
