"""GLUE from its own files to the average: metrics, starts, kill and resume, mistakes."""

import shutil

import datasets
import numpy as np
import pytest
import torch
from composer import Callback
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from omegaconf import OmegaConf
from scipy import stats
from sklearn import metrics as plain
from studies import outcome, table, without_seconds
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from accelerando.algorithms.checkpoints import read_weights
from accelerando.recipes.config.errors import ConfigError
from accelerando.recipes.config.loading import load
from accelerando.recipes.studies.glue_scores import averages
from accelerando.recipes.studies.plan import plan
from accelerando.recipes.studies.table import Row
from accelerando.recipes.train import train

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "log", "not", "very", "happy", "sad"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TINY = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TINY |= {"max_position_embeddings": 16, "initializer_range": 0.3}  # at BERT's own 0.02 so small a one sees no words
TASKS = load("bert/glue.yaml")[0].study.glue.tasks  # the columns are GLUE's own
SMALL = ("mnli", "cola", "rte")


class Watch(Callback):
    """Counts the batches of all runs, keeps what each began with, and may kill the process at one of the batches."""

    batches = 0
    kill_at = -1
    first: dict[str, dict[str, torch.Tensor]]
    problems: dict[str, str]

    def fit_start(self, state, logger):
        task = state.run_name.rpartition("/")[2]
        Watch.first[task] = {name: value.clone() for name, value in state.model.model.state_dict().items()}

    def batch_end(self, state, logger):
        Watch.problems[state.run_name.rpartition("/")[2]] = state.model.config.problem_type
        Watch.batches += 1
        if Watch.batches == Watch.kill_at:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def watch():
    Watch.batches, Watch.kill_at, Watch.first, Watch.problems = 0, -1, {}, {}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tokenizer, a pretraining run of ours, and GLUE as its repository on the hub has it."""
    root = tmp_path_factory.mktemp("glue")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        patch.setenv("HF_DATASETS_CACHE", str(root / "cache"))
        datasets.disable_progress_bars()
        (root / "vocab.txt").write_text("\n".join(VOCABULARY))
        BertTokenizerFast(str(root / "vocab.txt")).save_pretrained(root / "tokenizer")
        draw = np.random.default_rng(0)
        for task, given in TASKS.items():
            for split, rows in [
                ("train", 26),
                ("test", 4),
                *((split, 21) for split in given.get("splits", ["validation"])),
            ]:
                write_split(root / "data" / task, task, given, split, rows, draw)
        text = Dataset.from_dict({"text": [" ".join(draw.choice(WORDS, 50)) for _ in range(20)]})
        DatasetDict(train=text).save_to_disk(root / "text")
        train(pretraining(root))
        yield root
        datasets.enable_progress_bars()


def write_split(folder, task, given, split, rows, draw):
    columns = {name: [" ".join(draw.choice(WORDS, draw.integers(2, 7))) for _ in range(rows)] for name in given.columns}
    first = np.array([WORDS.index(text.split()[0]) for text in columns[given.columns[0]]])
    labels = np.float32(first / 2 + draw.random(rows)) if given.labels == 1 else first * given.labels // len(WORDS)
    kind = Value("float32") if given.labels == 1 else ClassLabel(given.labels)
    features = Features({**dict.fromkeys(columns, Value("string")), "label": kind, "idx": Value("int32")})
    labels = [-1] * rows if split == "test" else labels.tolist()
    data = Dataset.from_dict({**columns, "label": labels, "idx": list(range(rows))}, features=features)
    folder.mkdir(parents=True, exist_ok=True)
    data.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def pretraining(root):
    source = {"name": str(root / "text"), "tokenizer": str(root / "tokenizer"), "seq_len": 16}
    return {
        "run_name": "pretrained",
        "folder": str(root),
        "max_duration": "4ba",
        "global_batch_size": 16,
        "model": {"bert": {"config": TINY}},
        "train_data": {"hugging_face_text": source},
        "optimizer": {"decoupled_adamw": {"lr": 0.01}},
        "device": "cpu",
    }


def settings(files, folder, *tasks, seeds=(1,), **changes):
    """The shipped file on the small data; without `tasks` all of them."""
    config, _ = load("bert/glue.yaml")
    given = config.study.glue.tasks
    for task in given:
        given[task].update(global_batch_size=8, max_duration="2ep", precision="fp32")
        given[task].optimizer.decoupled_adamw.lr = 0.01
    # Two that learn, in little time, whose metrics would be 0 where one class is predicted.
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for task in ("cola", "qqp"):
        given[task].update(max_duration="30ep", eval_interval="15ep", model={"bert": {"config": still}})
        given[task].optimizer.decoupled_adamw.lr = 0.003
    config.study.glue = {"seeds": list(seeds), "tasks": {task: given[task] for task in tasks or given}}
    config.update(folder=str(folder), run_name="study", executor=None, precision="fp32", device="cpu", loggers=None)
    config.variables.update(checkpoint=str(files / "pretrained"), tokenizer=str(files / "tokenizer"))
    config.variables.data = str(files / "data")
    config.train_data.hugging_face_text.seq_len = 16
    config.scheduler.linear_with_warmup.t_warmup = "1ba"  # 6 % of six batches is none
    config.callbacks = {f"{__name__}:Watch": {}}
    return OmegaConf.merge(config, changes)


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """All eight tasks, trained once; what `Watch` saw, the rows and the folder."""
    Watch.batches, Watch.kill_at, Watch.first, Watch.problems = 0, -1, {}, {}
    folder = tmp_path_factory.mktemp("whole")
    rows = outcome(settings(files, folder)).rows
    return rows, folder / "study", dict(Watch.first), dict(Watch.problems)


def predictions(files, folder, task, split):
    """Of plain transformers with the weights of the run's last checkpoint, and the labels."""
    config = BertConfig(**TINY, num_labels=TASKS[task].labels)
    model = BertForSequenceClassification(config).eval()
    weights = read_weights(next((folder / f"{task}-seed1" / "checkpoints").glob("latest-rank0.pt")))
    model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    rows = datasets.load_dataset("parquet", data_files=str(files / "data" / task / f"{split}-*.parquet"))["train"]
    tokenizer = BertTokenizerFast(str(files / "vocab.txt"))
    texts = [rows[name][:] for name in TASKS[task].columns]
    with torch.no_grad():
        batch = tokenizer(*texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
        logits = model(**batch).logits
    return (logits[:, 0] if TASKS[task].labels == 1 else logits.argmax(1)).numpy(), np.array(rows["label"][:])


PLAIN = {
    "accuracy": lambda x, y: plain.accuracy_score(y, x),
    "f1": lambda x, y: plain.f1_score(y, x, zero_division=0),
    "matthews": lambda x, y: plain.matthews_corrcoef(y, x),
    "pearson": lambda x, y: stats.pearsonr(x, y).statistic,
    "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
}
GLUES = {
    "cola": ["matthews"],
    "sst2": ["accuracy"],
    "mrpc": ["accuracy", "f1"],
    "qqp": ["accuracy", "f1"],
    "stsb": ["pearson", "spearman"],
    "mnli": ["accuracy"],
    "qnli": ["accuracy"],
    "rte": ["accuracy"],
}


@pytest.mark.parametrize("task", GLUES)
def test_each_tasks_metrics(task, whole, files):
    rows, folder, *_ = whole
    splits = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    mine = {(row["split"], name): v for row in rows if row["task"] == task for name, v in row.metrics.items()}
    assert list(mine) == [(split, metric) for split in splits for metric in GLUES[task]]
    for (split, metric), value in mine.items():
        predicted, labels = predictions(files, folder, task, split)
        assert len(labels) == 21
        assert value == pytest.approx(PLAIN[metric](predicted, labels), abs=1e-5)


def test_the_metrics_are_of_different_predictions(whole, files):
    for task in ("cola", "qqp", "stsb"):
        predicted, _ = predictions(files, whole[1], task, "validation")
        assert len(set(predicted.tolist())) > 1


def test_the_table_and_the_files(whole, capsys, files):
    rows, folder, *_ = whole
    assert [*map(repr, table(folder))] == [*map(repr, rows)]
    values = {task: [100 * v for row in rows if row["task"] == task for v in row.metrics.values()] for task in GLUES}
    *tasks, average = averages(rows)
    assert {row["task"]: row["score"] for row in tasks} == pytest.approx({t: np.mean(v) for t, v in values.items()})
    assert average["task"] == "average" and average["seeds"] == 1
    assert average["score"] == pytest.approx(np.mean([np.mean(v) for v in values.values()]))
    outcome(settings(files, folder.parent))
    out, err = capsys.readouterr()
    assert Watch.batches == 0 and err == ""
    (line,) = (line for line in out.splitlines() if line.startswith("mnli"))
    assert f"accuracy validation_matched {values['mnli'][0]:.2f}, accuracy validation_mismatched" in line
    assert f"{average['score']:.2f}" in out


def test_each_starts_from_what_it_should(whole, files):
    _, folder, first, problems = whole
    starts = dict.fromkeys(GLUES, files / "pretrained") | dict.fromkeys(("rte", "mrpc", "stsb"), folder / "mnli-seed1")
    for task, start in starts.items():
        weights = read_weights(start / "checkpoints" / "latest-rank0.pt")
        begun = {f"model.{name}": value for name, value in first[f"{task}-seed1"].items()}
        encoder = [name for name in weights if name.startswith("model.bert.")]
        assert len(encoder) > 30 and all(torch.equal(begun[name], weights[name]) for name in encoder)
        new = begun.keys() - weights.keys()
        pooler = {f"model.bert.pooler.dense.{kind}" for kind in ("weight", "bias")}
        classifier = {f"model.classifier.{kind}" for kind in ("weight", "bias")}
        assert new == (set() if start.name == "mnli-seed1" else pooler | classifier)
        assert begun["model.classifier.weight"].shape == (TASKS[task].labels, 16)
    assert problems["stsb-seed1"] == "regression" and problems["rte-seed1"] == "single_label_classification"


def test_seeds(files, tmp_path):
    rows = outcome(settings(files, tmp_path, "mnli", "rte", seeds=[1, 2])).rows
    by_run = {(row["task"], row["seed"]): [] for row in rows}
    for row in rows:
        by_run[row["task"], row["seed"]] += [100 * value for value in row.metrics.values()]
    means = {run: np.mean(values) for run, values in by_run.items()}
    rte = [means["rte", seed] for seed in (1, 2)]
    both = [(means["rte", seed] + means["mnli", seed]) / 2 for seed in (1, 2)]
    lines = {line["task"]: line for line in averages(rows)}
    assert list(lines) == ["mnli", "rte", "average of 2"]
    assert lines["rte"]["score"] == pytest.approx(np.mean(rte))
    assert lines["average of 2"]["deviation"] == pytest.approx(np.std(both, ddof=1))
    begun, ended = Watch.first["rte-seed2"], read_weights(tmp_path / "study/mnli-seed2/checkpoints/latest-rank0.pt")
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(begun[name], ended[f"model.{name}"])
    assert not torch.equal(begun[name], Watch.first["rte-seed1"][name])


# Composer and torchmetrics warn when a run goes on between the last batch of an epoch and its end.
@pytest.mark.filterwarnings("ignore:No batches were trained")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("kill_at", [4, 11])
def test_killed_at_any_time_it_goes_on(files, whole, tmp_path, kill_at):
    config = settings(files, tmp_path, "mnli", "rte", save_interval="1ba")
    Watch.kill_at = kill_at
    with pytest.raises(KeyboardInterrupt):
        outcome(config)
    expected = [row for row in whole[0] if row["task"] in ("mnli", "rte")]
    assert without_seconds(outcome(config).rows) == without_seconds(expected)
    assert 16 <= Watch.batches <= 17  # 26 rows by 8, the last batch too


@pytest.mark.programs
def test_runs_at_once_are_those_in_turn(files, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = settings(files, tmp_path, "mnli", "rte", executor={"processes": {"at_once": 2}})
    config.callbacks = None  # which count in this process
    done = outcome(config)
    assert not done.failures
    expected = [row for row in whole[0] if row["task"] in ("mnli", "rte")]
    assert without_seconds(done.rows) == without_seconds(expected)


def fails(config, tmp_path, *overrides):
    """What is said of the error, in one line, before anything is trained."""
    file = tmp_path / "glue.yaml"
    file.write_text(OmegaConf.to_yaml(config))
    with pytest.raises(ConfigError) as refused:
        plan(*load(file, overrides))
    assert "\n" not in str(refused.value) and Watch.batches == 0
    return str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tasks.mnl={columns: [a], labels: 3}"], "tasks.mnl: unknown task; did you mean mnli?"),
        (["tasks.wnli={columns: [a], labels: 2}"], "tasks.wnli: unknown task"),
        (["tasks.mnli=3"], "command line: study.glue.tasks.mnli: 3 given; expected a mapping"),
        (["tasks=null"], "command line: study.glue.tasks: null given"),
        (["tasks.sst2={labels: 2}"], "tasks.sst2.columns: missing; every task needs it"),
        (["tasks.cola.columns=sentence"], "tasks.cola.columns: 'sentence' given; expected list[str]"),
        (["tasks.cola.columns=[sentense]"], "command line: study.glue.tasks.cola: "),
        (["tasks.cola.columns=[sentense]"], "data/cola has no column sentense: expected one of ['idx', 'label', "),
        (["tasks.cola.splits=[dev]"], 'Unknown split "dev"'),
        (["tasks.cola.splits=[test]"], "tasks.cola: row 0 of test has -1 as label; expected whole numbers from 0"),
        (["tasks.cola.splits=[test]"], "; GLUE's test labels are not public"),
        (["tasks.cola.splits=[]"], "tasks.cola.splits: [] given; expected one or more different names"),
        (["tasks.cola.labels=1"], "tasks.cola.metrics: the metric matthews is for classes; num_labels is 1"),
        (["tasks.mnli.metrics=[f1]"], "tasks.mnli.metrics: the metric f1 is for two classes; num_labels is 3"),
        (["tasks.mnli.metrics=[acuracy]"], "tasks.mnli.metrics: unknown metric acuracy; did you mean accuracy?"),
        (["tasks.mnli.labels=2"], "tasks.mnli: train has the label 2; expected whole numbers below 2"),
        (["tasks.cola.colums=[a]"], "tasks.cola.colums: unknown key; did you mean columns?"),
        (["metric=accuracy"], "study.glue.metric: each task has metrics of its own"),
        (["tasks.cola.label=2"], "tasks.cola.label: unknown key"),
        (["tasks.cola.eval_data={digits: {}}"], "tasks.cola.eval_data: the study sets it for every run; leave it out"),
        (["tasks.cola.max_duration=soon"], "command line: study.glue.tasks.cola.max_duration: "),
        (["tasks.cola.optimizer.decoupled_adamw.lr=-1"], "tasks.cola.optimizer.decoupled_adamw: "),
        (["tasks.rte.start=cola", "tasks.cola=false"], "tasks.rte.start: 'cola' given; expected one of the tasks mnli"),
        (["tasks.cola.start=rte"], "tasks.cola.start: rte given; expected a task that starts from the pretrained"),
        (["tasks.mnli=false"], "tasks.rte.start: 'mnli' given; expected one of the tasks cola, rte"),
        (["seeds=[1,1]"], "command line: study.glue.seeds: [1, 1] given; expected different whole numbers"),
        (["model={resnet: {}}"], "command line: model: expected bert"),
        (["train_data={digits: {}}"], "command line: train_data: expected hugging_face_text"),
        (["eval_data={digits: {}}"], "command line: eval_data: comes from train_data and each task's splits"),
        (["validation_data={digits: {}}"], "command line: validation_data: comes from train_data and each"),
        (["train_data.hugging_face_text.seq_len=32"], "seq_len: above the pretrained model's 16 positions"),
        (["model.bert=null"], "command line: model.bert: null given; expected its arguments as a mapping"),
        (["variables.checkpoint=/no/where"], "model.bert: /no/where is not a folder"),
        (["variables.checkpoint=no.pt"], "model.bert: no.pt is no file"),
        (["variables.data=/no/where"], "train_data.hugging_face_text.name: /no/where is not a folder"),
    ],
)
def test_mistakes_are_one_line(files, tmp_path, overrides, message):
    own = [f"study.glue.{one}" if one.startswith(("tasks", "seeds", "metric")) else one for one in overrides]
    assert message in fails(settings(files, tmp_path, *SMALL), tmp_path, *own)


def test_the_checkpoint_is_left_to_the_user():
    with pytest.raises(ConfigError) as refused:
        plan(*load("bert/glue.yaml"))
    assert "bert/glue.yaml: variables.checkpoint: missing; the file leaves it to you" in str(refused.value)


def test_a_checkpoint_that_does_not_fit_is_told(files, tmp_path):
    config = settings(files, tmp_path, *SMALL)
    for name, change in {
        "shape": lambda weights: weights.update({"model.bert.embeddings.LayerNorm.bias": torch.zeros(8)}),
        "lacks": lambda weights: weights.pop("model.bert.encoder.layer.1.output.dense.weight"),
        "more": lambda weights: weights.update({"model.bert.encoder.layer.2.output.dense.bias": torch.zeros(16)}),
        "other": lambda weights: [weights.pop(key) for key in list(weights) if ".bert." in key],
    }.items():
        content = torch.load(files / "pretrained" / "checkpoints" / "latest-rank0.pt", weights_only=False)
        change(content["state"]["model"])
        torch.save(content, tmp_path / f"{name}.pt")
    expected = {
        "shape": "does not fit the model: it has another shape of bert.embeddings.LayerNorm.bias",
        "lacks": "does not fit the model: it lacks bert.encoder.layer.1.output.dense.weight",
        "more": "does not fit the model: it has, unknown to the model, bert.encoder.layer.2.output.dense.bias",
        "other": "holds no bert: it has cls.predictions.bias",
    }
    for name, message in expected.items():
        error = fails(config, tmp_path, f"variables.checkpoint={tmp_path}/{name}.pt")
        assert f"command line: model.bert: {tmp_path}/{name}.pt {message}" in error or message in error
    words = BertTokenizerFast(str(files / "vocab.txt"))
    words.add_tokens([f"word{i}" for i in range(24)])
    words.save_pretrained(tmp_path / "words")
    error = fails(config, tmp_path, f"variables.tokenizer={tmp_path}/words")
    assert "has 42 words, but the pretrained model has 24" in error


def test_what_is_in_the_folder_is_not_falsified(files, whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "study", symlinks=True)
    config = settings(files, tmp_path, "mnli", "cola")
    for override, message in {
        "study.glue.tasks.cola.optimizer.decoupled_adamw.lr=0.5": "decoupled_adamw.lr: 0.5 given, but the run in",
        "run_name=study/cola-seed1": "is the folder of a training run; choose another one",
    }.items():
        assert message in fails(config, tmp_path, override)


def test_ranks_are_refused(files, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = fails(settings(files, tmp_path, *SMALL), tmp_path)
    assert "2 ranks given; launch it with composer -n 1: tasks run side by side, each on one GPU" in error


def test_other_starts_and_other_folders(files, tmp_path, monkeypatch):
    """From what transformers saved, on the data of save_to_disk, without MNLI, logged to W&B."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    model = BertForSequenceClassification(BertConfig(**TINY, num_labels=3))
    model.save_pretrained(tmp_path / "bert")
    parts = {split: str(next((files / "data" / "rte").glob(f"{split}-*"))) for split in ("train", "validation")}
    datasets.load_dataset("parquet", data_files=parts).save_to_disk(tmp_path / "data" / "rte")
    config = settings(files, tmp_path, "rte", loggers={"wandb": {"project": "p"}})
    config.study.glue.tasks.rte.start = None
    config.variables.update(checkpoint=str(tmp_path / "bert"), data=str(tmp_path / "data"))
    (row,) = outcome(config).rows
    assert 0 <= row["accuracy"] <= 1
    for name in ("table", "averages"):
        assert list((tmp_path / "study").glob(f"wandb/offline-run-*/files/media/table/{name}*.table.json"))
    expected = {name: value for name, value in model.state_dict().items() if name.startswith("bert.")}
    assert all(torch.equal(Watch.first["rte-seed1"][name], value) for name, value in expected.items())


def test_a_task_may_refer_to_what_the_base_run_holds(files, tmp_path):
    own = {"columns": "${variables.columns}", "labels": "${variables.labels}", "metrics": ["${variables.metric}"]}
    config = settings(files, tmp_path, "cola", variables={"columns": ["sentence"], "labels": 2, "metric": "accuracy"})
    config.study.glue.tasks.cola.update(own)
    found = plan(config)
    recipe = found.base.recipe_of(found.nodes({})[0]).config
    assert recipe["train_data"]["hugging_face_text"]["text_columns"] == ["sentence"]
    assert recipe["model"]["bert"]["metrics"] == ["accuracy"] and recipe["model"]["bert"]["num_labels"] == 2


def test_averages_of_what_is_finished():
    def row(task, seed, value):
        metrics = {"accuracy": value}
        return Row(node="", tags={"task": task, "seed": seed}, batches=1, samples=1, seconds=1.0, metrics=metrics)

    rows = [row("rte", 1, 0.5), row("mnli", 1, 0.7), row("mnli", 2, 0.9), row("rte", 3, 0.6), row("mnli", 3, 0.6)]
    lines = [(line["task"], round(line["score"], 6), line["seeds"]) for line in averages(rows)]
    assert lines == [("mnli", 73.333333, 3), ("rte", 55.0, 2), ("average of 2", 60.0, 2)]
    assert [line["task"] for line in averages([row("rte", 1, 0.5), row("mnli", 2, 0.7)])] == ["mnli", "rte"]
