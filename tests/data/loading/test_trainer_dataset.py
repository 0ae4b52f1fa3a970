"""Our shards in transformers' Trainer, by the lines that the documentation shows."""

import copy
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.paths import REPOSITORY
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from modeling_gpt2scratch import WindowDataset
from modeling_gpt2scratch.data.loading import trainer_dataset
from modeling_gpt2scratch.data.loading.loader import TokenWindows, model_inputs
from modeling_gpt2scratch.data.shards.format import ShardError

EXAMPLE = re.search(r"```python\n(.*?)```", trainer_dataset.__doc__, re.DOTALL)[1]


def test_rows_are_the_windows_of_the_training_script(small_data):
    rows = WindowDataset(small_data, "train", n_tokens=33)
    windows = TokenWindows(small_data, "train", sequence_length=32)
    assert len(rows) == len(windows)
    expected = windows.read(np.array([0, 5, len(rows) - 1])).astype(np.int64)
    for index, tokens in zip((0, 5, -1), expected, strict=True):
        row = rows[index]
        assert row["input_ids"].tolist() == row["labels"].tolist() == tokens.tolist()
    (batch,) = DataLoader(torch.utils.data.Subset(rows, [0, 5, len(rows) - 1]), batch_size=3)
    assert torch.equal(batch["labels"], torch.from_numpy(expected))


def test_every_token_but_the_first_is_a_target_once(small_data):
    rows = WindowDataset(small_data, "train", n_tokens=33)
    targets = torch.cat([rows[index]["labels"][1:] for index in range(len(rows))])
    windows = TokenWindows(small_data, "train", sequence_length=len(targets))
    assert targets.tolist() == windows.read(np.array([0]))[0, 1:].tolist()


def test_only_the_names_of_shards_travel_to_a_worker(small_data):
    rows = WindowDataset(small_data, "train", n_tokens=33)
    rows[0], rows[len(rows) - 1]  # whatever was opened before
    pickled = pickle.dumps(rows)
    assert sum(path.stat().st_size for path in small_data.glob("train_*.bin")) > 150_000
    assert len(pickled) < 5_000


@pytest.mark.slow
def test_another_process_that_is_told_no_more_reads_the_same_rows(small_data):
    rows = WindowDataset(small_data, "train", n_tokens=33)
    pickled = pickle.dumps(rows)
    program = "import pickle, sys; r = pickle.load(sys.stdin.buffer); print(r[7], r[len(r) - 1])"
    finished = subprocess.run(
        [sys.executable, "-c", program], input=pickled, capture_output=True, check=True
    )
    assert finished.stdout.decode().strip() == f"{rows[7]} {rows[len(rows) - 1]}"


@pytest.mark.slow
def test_workers_that_are_started_afresh_read_the_same_rows(small_data):
    rows = WindowDataset(small_data, "train", n_tokens=33)
    options = {"batch_size": 100, "num_workers": 2, "multiprocessing_context": "spawn"}
    loader = DataLoader(torch.utils.data.Subset(rows, range(0, len(rows), 7)), **options)
    found = torch.cat([batch["labels"] for batch in loader])
    expected = rows.__getitems__(range(0, len(rows), 7))
    assert torch.equal(found, torch.stack([row["labels"] for row in expected]))


def test_what_is_no_row_is_refused(small_data):
    rows = WindowDataset(small_data, "val", n_tokens=33)
    with pytest.raises(IndexError, match=f"below {len(rows)}, found {len(rows)}"):
        rows[len(rows)]
    with pytest.raises(ValueError, match="n_tokens of at least 2, found 1"):
        WindowDataset(small_data, "val", n_tokens=1)
    with pytest.raises(ShardError, match="expected a split 'test'"):
        WindowDataset(small_data, "test", n_tokens=33)


def test_the_guide_shows_the_same_lines():
    assert EXAMPLE in (REPOSITORY / "docs/how-to/trainer-and-peft.md").read_text()


@pytest.mark.slow
def test_the_documented_lines_train_and_their_losses_are_ours(small_data, tmp_path, monkeypatch):
    read, models = [], []
    get_items, init = WindowDataset.__getitems__, Trainer.__init__

    def noting_items(self, indices):
        read.append((self, list(indices)))
        return get_items(self, indices)

    def noting_init(self, *arguments, model, **options):
        models.append(copy.deepcopy(model))  # as it was before the first step
        init(self, *arguments, model=model, **options)

    monkeypatch.setattr(WindowDataset, "__getitems__", noting_items)
    monkeypatch.setattr(Trainer, "__init__", noting_init)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    code = EXAMPLE.replace("data/docstrings", str(small_data))
    code = code.replace("runs/trainer", str(tmp_path / "run")).replace(
        "max_steps=1000", "max_steps=2"
    )
    code = code.replace("logging_steps=50", "logging_steps=1, lr_scheduler_type='constant'")
    names = {}
    exec(code, names)
    trainer = names["trainer"]

    # The same two steps by hand, on the rows in which the training script would read them.
    model = models[0].train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    windows = TokenWindows(small_data, "train", sequence_length=255)
    losses = []
    for _, indices in [entry for entry in read if entry[0] is trainer.train_dataset][:2]:
        loss = model(**model_inputs(windows.read(np.array(indices)))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert logged == pytest.approx(losses, abs=1e-4)
    assert trainer.evaluate()["eval_loss"] < losses[0]
    trainer.save_model(tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.n_layer == 4
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == 300
