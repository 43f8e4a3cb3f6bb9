"""MDS shards: whole batches without a repeated sample, in the middle of an epoch and by several jobs at once."""

import gc
import os
from itertools import chain

import pytest
import torch
from composer.models import ComposerClassifier
from streaming import MDSWriter

from accelerando.recipes.data.image_files import StreamingImages
from accelerando.recipes.train import train
from runs import served
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
    return len(os.listdir("/proc/self/fd"))


def test_runs_that_are_over_leave_no_open_files_and_others_go_on(numbered, tmp_path):
    def labels(data):
        return [label.tolist() for _, label in data.dataloader]

    in_use = StreamingImages(str(numbered), crop_size=8, num_workers=0).build(5, False, 3, "cpu")
    expected, left = labels(in_use), []
    data = {"streaming_images": {"local": str(numbered), "crop_size": 8, "resize_size": 8, "num_workers": 0}}
    for run in range(6):
        train(
            {
                "run_name": str(run),
                "folder": str(tmp_path),
                "max_duration": "1ba",
                "global_batch_size": 5,
                "model": {"resnet_cifar": {"depth": 8, "width": 4, "num_classes": 37}},
                "optimizer": {"sgd": {"lr": 0.1}},
                "train_data": data,
                "eval_data": data,
                "device": "cpu",
            }
        )
        gc.collect()
        left.append(open_files())
    assert max(left[1:]) == min(left[1:])  # the first one also freed what the test before it had left
    assert labels(in_use) == expected


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
