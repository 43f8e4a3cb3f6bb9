"""Small data in the formats that the shipped YAMLs name, and what makes each of these YAMLs find them."""

import json
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image
from streaming import MDSWriter
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from accelerando.recipes.config.loading import load

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "number", "sat", "on", "mat"]


def picture(seed, size=(40, 32), mode="RGB"):
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size).convert(mode)


def write_images(data: Path) -> None:
    """`imagenet` with JPEG files of two classes, and `shards` with the like."""
    for split in ("train", "val"):
        for label in range(2):
            folder = data / "imagenet" / split / f"n{label:08}"
            folder.mkdir(parents=True)
            for image in range(6):
                picture(image, (50, 40)).save(folder / f"{image}.jpeg")
        with MDSWriter(out=str(data / "shards" / split), columns={"x": "jpeg", "y": "int"}) as shards:
            for sample in range(64):
                shards.write({"x": picture(sample, (50, 40)), "y": sample % 2})


def write_texts(data: Path) -> None:
    """`c4` in shards, `mnli` as of the hub, `bert`, a tiny model with its tokenizer, `squad`, `texts`, `glue`."""
    for split in ("train", "val"):
        with MDSWriter(out=str(data / "c4" / split), columns={"text": "str"}) as shards:
            for sample in range(64):
                shards.write({"text": f"the cat number {sample} sat on the mat " * 5})
    (data / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(data / "vocab.txt")).save_pretrained(data / "bert")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertForSequenceClassification(BertConfig(vocab_size=11, **sizes)).save_pretrained(data / "bert")
    rows = {"premise": ["the cat sat"] * 16, "hypothesis": ["on the mat"] * 16, "label": [0, 1, 2, 0] * 4}
    mnli = DatasetDict({split: Dataset.from_dict(rows) for split in ("train", "validation_matched")})
    mnli.save_to_disk(data / "mnli")
    (data / "squad").mkdir()
    asked = {"id": "1", "question": "the cat sat on", "answers": [{"text": "the mat", "answer_start": 15}]}
    squad = {"data": [{"paragraphs": [{"context": "the cat sat on the mat", "qas": [asked] * 9}]}]}
    for name in ("train", "dev"):
        (data / "squad" / f"{name}-v1.1.json").write_text(json.dumps(squad))
    (data / "texts").mkdir()
    for split in ("train", "validation"):
        texts = Dataset.from_dict({"text": ["the cat sat on the mat " * 40] * 32})
        texts.to_parquet(data / "texts" / f"{split}-00000-of-00001.parquet")
    for task, given in load("bert/glue.yaml")[0].study.glue.tasks.items():
        (data / "glue" / task).mkdir(parents=True)
        kind = Value("float32") if given.labels == 1 else ClassLabel(given.labels)
        columns = dict.fromkeys(given.columns, ["the cat sat"] * 16)
        features = Features({**dict.fromkeys(columns, Value("string")), "label": kind})
        split = Dataset.from_dict({**columns, "label": [0, 1] * 8}, features=features)
        for name in ("train", *given.get("splits", ["validation"])):
            split.to_parquet(data / "glue" / task / f"{name}-00000-of-00001.parquet")


def found_in(name: str, data: Path) -> list[str]:
    """Overrides by which the shipped YAML `name` finds these data, as small a model, and a CPU."""
    keys = ["device=cpu", "precision=fp32"]
    if name.startswith("resnet50/"):
        keys += [f"variables.imagenet={data / 'imagenet'}", "model.resnet.num_classes=2"]
        keys += [f"{part}.image_folder.num_workers=0" for part in ("train_data", "eval_data")]
    elif name == "bert/glue":
        keys += [f"variables.{key}={data / 'bert'}" for key in ("checkpoint", "tokenizer")]
        keys += [f"variables.data={data / 'glue'}", "executor=null"]
    elif name in ("bert/finetune_mnli", "bert/tickets"):
        keys += [f"variables.model={data / 'bert'}", f"variables.data={data / 'mnli'}"]
    elif name == "bert/bert_tickets":
        places = {"model": "bert", "data": "glue", "squad": "squad", "texts": "texts"}
        keys += [f"variables.{key}={data / place}" for key, place in places.items()]
        keys += ["variables.part=null", "executor=null", "loggers=null"]
    elif name == "bert/finetune_squad":
        keys += [f"variables.model={data / 'bert'}", f"variables.data={data / 'squad'}"]
    elif name.startswith("bert/"):
        places = {"remote": "c4", "local": "cache", "tokenizer": "bert"}
        keys += [f"variables.{key}={data / place}" for key, place in places.items()]
        keys += [f"{part}.streaming_text.num_workers=0" for part in ("train_data", "eval_data")]
        keys += [f"model.bert.config.{option}" for option in ("num_hidden_layers=1", "hidden_size=24")]
    return keys
