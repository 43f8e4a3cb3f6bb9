"""MDS shards: whole batches without a repeated sample, in the middle of an epoch and by several jobs at once."""

import gc
import os
import time
from itertools import chain

import pytest
import torch
from composer.models import ComposerClassifier
from formats import picture
from streaming import MDSWriter

from accelerando.recipes.data.image_files import StreamingImages
from accelerando.recipes.train import train
from runs import measured, served
from tiny import launch


def labels_of_a_run(shards, folder, resume=None):
    """Of every batch of two epochs."""
    model = ComposerClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 37)), num_classes=37)
    data = StreamingImages(str(shards), crop_size=8, num_workers=0).build(5, True, 3, "cpu")
    return [labels.tolist() for _, labels in served(model, data, folder, "2ep", resume=resume)]


# Where nothing is left of the epoch that a run goes on with, Composer and its metrics say so.
@pytest.mark.filterwarnings("ignore:No batches were trained:UserWarning", "ignore:The ``compute`` method:UserWarning")
def test_shards_make_epochs_of_whole_batches_and_go_on_after_any_of_them(numbered, tmp_path):
    batches = labels_of_a_run(numbered, tmp_path / "whole")
    epochs = [list(chain(*batches[:7])), list(chain(*batches[7:]))]
    assert len(batches) == 14 and all(len(set(epoch)) == len(epoch) == 35 for epoch in epochs)
    assert epochs[0] != epochs[1] and len({*epochs[0], *epochs[1]}) > 35
    for done in (2, 6, 7, 8, 13):
        rest = labels_of_a_run(numbered, tmp_path / str(done), tmp_path / "whole" / f"{done}.pt")
        assert rest == batches[done:]


def open_files():
    time.sleep(0.1)  # Streaming's threads look each 7 ms whether they are to end
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """150 images, more than Streaming reads ahead."""
    root = tmp_path_factory.mktemp("many")
    with MDSWriter(out=str(root), columns={"x": "jpeg", "y": "int"}) as writer:
        for i in range(150):
            writer.write({"x": picture(i, (8, 8)), "y": i % 37})
    return root


def run_on(shards, folder, **changes):
    data = {"streaming_images": {"local": str(shards), "crop_size": 8, "resize_size": 8, "num_workers": 0}}
    given = {
        "run_name": "run",
        "folder": str(folder),
        "max_duration": "2ba",
        "global_batch_size": 5,
        "model": {"resnet_cifar": {"depth": 8, "width": 4, "num_classes": 37}},
        "optimizer": {"sgd": {"lr": 0.1}},
        "train_data": data,
        "eval_data": data,
        "eval_subset_num_batches": 2,
        "device": "cpu",
    }
    return train(given | changes)


def labels(data):
    return [label.tolist() for _, label in data.dataloader]


def test_runs_that_are_over_leave_no_open_files_and_others_go_on(many, tmp_path):
    in_use = StreamingImages(str(many), crop_size=8, num_workers=0).build(5, False, 3, "cpu")
    expected, left = labels(in_use), []
    for run in range(5):
        run_on(many, tmp_path, run_name=str(run))
        left.append(open_files())
    assert max(left[1:]) == min(left[1:])  # the first one also freed what the test before it had left
    assert labels(in_use) == expected


def test_a_run_that_had_nothing_left_to_do_leaves_no_place_to_go_on_from(many, tmp_path):
    """It was killed between its last checkpoint and its results."""
    whole = run_on(many, tmp_path / "whole", run_name="next", max_duration="9ba")
    in_use = StreamingImages(str(many), crop_size=8, num_workers=0).build(5, False, 3, "cpu")
    run_on(many, tmp_path)
    (tmp_path / "run/results.json").unlink()
    run_on(many, tmp_path)
    assert measured(run_on(many, tmp_path, run_name="next", max_duration="9ba")) == measured(whole)
    assert len(labels(in_use)) == 30


def test_a_run_that_goes_on_opens_no_file_for_each_checkpoint(many, tmp_path):
    run_on(many, tmp_path)
    data = StreamingImages(str(many), crop_size=8, num_workers=0).build(5, True, 3, "cpu").dataloader.dataset
    data.load_state_dict(data.state_dict(10, True))
    before = open_files()
    states = [data.state_dict(10, True) for _ in range(5)]
    assert open_files() == before and all(state == states[0] for state in states)


def test_shards_that_cannot_be_opened_leave_no_open_files(many, tmp_path):
    def reused():
        return StreamingImages(str(tmp_path), remote=str(many), crop_size=8, num_workers=0).build(5, True, 3, "cpu")

    first, left = reused(), []
    for _ in range(4):
        with pytest.raises(ValueError, match="Reused local directory"):
            reused()
        left.append(open_files())
    assert left[1] == left[2] == left[3] and first.dataloader


JOBS_AT_ONCE = """
import os, sys
from accelerando.recipes.data.image_files import StreamingImages

source = StreamingImages(sys.argv[1], split="val", crop_size=8, num_workers=0)
start, go = os.pipe()
jobs = []
for _ in range(4):
    if not (job := os.fork()):
        os.close(go)
        os.read(start, 1)  # ends for all of them when the parent closes the other end
        for _ in range(20):
            source.build(4, False, 0, "cpu")
        sys.exit()
    jobs.append(job)
os.close(go)
sys.exit(any([os.waitpid(job, 0)[1] for job in jobs]))
"""


@pytest.mark.programs
def test_jobs_on_one_machine_do_not_take_the_same_shared_memory(shards, tmp_path):
    (tmp_path / "jobs.py").write_text(JOBS_AT_ONCE)
    done = launch(1, tmp_path / "jobs.py", shards)
    assert done.returncode == 0, done.stderr


def test_shards_of_something_else_are_refused(tmp_path):
    with MDSWriter(out=str(tmp_path), columns={"text": "str"}) as writer:
        writer.write({"text": "no image"})
    with pytest.raises(ValueError, match=r"has the columns \['text'\]: expected \['x', 'y'\]"):
        StreamingImages(str(tmp_path)).check()
    (tmp_path / "index.json").write_text((tmp_path / "index.json").read_text()[:40])
    with pytest.raises(ValueError, match="is not the index of MDS shards"):
        StreamingImages(str(tmp_path)).check()
