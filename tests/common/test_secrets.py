"""Secrets in addresses: in no file that a program writes, and in nothing that it prints."""

import base64
import json
import os
import subprocess
import sys
from urllib.parse import quote

import pytest
from support.evaluation import compare
from support.servers.faulty_server import drop, serve
from support.training_runs import flags, launch, run_here

import prepare_data
from modeling_gpt2scratch.commands import shards
from modeling_gpt2scratch.common import addresses

PASSWORD, SIGNATURE = "hunter2hunter2", "abc123signature"
# Also as a header or another address would have them.
SECRETS = (PASSWORD, SIGNATURE, base64.b64encode(f"me:{PASSWORD}".encode()).decode())


def secret_address(address):
    """An address with a user, a password and a signature."""
    return address.replace("://", f"://me:{PASSWORD}@") + f"?signature={SIGNATURE}"


def guard(server):
    """From now on, only who knows the secrets is served."""
    server.authorization = f"Basic {SECRETS[2]}"
    server.query = f"signature={SIGNATURE}"


def require_no_secrets(directory, shown):
    """Searches what was printed, and everything below a directory."""
    for secret in {*SECRETS, *map(quote, SECRETS)}:
        assert secret not in shown
        found = subprocess.run(["grep", "-rla", "--", secret, directory], capture_output=True)
        assert not found.stdout, found.stdout.decode()


def train(directory, *arguments):
    """A run in a process of its own, with trackers; what it left is searched for secrets."""
    options = {"WANDB_MODE": "offline", "WANDB_API_KEY": "0" * 40}
    finished = launch(*arguments, "--report_to", "tensorboard", "wandb", env=os.environ | options)
    require_no_secrets(directory, finished.stdout + finished.stderr)
    return finished


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Calls a program's main function; its exit code and the lines on stderr, searched as well."""
    monkeypatch.setattr(addresses, "_secrets", {})

    def call(function, *arguments):
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        code = function()
        captured = capsys.readouterr()
        if isinstance(code, str):  # what Python prints before it exits with 1
            captured, code = captured._replace(err=f"{captured.err}{code}\n"), 1
        require_no_secrets(tmp_path, captured.out + captured.err)
        return code, captured.err

    return call


def exit_of(function):
    """The function, which now returns how it would have exited."""

    def exiting():
        try:
            return function()
        except SystemExit as exited:
            return exited.code

    return exiting


def error_in(text):
    """The one line in which a program ended."""
    (line,) = [line for line in text.splitlines() if " error: " in line]
    return line


@pytest.mark.gate
def test_training_records_and_prints_no_secret(small_data, tmp_path):
    options = {"max_steps": 2, "eval_every": 2, "save_every": 1, "data_cache": tmp_path / "cache"}
    with serve(small_data) as server:
        guard(server)
        server.faults["train_000001.bin"] = [drop]  # which is announced
        data = secret_address(server.address)
        arguments = flags(data, tmp_path / "run", **options)
        finished = train(tmp_path, *arguments)
        assert finished.returncode == 0, finished.stderr
        assert "train_000001.bin: expected the file, found " in finished.stderr
        run_dir = tmp_path / "run"
        recorded = json.loads((run_dir / "train_config.json").read_text())
        assert recorded["data"] == server.address
        # The trackers had their say, and TensorBoard only numbers.
        metadata = list(run_dir.glob("wandb/offline-run-*/**/wandb-metadata.json"))
        assert metadata or list(run_dir.glob("wandb/offline-run-*/*.wandb"))
        hparams = [path.read_text() for path in (run_dir / "tensorboard").rglob("hparams.yml")]
        assert hparams and not any("http" in text or "run" in text for text in hparams)

        # Who goes on by what was recorded is asked for them again.
        options["max_steps"] = 3
        again = flags(recorded["data"], run_dir, resume="auto", **options)
        finished = train(tmp_path, *again)
        assert finished.returncode == 1
        message = "HTTP status 401; check the address and your credentials"
        assert message in error_in(finished.stderr)
        again = flags(data, run_dir, resume="auto", **options)
        assert train(tmp_path, *again).returncode == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "expected the file, found none; check the address"),
        ({"max_steps": 0}, "expected a number above 0"),
        ({"data": "{0},{0}"}, "expected each source of --data once, found http://"),
        ({"data": "{0}:0.5,x:0.6"}, "expected weights of --data that sum to 1"),
        ({"init_from": "{0}"}, "expected "),
        ({"lambada_data": "{0}"}, "expected "),
        ({"sed": 1}, "unknown flag --sed; did you mean --seed?"),
    ],
)
def test_no_failure_of_training_shows_a_secret(call, monkeypatch, tmp_path, changes, expected):
    (tmp_path / "empty").mkdir()
    with serve(tmp_path / "empty") as server:
        guard(server)
        address = secret_address(server.address)
        changes = {name: str(value).format(address) for name, value in changes.items()}
        data = changes.pop("data", address)
        arguments = flags(data, tmp_path / "run", data_cache=tmp_path / "cache", **changes)
        code, shown = call(lambda: run_here(monkeypatch, *arguments))
    assert code != 0 and expected in error_in(shown)


@pytest.mark.parametrize("name", ["dataset", "tokenizer", "push_to_hub", "output_dir", "seed"])
def test_preparation_records_and_prints_no_secret(call, tmp_path, name):
    (tmp_path / "documents.txt").write_text("<|endoftext|>".join(["one two three"] * 50))
    values = {"dataset": tmp_path / "documents.txt", "output_dir": tmp_path / "out"}
    values |= {"tokenizer": "bytes", name: secret_address("http://127.0.0.1:9/d")}
    if name == "output_dir":
        values["output_dir"] = f"{tmp_path}/" + values["output_dir"]
    arguments = [part for pair in values.items() for part in (f"--{pair[0]}", pair[1])]
    code, shown = call(exit_of(prepare_data.main), *arguments)
    if name == "output_dir":  # a strange name, without what may have been a secret
        assert code in (0, None), shown
    else:
        assert code != 0 and shown


def test_an_evaluation_records_and_prints_no_secret(call, small_data, tmp_path):
    address = secret_address("http://127.0.0.1:9/d")
    options = ["--output_dir", tmp_path / "out", "--tasks", "val", "lambada"]
    for data in (address, small_data):
        more = ["--models", address, "--val_data", data, "--lambada_data", address]
        code, _ = call(exit_of(compare.main), *options, *more, "--limit", 1)
        assert code == 1
        assert "127.0.0.1:9/d" in (tmp_path / "out" / "results.json").read_text()
    code, shown = call(exit_of(compare.main), *options, "--models", "x", "--limit", address)
    assert code == 2 and " error: --limit: expected a whole number, found 'http:" in shown


@pytest.mark.parametrize("command", ["verify", "adopt", "inspect"])
def test_no_look_at_shards_shows_a_secret(call, command):
    address = secret_address("http://127.0.0.1:9/d")
    code, shown = call(exit_of(lambda: shards.main([command, address])))
    assert code == 1 and "127.0.0.1:9/d: expected " in shown
