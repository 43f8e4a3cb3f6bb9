"""What a step of masked language modelling takes in Hugging Face's Trainer, with LabelledPositions and without.

python benchmarks/trainer.py [ROUNDS]
"""

from harness import hardware, keep_memory, measure, report

keep_memory()

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments

from accelerando.algorithms.transformers import LabelledPositions

WORDS, LENGTH, SENTENCES, UPDATES = 30522, 128, 16, 4


class Times(TrainerCallback):
    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **parts):
        self.ends.append(time.perf_counter())


def sentences():
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(5, WORDS, (SENTENCES * UPDATES, LENGTH), generator=generator)
    labels = words.masked_fill(torch.rand(words.shape, generator=generator) >= 0.15, -100)
    return [{"input_ids": row, "labels": label} for row, label in zip(words, labels, strict=True)]


def step_of(model, data, techniques):
    """An arm: the median seconds of an update within a training, from the end of the one before."""
    args = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=SENTENCES,
        max_steps=UPDATES,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=torch.cuda.is_available(),
    )

    def arm() -> float:
        times = Times()
        Trainer(model, args, train_dataset=data, callbacks=[*techniques, times]).train()
        return statistics.median(end - start for start, end in zip(times.ends, times.ends[1:], strict=False))

    return arm


def main(rounds: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    model, data = BertForMaskedLM(BertConfig(vocab_size=WORDS, **sizes)), sentences()
    arms = {"plain": step_of(model, data, []), "LabelledPositions": step_of(model, data, [LabelledPositions()])}
    medians = measure(arms, rounds, device)
    notes = f"{hardware(device)}; {rounds} rounds of {UPDATES} updates"
    report(f"BERT, {SENTENCES} sentences of {LENGTH} tokens, 15 % labelled", medians, "plain", notes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=7)
    main(parser.parse_args().rounds)
