"""llm-foundry's own entry trains with our algorithms from its YAML alone; it has an environment of its own."""

import importlib.util
import os
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from accelerando.algorithms import find_snapshots
from tiny import Kill, assert_same, timeless, weights

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("llmfoundry") is None, reason="llm-foundry is not installed"),
    pytest.mark.filterwarnings("ignore"),  # of its own there are many
]
EXAMPLE = Path(__file__).parents[2] / "examples" / "llm_foundry" / "mpt.yaml"
WORDS = [f"w{number}" for number in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of some words, and texts in which each word says what the next one is."""
    from streaming import MDSWriter
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llm_foundry")
    special = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<pad>"}
    vocabulary = {word: number for number, word in enumerate([*special.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "tokenizer")
    for split, texts in (("train", 64), ("val", 8)):
        with MDSWriter(out=str(folder / "data" / split), columns={"text": "str"}) as out:
            for text in range(texts):
                out.write({"text": " ".join(WORDS[(text + (1 + text % 3) * place) % 40] for place in range(64))})
    return folder


@pytest.fixture
def train(folder):
    """Trains by the example, changed by the command line or in whole sections, in a folder of that name."""
    from llmfoundry.command_utils import train_from_yaml

    def train(name, *changes, **sections):
        own = folder / name
        own.mkdir(exist_ok=True)
        Path(own, "mpt.yaml").write_text(yaml.safe_dump(yaml.safe_load(EXAMPLE.read_text()) | sections))
        here = [f"variables.data={folder}/data", f"variables.tokenizer={folder}/tokenizer"]
        if "model" not in sections:
            here.append("model.vocab_size=43")
        for loader in ("train_loader", "eval_loader"):  # no processes of their own
            options = {"num_workers": 0, "persistent_workers": "false", "prefetch_factor": "null"}
            here += [f"{loader}.{option}={value}" for option, value in options.items()]
        before = Path.cwd()
        os.chdir(own)
        try:
            run = train_from_yaml("mpt.yaml", [*here, *changes])
        finally:
            os.chdir(before)
        return SimpleNamespace(trainer=run, folder=own, **{type(each).__name__: each for each in run.state.algorithms})

    return train


def test_no_name_replaces_one_of_its_own():
    """catalogue, by which llm-foundry looks names up, prefers entry points to what is registered."""
    from llmfoundry import registry
    from llmfoundry.utils.registry_utils import catalogue

    for group, known in (("algorithms", registry.algorithms), ("schedulers", registry.schedulers)):
        names = {entry.name for entry in entry_points(group=f"llmfoundry_{group}")}
        own = {keys[-1] for keys in catalogue.REGISTRY if keys[:2] == ("llmfoundry", group)}
        assert names and own and not names & own
        assert names <= known.get_all().keys()


def test_the_example_trains_and_a_kill_changes_nothing(train):
    from llmfoundry.registry import callbacks

    whole = train("whole")
    model = whole.trainer.state.model
    masked = {name: weight for name, weight in model.named_parameters() if name in whole.MagnitudePruning.masks}
    assert len(masked) == 8  # Wqkv, out_proj, up_proj and down_proj of two layers
    left = sum(int(weight.count_nonzero()) for weight in masked.values())
    assert left / sum(weight.numel() for weight in masked.values()) == pytest.approx(0.5, abs=1e-3)

    points = whole.TradeoffCurve.points
    assert [point["batch"] for point in points] == [30, 70]
    assert points[1]["eval/LanguageCrossEntropy"] < points[0]["eval/LanguageCrossEntropy"] < 3.0  # ln 40 is 3.7

    snapshots = find_snapshots(whole.folder / "mpt" / "snapshots")
    assert [snapshot.place["batch"] for snapshot in snapshots] == [0, 30, 70]
    last = load_file(whole.folder / "mpt" / "snapshots" / "ba70.safetensors")
    assert all(torch.equal(last[name], value) for name, value in model.state_dict().items())

    callbacks.register("kill", func=Kill)
    with pytest.raises(KeyboardInterrupt):
        train("killed", "callbacks.kill.batch=45")
    resumed = train("killed")  # by llm-foundry's autoresume
    assert_same(weights(resumed.trainer), weights(whole.trainer))
    assert timeless(resumed.TradeoffCurve.points) == timeless(points)
    kept = [snapshot.place["batch"] for snapshot in find_snapshots(resumed.folder / "mpt" / "snapshots")]
    assert kept == [0, 30, 70]


def test_a_lottery_ticket_finds_the_scheduler(train):
    run = train(
        "ticket",
        max_duration="6ba",
        scheduler={"name": "cosine_with_warmup", "t_warmup": "2ba", "alpha_f": 0.1},
        algorithms={"lottery_ticket": {"levels": 2, "fraction": 0.5, "rewind_to": "2ba", "save_folder": "tickets"}},
    )
    levels = run.LotteryTicket.results
    assert [level["batch"] for level in levels] == [6, 10, 14]
    assert [level["density"] for level in levels] == pytest.approx([1, 0.5, 0.25], abs=1e-3)
    files = {path.name for path in (run.folder / "tickets").iterdir()}
    assert files == {"rewind.safetensors", "level-1.safetensors", "level-2.safetensors"}


def test_a_teacher_is_a_folder(train, folder):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    teacher = GPT2LMHeadModel(GPT2Config(vocab_size=43, n_positions=64, n_embd=16, n_layer=1, n_head=2)).eval()
    teacher.save_pretrained(folder / "teacher")

    def distance(name, algorithms):
        """The divergence of the teacher from a student on the validation data."""
        cosine = {"name": "cosine_with_warmup", "t_warmup": "2ba"}
        run = train(name, max_duration="12ba", scheduler=cosine, algorithms=algorithms)
        student = run.trainer.state.model.eval()
        batch = next(iter(run.trainer.state.evaluators[0].dataloader.dataloader))
        with torch.no_grad():
            wanted = teacher(input_ids=batch["input_ids"]).logits.log_softmax(-1)
            given = student(batch).logits[..., :43].log_softmax(-1)
        return (wanted.exp() * (wanted - given)).sum(-1).mean()

    distillation = {"teachers": str(folder / "teacher"), "base_weight": 0.0, "temperature": 1.0}
    assert distance("distilled", {"distillation": distillation}) < 0.6 * distance("plain", {})
