"""Our shards as a data set for `transformers.Trainer`.

```python
from transformers import AutoTokenizer, Trainer, TrainingArguments, default_data_collator
from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM, WindowDataset

tokenizer = AutoTokenizer.from_pretrained("data/docstrings")
sizes = dict(n_layer=4, n_head=4, n_embd=128, n_positions=256, vocab_size=len(tokenizer))
ends = dict(bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id)
trainer = Trainer(
    model=GPT2ScratchForCausalLM(GPT2ScratchConfig(**sizes, **ends)),
    args=TrainingArguments("runs/trainer", max_steps=1000, learning_rate=3e-3, logging_steps=50),
    train_dataset=WindowDataset("data/docstrings", "train", n_tokens=256),
    eval_dataset=WindowDataset("data/docstrings", "val", n_tokens=256),
    data_collator=default_data_collator,
    processing_class=tokenizer,
)
trainer.train()
print(trainer.evaluate())
```
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .loader import TokenWindows


class WindowDataset(Dataset):
    """A split of a local data directory, cut into rows.

    Neighbouring rows share one token: the model shifts the labels itself, so the first token of a
    row is not predicted there, but as the last one of the row before. Worker processes of a
    DataLoader are sent the names of the shards, and map them themselves.

    Args:
        directory: a data directory, `prepare_data.py`'s or one of other programs' files.
        split: "train" or "val".
        n_tokens: of a row, T; at most the model's `n_positions`.

    Raises:
        ValueError: if `n_tokens` is below 2.
        ShardError: if the split is missing, shorter than one row, or damaged.
    """

    def __init__(self, directory: str | Path, split: str, *, n_tokens: int):
        if n_tokens < 2:
            raise ValueError(f"expected n_tokens of at least 2, found {n_tokens}")
        self._windows = TokenWindows(Path(directory), split, sequence_length=n_tokens - 1)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """A row: "input_ids" and "labels", the same int64 tensor (T,).

        Raises:
            IndexError: unless `-len(self) <= index < len(self)`.
            ShardError: if an id is outside the vocabulary.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an index below {len(self)}, found {index}")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several rows at once, which torch's DataLoader prefers; a fourth of the time."""
        rows = torch.from_numpy(self._windows.read(np.asarray(indices)).astype(np.int64))
        return [{"input_ids": row, "labels": row} for row in rows]
