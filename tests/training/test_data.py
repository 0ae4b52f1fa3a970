"""The data of a run: mixtures, remote sources, documents kept apart, and what is refused."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.evaluation import tiny_tokenizer
from support.servers.faulty_server import corrupt, drop, serve, status
from support.token_directories import write_ours, write_shard
from support.training_runs import curve, flags, launch, refusal, run_here

from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.data.loading import remote_files
from modeling_gpt2scratch.data.loading.loader import model_inputs
from modeling_gpt2scratch.data.shards.directory import open_shard
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.samples import Selection
from modeling_gpt2scratch.evaluation.tasks.validation import DocumentMaskTask
from modeling_gpt2scratch.tracking.metrics import read_metrics
from modeling_gpt2scratch.training import data as training_data
from modeling_gpt2scratch.training.configuration import TrainConfig
from modeling_gpt2scratch.training.data import TrainingData, _short_names
from modeling_gpt2scratch.training.model import make_model

QUIET = {"eval_every": 0, "save_every": 0}


@pytest.fixture
def other_data(small_data, tmp_path) -> Path:
    """The small data set with the shards of its training split in the other order."""
    directory = shutil.copytree(small_data, tmp_path / "other")
    manifest = Manifest.load(directory)
    train = manifest.splits["train"]
    train = dataclasses.replace(train, shards=train.shards[::-1])
    dataclasses.replace(manifest, splits=manifest.splits | {"train": train}).save(directory)
    return directory


def config_of(data, tmp_path, **changes) -> TrainConfig:
    values = {"model": "tiny", "n_positions": 32, "total_batch_tokens": 512, "micro_batch_size": 4}
    return TrainConfig(data=str(data), output_dir=str(tmp_path / "run"), **(values | changes))


def identity_of(data, tmp_path, **changes) -> dict:
    return TrainingData(config_of(data, tmp_path, **changes)).identity()


@pytest.mark.slow
def test_a_run_on_remote_data_is_the_run_on_local_data(small_data, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(remote_files, "FIRST_PAUSE_SECONDS", 0.01)
    assert run_here(monkeypatch, *flags(small_data, tmp_path / "local", shuffle_shards=8)) == 0
    with serve(small_data) as server:
        server.faults["train_000001.bin"] = [drop, status(503), corrupt]
        server.faults["val_000000.bin"] = [corrupt]
        options = {"data_cache": tmp_path / "cache"}  # shuffle_shards is 8 by itself
        arguments = flags(server.address, tmp_path / "remote", **options)
        assert run_here(monkeypatch, *arguments) == 0
    assert "train_000001.bin: expected sha256" in capfd.readouterr().err
    assert curve(tmp_path / "remote") == curve(tmp_path / "local")
    local, remote = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("local", "remote"))
    assert [row.get("eval_loss") for row in local] == [row.get("eval_loss") for row in remote]
    assert all(0 <= row["data_wait"] <= 1 for row in local + remote)
    copy = (tmp_path / "remote" / "data_manifest.json").read_bytes()
    assert copy == (small_data / "manifest.json").read_bytes()


@pytest.mark.gate
def test_two_processes_share_a_cache_and_end_together_when_a_shard_is_lost(
    small_data, tmp_path, warm_commands
):
    options = {"data_cache": tmp_path / "cache", "dropout": 0} | QUIET
    data = shutil.copytree(small_data, tmp_path / "data")
    with serve(data) as server:
        arguments = flags(server.address, tmp_path / "one", **options)
        process = launch(*arguments, config="cpu_2proc.yaml", warm=warm_commands)
        assert process.returncode == 0, process.stderr
        for shard in Manifest.load(data).splits["train"].shards:
            assert server.requests[shard.file] == 1
        (data / "train_000001.bin").unlink()
        arguments = flags(server.address, tmp_path / "two", **options | {"data_cache": tmp_path})
        process = launch(*arguments, config="cpu_2proc.yaml")
        assert process.returncode == 1
        assert (
            "train_000001.bin: expected the file, found none; check the address" in process.stderr
        )


def test_a_mixture_logs_the_loss_of_each_source(small_data, other_data, tmp_path, monkeypatch):
    output_dir = tmp_path / "run"
    arguments = flags(f"{small_data}:0.75,{other_data}:0.25", output_dir, save_every=0, max_steps=6)
    assert run_here(monkeypatch, *arguments) == 0
    last = read_metrics(output_dir / "metrics.jsonl")[-1]
    # Both have the same held-out text.
    names = {f"eval_loss/{small_data.name}", f"eval_loss/{other_data.name}"}
    assert {name for name in last if name.startswith("eval_loss/")} == names
    for name in names:
        assert last["eval_loss"] == pytest.approx(last[name], abs=1e-6)
    assert not (output_dir / "data_manifest.json").exists()
    for number, data in enumerate((small_data, other_data), start=1):
        copy = output_dir / f"data_manifest-{number}.json"
        assert copy.read_bytes() == (data / "manifest.json").read_bytes()


def test_a_mixture_weighs_its_validation_losses(small_data, other_data, tmp_path):
    config = config_of(f"{small_data}:0.75,{other_data}:0.25", tmp_path, eval_tokens=1000)
    data = TrainingData(config)
    weights = {name: weight for name, (_, weight) in data.validation().items()}
    assert weights == {"shards": 0.75, "other": 0.25}
    (windows, _), *_ = data.validation().values()
    assert data.n_validation_windows(windows) == 500 // 32
    # A source that held nothing out has no say.
    manifest = Manifest.load(other_data)
    for entry in manifest.splits["val"].shards:
        (other_data / entry.file).unlink()
    dataclasses.replace(manifest, splits={"train": manifest.splits["train"]}).save(other_data)
    validation = TrainingData(config).validation()
    assert {name: weight for name, (_, weight) in validation.items()} == {"shards": 1}


def test_sources_are_called_by_the_end_of_their_address_numbered_if_that_is_one():
    addresses = ["hf://datasets/me/corpus/", "/home/me/other", "s3://b/corpus", "x/../last"]
    assert _short_names(addresses) == ["corpus-1", "other-2", "corpus-3", "last-4"]
    assert _short_names(["v1/a", "v2/a", "v3/a-1"]) == ["a-1", "a-2", "a-1-3"]


def test_sources_without_weights_weigh_by_their_size(small_data, other_data, tmp_path):
    manifest = Manifest.load(other_data)
    train = manifest.splits["train"]
    (left_out, *shards) = train.shards
    (other_data / left_out.file).unlink()
    n_tokens = train.n_tokens - left_out.n_tokens
    train = dataclasses.replace(train, shards=tuple(shards), n_tokens=n_tokens)
    dataclasses.replace(manifest, splits=manifest.splits | {"train": train}).save(other_data)
    data = TrainingData(config_of(f"{small_data},{other_data}", tmp_path))
    sizes = [len(windows) for windows in data.train]
    assert data.weights == [size / sum(sizes) for size in sizes] and sizes[1] < sizes[0]
    loader, _ = data.open(rank=0, world_size=1, micro_batch_size=4)
    # So every source has been read as often as the others.
    assert loader.epochs(100) == pytest.approx([100 * 16 / sum(sizes)] * 2, rel=1e-3)


def test_the_identity_of_a_plain_run_names_what_every_run_has(small_data, tmp_path):
    identity = identity_of(small_data, tmp_path)
    names = {name for name, value in identity.items() if value is not None}
    assert names == {"tokenizer", "order_version", "data"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shuffle_shards": 1}, "expected shuffle_shards = 1 as asked for now, found 0"),
        ({"document_mask": True}, "expected document_mask = True as asked for now, found False"),
        ({"optimizer": "muon"}, "expected optimizer = muon as asked for now, found adamw"),
    ],
)
def test_a_resumed_run_keeps_its_order(small_data, tmp_path, monkeypatch, capsys, changes, message):
    arguments = {"max_steps": 1} | QUIET
    assert run_here(monkeypatch, *flags(small_data, tmp_path / "run", **arguments)) == 0
    arguments |= changes | {"resume": "auto"}
    code, error = refusal(monkeypatch, capsys, *flags(small_data, tmp_path / "run", **arguments))
    assert code == 1 and message in error


def test_a_run_is_not_resumed_where_rows_would_read_other_tokens(
    small_data, tmp_path, monkeypatch, capsys
):
    arguments = flags(small_data, tmp_path / "run", max_steps=1, **QUIET)
    assert run_here(monkeypatch, *arguments) == 0
    monkeypatch.setattr(training_data, "ORDER_VERSION", 7)
    code, error = refusal(monkeypatch, capsys, *arguments, "--resume", "auto")
    assert code == 1 and "expected order_version = 7 as asked for now, found 2" in error


def test_the_order_of_sources_and_their_shares_are_part_of_a_runs_identity(
    small_data, other_data, tmp_path
):
    texts = (
        *(f"{small_data}:0.5,{other_data}:0.5", f"{small_data}:0.6,{other_data}:0.4"),
        *(f"{other_data}:0.5,{small_data}:0.5", f"{small_data}", f"{other_data}"),
    )
    identities = {json.dumps(identity_of(text, tmp_path)) for text in texts}
    assert len(identities) == 5


def test_position_ids_restart_where_a_document_begins():
    tokens = np.array([[5, 9, 1, 2, 9, 9, 3], [9, 1, 2, 3, 4, 5, 9]], dtype=np.uint16)
    batch = model_inputs(tokens, document_start=9)
    assert batch["input_ids"].tolist() == [[5, 9, 1, 2, 9, 9], [9, 1, 2, 3, 4, 5]]
    assert batch["shift_labels"].tolist() == [[9, 1, 2, 9, 9, 3], [1, 2, 3, 4, 5, 9]]
    assert batch["position_ids"].tolist() == [[0, 0, 1, 2, 0, 0], [0, 1, 2, 3, 4, 5]]
    assert all(ids.dtype == torch.int64 for ids in batch.values())


def test_masked_documents_have_the_losses_that_each_has_alone(small_data, tmp_path):
    data = TrainingData(config_of(small_data, tmp_path, document_mask=True))
    torch.manual_seed(0)
    model = make_model(data._config, manifest=data.manifest, tokenizer=data.tokenizer())
    model.eval()
    start = data.manifest.end_of_text_id
    tokens = np.array([[*range(10, 17), start, 7, 8, 9, start, *range(20, 30)]], dtype=np.uint16)
    with torch.no_grad():
        together = model(**model_inputs(tokens, document_start=start), use_cache=False).loss
        crossing = model(**model_inputs(tokens), use_cache=False).loss
        alone = [
            model(**model_inputs(tokens[:, first : last + 1])).loss * (last - first)
            for first, last in ((0, 7), (7, 11), (11, 21))
        ]
    assert together.item() == pytest.approx(sum(alone).item() / 21, abs=1e-5)
    assert abs(crossing.item() - together.item()) > 1e-4


def test_a_run_with_masked_documents_trains(small_data, tmp_path, monkeypatch):
    options = {"max_steps": 2, "dropout": 0, "eval_every": 2, "eval_tokens": 10**6, "save_every": 0}
    curves = []
    for extra in ([], ["--document_mask", "True"]):
        output_dir = tmp_path / f"run{len(extra)}"
        assert run_here(monkeypatch, *flags(small_data, output_dir, **options), *extra) == 0
        curves.append(curve(output_dir))
    assert curves[0].keys() == curves[1].keys()
    assert curves[0][2] != curves[1][2]
    model = GPT2ScratchForCausalLM.from_pretrained(output_dir)
    scorer = CausalScorer(model.eval(), load_tokenizer(str(output_dir)), batch_tokens=256)
    task = DocumentMaskTask.load(Selection(place=str(small_data)))
    measured = task.evaluate(scorer).estimates["loss"].value
    logged = read_metrics(output_dir / "metrics.jsonl")[-1]["eval_loss"]
    assert measured == pytest.approx(logged, abs=1e-5)


def test_a_bad_id_ends_a_run_in_one_line_that_names_its_shard(
    small_data, tmp_path, monkeypatch, capsys
):
    data = shutil.copytree(small_data, tmp_path / "data")
    for entry in Manifest.load(data).splits["train"].shards:
        write_shard(data / entry.file, np.full(entry.n_tokens, 301), vocab_size=300)
    code, error = refusal(monkeypatch, capsys, *flags(data, tmp_path / "run"))
    assert code == 1 and "train_00000" in error
    assert "expected ids below 300, found 301 at token 0; prepare the data again" in error


@pytest.mark.gate
def test_a_fault_that_only_the_second_process_meets_is_told_and_ends_both(small_data, tmp_path):
    data = shutil.copytree(small_data, tmp_path / "data")
    training_data = TrainingData(config_of(data, tmp_path))
    (order,) = training_data.open(rank=1, world_size=2, micro_batch_size=4)[0]._orders
    # In step 3, the second process reads rows 52 to 55 first.
    ((_, _, windows),) = order.windows(np.array([53], dtype=np.uint64))
    position = int(windows[0]) * 32 + 7
    for entry in Manifest.load(data).splits["train"].shards:
        if 0 <= position < entry.n_tokens:
            path = data / entry.file
            tokens = open_shard(path, entry, vocab_size=300).copy()
            tokens[position] = 60_000
            write_shard(path, tokens, vocab_size=300)
        position -= entry.n_tokens
    process = launch(*flags(data, tmp_path / "run", **QUIET), config="cpu_2proc.yaml")
    assert process.returncode == 1
    errors = [line for line in process.stderr.splitlines() if ": error: " in line]
    # The other process is told that this one has ended, and may say so.
    own = [line for line in errors if "has ended; see its own message" not in line]
    assert len(own) == 1 and "expected ids below 300, found 60000" in own[0]
    assert max(curve(tmp_path / "run")) == 3


def test_sources_with_different_tokenizers_are_refused_by_name(small_data, other_data, tmp_path):
    manifest = Manifest.load(other_data)
    tokenizer = {"name": "bpe:301", "fingerprint": "0" * 64}
    dataclasses.replace(manifest, tokenizer=tokenizer).save(other_data)
    with pytest.raises(ShardError) as caught:
        TrainingData(config_of(f"{small_data}:0.5,{other_data}:0.5", tmp_path))
    message = str(caught.value)
    assert f"{small_data} (bpe:300) and {other_data} (bpe:301)" in message


def test_each_machine_verifies_all_of_its_own_copy(small_data, tmp_path, monkeypatch):
    # Process 5 of 8, the second of two on its machine.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    place = SimpleNamespace(local_process_index=1)
    monkeypatch.setattr(training_data, "PartialState", lambda: place)
    shares = []
    monkeypatch.setattr(
        training_data.TokenWindows, "verify", lambda _, *share: shares.append(share)
    )
    config = TrainConfig(
        data=str(small_data),
        output_dir=str(tmp_path),
        total_batch_tokens=640,
        sequence_length=40,
        verify="full",
    )
    TrainingData(config).open(rank=5, world_size=8, micro_batch_size=1)
    assert shares == [(1, 2)] * 2  # of the training and the validation split


def test_a_corpus_smaller_than_a_step_is_refused(small_data, tmp_path):
    n_windows = len(TrainingData(config_of(small_data, tmp_path)).train[0])
    config = config_of(
        small_data, tmp_path, total_batch_tokens=(n_windows + 1) * 32, micro_batch_size=1
    )
    message = rf"the {n_windows + 1} rows of a step, found {n_windows} of 32 tokens; lower --total"
    with pytest.raises(ShardError, match=message):
        TrainingData(config).open(rank=0, world_size=1, micro_batch_size=1)
    config = dataclasses.replace(config, total_batch_tokens=n_windows * 32)
    TrainingData(config).open(rank=0, world_size=1, micro_batch_size=1)


def test_held_out_text_shorter_than_a_row_is_no_matter_if_nobody_looks_at_it(tmp_path):
    write_ours(tmp_path / "data", tiny_tokenizer(), val=["short"])
    share = {"rank": 0, "world_size": 1, "micro_batch_size": 1}
    values = {"total_batch_tokens": 32, "micro_batch_size": 1}
    for eval_every, message in ((0, None), (1, "hold more out, or lower --sequence_length$")):
        data = TrainingData(config_of(tmp_path / "data", tmp_path, eval_every=eval_every, **values))
        with pytest.raises(ShardError, match=message) if message else contextlib.nullcontext():
            data.open(**share)


def test_a_cache_too_small_for_two_groups_is_refused_with_the_size_it_needs(small_data, tmp_path):
    entries = Manifest.load(small_data).splits
    needed = sum(1024 + 2 * shard.n_tokens for split in entries.values() for shard in split.shards)
    gb = -(-needed // 10**7) / 100
    assert gb == 0.01
    with serve(small_data) as server:
        options = {"data_cache": str(tmp_path / "cache"), "data_cache_gb": (needed - 1) / 10**9}
        data = TrainingData(config_of(server.address, tmp_path, **options))
        with pytest.raises(ShardError, match=r"--data_cache_gb of at least 0\.01 for two groups"):
            data.open(rank=0, world_size=1, micro_batch_size=4)
        data.close()
        data = TrainingData(
            config_of(server.address, tmp_path, **options | {"data_cache_gb": needed / 10**9})
        )
        data.open(rank=0, world_size=1, micro_batch_size=4)
        data.close()
