"""A masked language model in Lightning on the reference of Python, which every Python holds; without any technique.

python examples/lightning/bare_mlm.py [CHECKPOINT [EPOCHS]]
"""

import re
import sys
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import lightning
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM

EPOCHS, BATCH, LENGTH, WORDS, SEED = 2, 64, 32, 1000, 17
MASK, UNKNOWN = 1, 2  # 0 is for padding, which is not needed here
checkpoint, epochs = ([*sys.argv[1:], None, None])[:2]
options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}

text = re.findall(r"\w+|[^\w\s]", " ".join(topics[name] for name in sorted(topics)))
known = {word: number for number, (word, _) in enumerate(Counter(text).most_common(WORDS - 3), 3)}
tokens = torch.tensor([known.get(word, UNKNOWN) for word in text])
tokens = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
test, train = tokens[::10], tokens[torch.arange(len(tokens)) % 10 > 0]


def masked(rows):
    """Some 15 % of the words are masked, and have a label; what is not known has none."""
    rows = torch.stack(rows)
    labels = rows.masked_fill((torch.rand(rows.shape) > 0.15) | (rows == UNKNOWN), -100)
    return {"input_ids": rows.masked_fill(labels != -100, MASK), "labels": labels}


train = DataLoader(train, BATCH, shuffle=True, drop_last=True, collate_fn=masked)
test = DataLoader(test, BATCH, collate_fn=masked)
config = BertConfig(
    vocab_size=WORDS,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


class MaskedLM(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = BertForMaskedLM(config)

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def validation_step(self, batch, batch_idx):
        labels = batch["labels"]
        hits = (self.model(**batch).logits.argmax(-1) == labels).sum()
        self.log("accuracy", hits / (labels != -100).sum(), batch_size=len(labels))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(train))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


lightning.seed_everything(SEED)
module = MaskedLM()
trainer = lightning.Trainer(max_epochs=int(epochs or EPOCHS), **options)
trainer.fit(module, train, ckpt_path=checkpoint if checkpoint and Path(checkpoint).exists() else None)
(found,) = trainer.validate(module, test)
print(f"accuracy {found['accuracy']:.4f} after {trainer.global_step} updates")
if checkpoint:
    trainer.save_checkpoint(checkpoint)
