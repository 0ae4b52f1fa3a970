"""What the tests of `gpt2scratch shards` share."""

import pytest
from support.token_directories import CORPUS, write_ours

from modeling_gpt2scratch.commands.shards import main
from modeling_gpt2scratch.data.shards import directory, token_files
from modeling_gpt2scratch.data.tokens.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, 270)


@pytest.fixture(scope="module")
def tokenizer_dir(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def small_pieces(monkeypatch):
    """Files are read in many pieces, as large ones are."""
    monkeypatch.setattr(token_files, "TOKENS_PER_READ", 7)
    monkeypatch.setattr(directory, "BYTES_PER_READ", 24)


@pytest.fixture
def run(capsys, small_pieces):
    """Runs a command; returns its exit code, and the lines it printed."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exited:
            main([str(argument) for argument in arguments])
        code = exited.value.code
        captured = capsys.readouterr()
        if isinstance(code, str):  # what Python prints before it exits with 1
            return 1, [code]
        errors = [line for line in captured.err.splitlines() if "error:" in line]
        return code, [*captured.out.splitlines(), *errors]

    return run


@pytest.fixture
def ours(tmp_path, tokenizer):
    write_ours(tmp_path / "ours", tokenizer, val=CORPUS[:2])
    return tmp_path / "ours"
