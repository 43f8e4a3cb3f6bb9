"""A study of `bert_tickets` on a tiny BERT that it pretrains itself: what begins where, masks, claims, mistakes."""

import pytest
from omegaconf import OmegaConf
from studies import Watch, outcome

TASKS = ("masked_lm", "topic")
LENGTH, LEVELS, LATER, TOGETHER, PRETRAINED = 2, 2, 1, 3, 2  # batches, levels
OWN = """
study:
  bert_tickets:
    pretraining: {max_duration: 2ba}
    masked_lm: masked_lm
    tasks:
      masked_lm: {}
      topic:
        model: {bert: {objective: classification, num_labels: 12}}
        train_data: {python_docs_task: {task: topic, vocab_size: 512}}
        eval_data: {python_docs_task: {task: topic, split: test, stride: 16, vocab_size: 512}}
    ladder: {levels: 2, fraction: 0.3, include: ["*bert.encoder.*", "*bert.pooler.*"]}
    later: 1ba
    together: {all: {tasks: [topic, masked_lm], max_duration: 3ba}}
    controls: [one_shot, random]
    control_levels: [2]
    transfer_level: 2
    seeds: [1, 2]
run_name: study
max_duration: 2ba
eval_interval: 1dur
save_interval: 1dur
global_batch_size: 32
eval_batch_size: 128
model:
  bert:
    objective: masked_lm
    config: {vocab_size: 512, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}
train_data: {python_docs: {seq_len: 32, vocab_size: 512}}
eval_data: {python_docs: {split: test, seq_len: 32, vocab_size: 512}}
optimizer: {decoupled_adamw: {lr: 1.0e-2, weight_decay: 0.0}}
scheduler: {linear: {alpha_f: 0.0}}
callbacks: {"studies:Watch": {}}
"""
pytestmark = pytest.mark.usefixtures("watch")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def study(folder, **changes):
    given = OmegaConf.create(OWN)
    given.folder = str(folder)
    given.study.bert_tickets.update(changes)
    return given


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    Watch.reset()
    folder = tmp_path_factory.mktemp("whole")
    found = outcome(study(folder))
    assert not found.failures
    return folder / "study", Watch.batches, Watch.starts


def test_all_of_it(whole):
    folder, batches, starts = whole
    print(batches, [*starts])
    print((folder / "claims.md").read_text())
