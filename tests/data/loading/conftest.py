"""A small data directory, and remote sources that are asked again at once."""

from pathlib import Path

import pytest
from support.counting_shards import N_SHARDS, SHARD_TOKENS, write_stream

from modeling_gpt2scratch.data.loading import remote_files


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(remote_files, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(remote_files, "LONGEST_PAUSE_SECONDS", 0.02)


@pytest.fixture
def data(tmp_path) -> Path:
    """A data directory of six shards of 100 tokens and tokenizer files."""
    (tmp_path / "data").mkdir()
    directory = write_stream(tmp_path / "data", N_SHARDS * SHARD_TOKENS, shard_tokens=SHARD_TOKENS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_text("{}")
    return directory
