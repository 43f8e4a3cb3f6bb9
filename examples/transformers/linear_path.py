"""The training of bare.py with its loss on the straight line from its initial weights to those of its end.

python examples/transformers/linear_path.py [FOLDER [UPDATES]]
"""

import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from accelerando.algorithms.transformers import LinearPath

EPOCHS, BATCH, SEED = 4, 64, 17
MASK = 17  # the word after the grey levels 0 to 16
folder, updates = ([*sys.argv[1:], None, None])[:2]
folder = folder or tempfile.mkdtemp()

words = torch.tensor(load_digits().data).long()
chosen = torch.rand(words.shape, generator=torch.Generator().manual_seed(SEED)) < 0.15
inputs, labels = words.masked_fill(chosen, MASK), words.masked_fill(~chosen, -100)
data = [{"input_ids": row, "labels": label} for row, label in zip(inputs, labels, strict=True)]
steps = EPOCHS * (1408 // BATCH)

set_seed(SEED)
config = BertConfig(
    vocab_size=MASK + 1,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
model = BertForMaskedLM(config)


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **parts):
        if state.global_step == int(updates or -1):
            control.should_save = control.should_training_stop = True


args = TrainingArguments(
    output_dir=folder,
    per_device_train_batch_size=BATCH,
    max_steps=steps,
    learning_rate=5e-3,
    lr_scheduler_type="cosine",
    save_steps=22,
    seed=SEED,
    report_to="none",
)
trainer = Trainer(
    model,
    args,
    train_dataset=data[:1408],
    callbacks=[LinearPath(points=5, train=True, batches=4), Stop()],
)
trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if Path(folder).is_dir() else None)

model.eval()
with torch.no_grad():
    guesses = model(inputs[1408:].to(model.device)).logits.argmax(-1).cpu()
hits = (guesses == words[1408:])[chosen[1408:]]
print(f"accuracy {hits.float().mean().item():.4f} after {trainer.state.global_step} updates")
trainer.save_model(folder)
