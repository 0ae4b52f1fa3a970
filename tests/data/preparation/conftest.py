"""Small preparations, in this process: by the script and by a configuration."""

import sys

import pytest
from support.tiny_corpus import fables, write_jsonl

import prepare_data
from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
from modeling_gpt2scratch.data.tokens.tokenizer import train_tokenizer


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Runs main() with these flags and returns its exit code, 0 for none, and its error lines.

    A string given to sys.exit is printed by the interpreter, with exit code 1.
    """
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")

    def run(output_dir, dataset, *flags):
        command = ["prepare_data.py", *("--output_dir", output_dir, "--dataset", dataset), *flags]
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        capsys.readouterr()
        try:
            prepare_data.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code
        errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        if isinstance(code, str):
            errors += code.splitlines()
            code = 1
        return code, errors

    return run


@pytest.fixture
def prepared(run_script):
    """Runs main() with a small trained tokenizer and requires it to succeed."""

    def prepare(output_dir, dataset, *flags):
        code, errors = run_script(output_dir, dataset, "--tokenizer", "bpe:300", *flags)
        assert (code, errors) == (0, [])
        return output_dir

    return prepare


@pytest.fixture(scope="session")
def saved_tokenizer(tmp_path_factory):
    """A directory with a small tokenizer."""
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(fables(30), 300).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Six files of 500 different documents each."""
    directory = tmp_path_factory.mktemp("corpus")
    for i in range(6):
        write_jsonl(directory / f"{i}.jsonl", fables(500, seed=i))
    return directory


@pytest.fixture
def configure(corpus, saved_tokenizer, tmp_path):
    """A configuration over the corpus, with small blocks and shards."""

    def configure(**changes):
        arguments = {
            "dataset": str(corpus),
            "tokenizer": str(saved_tokenizer),
            "output_dir": str(tmp_path / "out"),
            "shard_tokens": 3000,
            "shuffle_buffer_tokens": 8000,
            "val_fraction": 0.1,
            "num_workers": 1,
        }
        return PrepareConfig(**arguments | changes)

    return configure
