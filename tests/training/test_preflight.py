"""What is found out before the first step, and what is left alone until then."""

import copy
import json
import math
import shutil
from dataclasses import asdict

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from support.tiny_models import tiny_model
from support.training_runs import flags, run_here

from modeling_gpt2scratch.data.loading.loader import ShardLoader, TokenWindows
from modeling_gpt2scratch.distributed.processes import LaunchError
from modeling_gpt2scratch.training import banner, preflight, run
from modeling_gpt2scratch.training.banner import surprises
from modeling_gpt2scratch.training.checks import MAY_CHANGE, MEASURED_WITH
from modeling_gpt2scratch.training.configuration import TrainConfig
from modeling_gpt2scratch.training.preflight import (
    require_launch,
    surprises_of_loss,
    surprises_of_saving,
    try_one_batch,
)


@pytest.fixture
def accelerator():
    """An Accelerator of one process on the CPU."""
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def loader(small_data):
    """Micro-batches of two rows of eight tokens."""
    windows = TokenWindows(small_data, "train", sequence_length=8)
    return ShardLoader(windows, rows_per_step=4, micro_batch_size=2)


def test_a_batch_is_tried_and_leaves_weights_gradients_and_the_mode_as_they_were(
    accelerator, loader
):
    torch.manual_seed(0)
    model = tiny_model(vocab_size=300).train()
    before = copy.deepcopy(model.state_dict())
    loss = try_one_batch(model, loader, accelerator, step=3)
    assert loss == pytest.approx(model(**loader.batch(3, 0)).loss.item())
    assert loss == pytest.approx(math.log(300), abs=0.2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters()) and model.training


def test_a_model_that_is_lost_already_is_refused(accelerator, loader):
    model = tiny_model(vocab_size=300)
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(math.nan)
    damage = "found nan; the weights transformer.ln_f.weight are not finite"
    with pytest.raises(LaunchError, match=f"expected a finite loss on the first batch, {damage}"):
        try_one_batch(model, loader, accelerator, step=0)


def test_a_parameter_without_a_gradient_is_refused_by_name(accelerator, loader):
    model = tiny_model(vocab_size=300)
    model.unused = torch.nn.Linear(2, 2)
    with pytest.raises(LaunchError, match=r"for every parameter, found none for unused\.weight"):
        try_one_batch(model, loader, accelerator, step=0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        RuntimeError("MPS backend out of memory (tried to allocate 2 GiB"),
    ],
)
def test_a_micro_batch_that_does_not_fit_says_what_to_do(accelerator, loader, error):
    def forward(**batch):
        raise error

    with pytest.raises(LaunchError, match=r"2 rows to fit .*; give a --micro_batch_size below 2$"):
        try_one_batch(forward, loader, accelerator, step=0)
    loader.micro_batch_size = 1
    with pytest.raises(LaunchError, match=r"2 GiB; try --activation"):
        try_one_batch(forward, loader, accelerator, step=0)


def test_processes_that_were_started_with_other_arguments_are_refused(
    accelerator, tmp_path, monkeypatch
):
    options = {"data": "d", "output_dir": str(tmp_path), "learning_rate": 1e-3}

    def require_same(**changes):
        """Compares our arguments with those of a process 1, which was started with changes."""
        sent = []
        monkeypatch.setattr(preflight, "gather_object", lambda own: sent.extend(own) or own)
        require_launch(TrainConfig(**options | changes), accelerator)
        monkeypatch.setattr(preflight, "gather_object", lambda own: own + sent)
        require_launch(TrainConfig(**options), accelerator)

    require_same()
    require_same(data="elsewhere", output_dir=str(tmp_path / "own"))
    for changes, message in (
        ({"learning_rate": 2e-3}, "--learning_rate on all processes, found 0.001 on process 0 and"),
        ({"seed": 1}, "the same --seed on all processes, found 0 on process 0 and 1 on process 1;"),
        (
            {"resume": "auto"},
            "the same --resume on all processes, found none on process 0 and auto",
        ),
    ):
        with pytest.raises(LaunchError, match=message):
            require_same(**changes)


def test_a_launch_that_the_arguments_do_not_fit_is_refused(accelerator, tmp_path, monkeypatch):
    options = {"data": "d", "output_dir": str(tmp_path)}
    with pytest.raises(LaunchError, match="expected 8 processes as --expect_processes says"):
        require_launch(TrainConfig(**options, expect_processes=8), accelerator)
    require_launch(TrainConfig(**options, compile="model", expect_processes=1), accelerator)
    monkeypatch.setattr(accelerator.state, "distributed_type", DistributedType.FSDP)
    with pytest.raises(LaunchError, match="expected --compile blocks under FSDP2"):
        require_launch(TrainConfig(**options, compile="model"), accelerator)


def test_a_first_loss_far_above_that_of_fresh_weights_is_said():
    assert surprises_of_loss(math.log(300) + 0.3, 300) == []
    (sentence,) = surprises_of_loss(9.0, 300)
    assert sentence == "the first loss is 9.00; fresh weights should give about 5.70"


def test_a_save_that_the_launcher_may_not_wait_for_is_said(monkeypatch):
    assert surprises_of_saving(40.0) == []  # no launcher that kills
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert surprises_of_saving(5.0) == []
    (note,) = surprises_of_saving(40.0)
    assert "took 40 s" in note and "kills its processes 30 s after" in note
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=160" in note
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "160")
    assert surprises_of_saving(40.0) == []


def test_a_machine_on_which_others_compute_is_said(monkeypatch):
    monkeypatch.setattr(banner, "n_cores", lambda: 2)
    monkeypatch.setattr(banner, "load_of_others", lambda: 1.0)
    assert banner.surprises_of_load() == []
    monkeypatch.setattr(banner, "load_of_others", lambda: 2.0)
    (note,) = banner.surprises_of_load()
    assert "other programs kept 2 busy" in note
    monkeypatch.setattr(banner, "load_of_others", lambda: 7.0)
    (note,) = banner.surprises_of_load()
    assert note.startswith("this machine has 2 cores, and other programs kept 7 busy when")


def arguments_of(config, accelerator):
    """As a checkpoint has them."""
    return asdict(config) | {"mixed_precision": accelerator.mixed_precision}


def test_arguments_that_shape_the_losses_and_change_at_a_resume_are_said(accelerator, tmp_path):
    first = TrainConfig(data="d", output_dir=str(tmp_path), learning_rate=1e-3, max_steps=100)
    then = TrainConfig(data="d", output_dir=str(tmp_path), learning_rate=6e-4, max_steps=200)
    before = arguments_of(first, accelerator)
    notes = banner.surprises_of_resuming(
        then, accelerator, json.loads(json.dumps(before)), was_done=False
    )
    assert notes[0] == "--learning_rate was 0.001 until here, and is 0.0006 from here on"
    changed = [note.split()[0].removeprefix("--") for note in notes]
    assert changed == ["learning_rate", "warmup_steps", "min_learning_rate", "max_steps"]
    assert notes[2].endswith(" was 0.0001 until here, and is 6e-05 from here on")
    assert banner.surprises_of_resuming(first, accelerator, before, was_done=False) == []
    assert banner.surprises_of_resuming(first, accelerator, {}, was_done=False) == []
    shorter = before | {"max_steps": 200}  # a killed run, which now ends where it is
    (note,) = banner.surprises_of_resuming(first, accelerator, shorter, was_done=True)
    assert note == "--max_steps was 200 until here, and is 100 from here on"
    elsewhere = before | {"mixed_precision": "bf16"}  # where "auto" meant this
    (note,) = banner.surprises_of_resuming(first, accelerator, elsewhere, was_done=False)
    assert note == "--mixed_precision was bf16 until here, and is no from here on"
    unknown = before | {"mixed_precision": "auto"}
    assert banner.surprises_of_resuming(first, accelerator, unknown, was_done=False) == []


def test_whatever_shapes_the_losses_and_changes_at_a_resume_is_said(accelerator, tmp_path):
    base = {"data": "d", "output_dir": str(tmp_path), "optimizer": "muon", "schedule": "wsd"}
    base |= {"max_steps": 100, "warmup_steps": 5, "decay_steps": 50, "min_learning_rate": 0.0}
    changes = {
        **{"learning_rate": 1e-3, "muon_learning_rate": 1e-3, "schedule": "cosine"},
        **{"max_steps": 90, "warmup_steps": 6, "decay_steps": 40, "min_learning_rate": 1e-6},
        **{"weight_decay": 0.2, "max_grad_norm": 2.0, "eval_tokens": 1_000},
        "eval_tasks_limit": 7,
    }
    base["eval_tasks"] = ["lambada"]
    assert {*changes, "mixed_precision"} == {*MAY_CHANGE, *MEASURED_WITH, "max_steps"}
    for name, value in changes.items():
        base_of = base if name != "learning_rate" else base | {"muon_learning_rate": 3e-4}
        first, then = TrainConfig(**base_of), TrainConfig(**base_of | {name: value})
        before = arguments_of(first, accelerator)
        (note,) = banner.surprises_of_resuming(then, accelerator, before, was_done=False)
        assert note.startswith(f"--{name} was ")
        # Of a run that was done, no step is made with the new value; it may end earlier.
        notes = banner.surprises_of_resuming(then, accelerator, before, was_done=True)
        assert bool(notes) == (name in (*MEASURED_WITH, "max_steps"))


def test_positions_that_no_row_reaches_are_said(accelerator, tmp_path):
    values = {"data": "d", "output_dir": str(tmp_path), "total_batch_tokens": 1024}
    config = TrainConfig(**values, sequence_length=256)
    (note,) = surprises(config, accelerator, tiny_model(), has_validation=True)
    assert note.startswith("positions from 256 on are not trained; ")


@pytest.mark.parametrize(("patience", "is_said"), [(0, False), (4, False), (5, True)])
def test_patience_that_outlasts_the_run_is_said(accelerator, tmp_path, patience, is_said):
    values = {"max_steps": 100, "eval_every": 20, "patience": patience}
    config = TrainConfig(data="d", output_dir=str(tmp_path), **values)
    notes = surprises(config, accelerator, tiny_model(), has_validation=True)
    expected = "--patience 5 never ends this run early, which has 5 validations"
    assert notes == [expected] * is_said


def test_a_large_model_on_a_cpu_is_said(accelerator, tmp_path, monkeypatch):
    config = TrainConfig(data="d", output_dir=str(tmp_path))
    model = tiny_model()
    options = {"has_validation": True}
    assert surprises(config, accelerator, model, **options) == []
    monkeypatch.setattr(model, "num_parameters", lambda: 124_439_808)
    (note,) = surprises(config, accelerator, model, **options)
    assert note.startswith("torch finds no GPU, so this model trains on the CPU; ")


def test_data_without_a_validation_split_is_said(accelerator, tmp_path):
    config = TrainConfig(data="d", output_dir=str(tmp_path), total_batch_tokens=1024)
    notes = {
        has: surprises(config, accelerator, tiny_model(), has_validation=has)
        for has in (True, False)
    }
    assert notes[True] == []
    assert len(notes[False]) == 1 and "no validation split" in notes[False][0]


@pytest.fixture
def overwriting(run_copy, small_data):
    """The command line of another run in the directory of one."""
    return [*flags(small_data, run_copy, max_steps=1), "--overwrite"]


def content_of(directory) -> dict:
    """Every file but the lock, byte by byte, and every folder."""
    paths = [path for path in directory.rglob("*") if path.name != "run.lock"]
    return {path.relative_to(directory): path.is_file() and path.read_bytes() for path in paths}


@pytest.mark.parametrize("error", [LaunchError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("place", [(run, "start_trackers"), (preflight, "try_one_batch")])
def test_a_run_that_cannot_begin_leaves_the_one_that_it_was_to_replace(
    run_copy, overwriting, monkeypatch, place, error
):
    before = content_of(run_copy)

    def fail(*arguments, **options):
        assert not (run_copy / "checkpoint-8").exists()
        raise error("cannot begin")

    with monkeypatch.context() as patch:
        patch.setattr(*place, fail)
        try:
            assert run_here(patch, *overwriting) != 0
        except KeyboardInterrupt:
            assert error is KeyboardInterrupt
    assert content_of(run_copy) == before
    assert run_here(monkeypatch, *overwriting) == 0
    assert not (run_copy / ".replaced").exists() and (run_copy / "checkpoint-1").is_dir()


def test_what_a_killed_process_had_set_aside_comes_back_if_the_next_cannot_begin(
    run_copy, overwriting, monkeypatch
):
    before = content_of(run_copy)

    # As after a kill: all is set aside, and a second run has written its first files.
    aside = run_copy / ".replaced"
    aside.mkdir()
    for path in [path for path in run_copy.iterdir() if path.name not in (".replaced", "run.lock")]:
        path.rename(aside / path.name)
    shutil.copy(aside / "train_config.json", run_copy / "train_config.json")
    (run_copy / "metrics.jsonl").write_text("{}\n")
    with monkeypatch.context() as patch:
        patch.setattr(preflight, "try_one_batch", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_here(patch, *overwriting)
    assert content_of(run_copy) == before
    assert run_here(monkeypatch, *overwriting) == 0
    assert not aside.exists()
