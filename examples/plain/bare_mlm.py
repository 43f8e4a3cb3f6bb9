"""A masked language model in a plain loop on scikit-learn's digits, whose grey levels are its words.

python examples/plain/bare_mlm.py [CHECKPOINT [UPDATES]]

With a CHECKPOINT it goes on from there if the file exists, and writes it at the end, or after so many UPDATES.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from transformers import BertConfig, BertForMaskedLM

EPOCHS, BATCH, SEED = 4, 64, 17
MASK = 17  # the word after the grey levels 0 to 16
checkpoint, updates = ([*sys.argv[1:], None, None])[:2]

words = torch.tensor(load_digits().data).long()
train, test = words[:1437], words[1437:]
batches_per_epoch = len(train) // BATCH
steps = EPOCHS * batches_per_epoch

torch.manual_seed(SEED)
config = BertConfig(
    vocab_size=MASK + 1,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
model = BertForMaskedLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
saved = {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def masked(words, seed):
    """Some 15 % of the words are masked, and have a label."""
    chosen = torch.rand(words.shape, generator=torch.Generator().manual_seed(seed)) < 0.15
    return {"input_ids": words.masked_fill(chosen, MASK), "labels": words.masked_fill(~chosen, -100)}


def batch_of(step):
    """The order of an epoch is a function of its number, so that a training goes on in the middle of one."""
    epoch, batch = divmod(step, batches_per_epoch)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))
    return masked(train[order[batch * BATCH : (batch + 1) * BATCH]], step)


start = 0
if checkpoint and Path(checkpoint).exists():
    content = torch.load(checkpoint, weights_only=True)
    start = content.pop("step")
    for name, state in content.items():
        saved[name].load_state_dict(state)

end = min(int(updates or steps), steps)
for step in range(start, end):
    batch = batch_of(step)
    model.train()
    loss = model(**batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()

model.eval()
batch = masked(test, SEED)
with torch.no_grad():
    hits = model(**batch).logits.argmax(-1) == batch["labels"]
accuracy = (hits.sum() / (batch["labels"] != -100).sum()).item()
print(f"accuracy {accuracy:.4f} after {end} updates")
if checkpoint:
    torch.save({name: part.state_dict() for name, part in saved.items()} | {"step": end}, checkpoint)
