"""Runs that are continued, after Ctrl-C at any moment or without some of their checkpoints.

Ctrl-C in a terminal: one line, and its command goes on to the same result.
"""

import json
import random
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from support.terminal import terminal
from support.training_runs import curve as steps_of
from support.training_runs import flags, launch, refusal, run_here

from modeling_gpt2scratch.common.command_line import parse_config
from modeling_gpt2scratch.tracking.metrics import read_metrics
from modeling_gpt2scratch.training import continuation
from modeling_gpt2scratch.training.configuration import RUN_MARKER, TrainConfig
from modeling_gpt2scratch.training.directory import OutputLock

OPTIONS = {"max_steps": 40, "save_every": 8, "eval_every": 20, "log_every": 5, "dropout": 0}
# What the terminal shows when a moment is near; each comes only if those before it have passed.
MOMENTS = (
    *("loading torch", "opening the data", "making the model", "trying everything", "training:"),
    *("step 5:", "saving", "validating", "step 30:", "writing the report"),
)
SECONDS = 0.4  # after which one presses at the latest
CONFIGS = "--config_file accelerate_configs/"
OURS = "python -m modeling_gpt2scratch launch"


def as_run(command: str) -> list[str]:
    """A command as the tests start it: with the interpreter of this environment."""
    first, *rest = shlex.split(command)
    directory = Path(sys.executable).parent
    return [sys.executable if first == "python" else str(directory / first), *rest]


def curve(output_dir: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm of the steps that are logged whatever happens."""
    rows = read_metrics(output_dir / "metrics.jsonl")
    every = OPTIONS["log_every"]
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in rows if r["step"] % every == 0}


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory) -> dict[int, tuple[float, float]]:
    """The curve of the run that nobody interrupts."""
    output_dir = tmp_path_factory.mktemp("whole") / "run"
    assert launch(*flags(small_data, output_dir, **OPTIONS)).returncode == 0
    return curve(output_dir)


def interrupt(command: str, moment: str, seconds: float) -> tuple[int, str]:
    """Exit code and output, from Ctrl-C on, of a command at which one presses it at a moment."""
    with terminal(as_run(command)) as shown:
        if shown.wait_for(moment):
            shown.go_on_for(seconds)
            shown.press_ctrl_c()
        return shown.wait(), shown.output


@pytest.mark.gate
@pytest.mark.parametrize(
    ("start", "n_times", "code"),
    [
        ("python", 6, 130),
        (f"{OURS} {CONFIGS}cpu_2proc.yaml", 2, 130),
        # Accelerate's own launcher adds a traceback, and dies of the signal.
        (f"accelerate launch {CONFIGS}cpu.yaml", 2, -2),
    ],
)
def test_ctrl_c_at_any_moment_is_one_line_whose_command_goes_on(
    small_data, tmp_path, whole, start, n_times, code
):
    arguments = flags(small_data, tmp_path / "run", **OPTIONS)
    command = f"{start} train_accelerate.py {shlex.join(arguments)}"
    generator, n_interrupted = random.Random(start), 0
    for moment in generator.sample(MOMENTS, n_times):
        found_code, output = interrupt(command, moment, generator.uniform(0, SECONDS))
        if found_code == 0:  # too late
            continue
        n_interrupted += 1
        assert found_code == code, output
        (line,) = re.findall(r"^.*train_accelerate\.py: (.*)\r$", output, re.MULTILINE)
        said, _, advice = line.partition("; go on with: ")
        assert re.fullmatch(r"interrupted|stopped after step \d+|stopped before .*", said), output
        assert "modeling_gpt2scratch" not in output.replace(line, ""), (
            output
        )  # no traceback of ours
        assert start.startswith("accelerate") or not re.search("Traceback|death signal", output)
        assert advice.startswith(command), output
        command = advice
    assert n_interrupted
    with terminal(as_run(command)) as shown:
        assert shown.wait() == 0, shown.output
    found = curve(tmp_path / "run")
    assert found.keys() == whole.keys()
    for step, (loss, norm) in whole.items():
        if "2proc" in start:  # sums in another order, to which norms are more sensitive
            loss, norm = pytest.approx(loss, rel=1e-4), pytest.approx(norm, rel=1e-2)
        assert found[step] == (loss, norm)


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """The command that goes on with a run which has left some files, if it was begun like this."""

    def command(files: dict[str, str], **changes) -> str:
        typed = "python train_accelerate.py x.yaml" + " --overwrite" * ("overwrite" in changes)
        monkeypatch.setattr(continuation, "started_as", lambda: typed)
        values = {"data": "d", "output_dir": str(tmp_path / "run"), "model": "tiny"} | changes
        config = TrainConfig(**values, total_batch_tokens=1024)
        to_type = continuation.continuing_command(config)
        (tmp_path / "run").mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / "run" / f".{name}").write_text(text)
            (tmp_path / "run" / f".{name}").rename(tmp_path / "run" / name)
        return to_type().removeprefix("python train_accelerate.py ")

    return command


BEGUN = {RUN_MARKER.name: json.dumps(RUN_MARKER.content())}
SAVED = BEGUN | {"latest": "checkpoint-4\n"}


def test_a_run_goes_on_by_the_same_command_until_it_has_a_checkpoint(interrupted):
    assert interrupted({}) == "x.yaml"
    assert interrupted(BEGUN) == "x.yaml --overwrite"
    off = "--overwrite false --resume auto"  # also where a recipe says overwrite
    assert interrupted(SAVED, overwrite=True) == f"x.yaml --overwrite {off}"
    # Now there is a run in the directory, which this one has not replaced yet, or has.
    assert interrupted({}, overwrite=True) == "x.yaml --overwrite"
    assert interrupted(BEGUN, overwrite=True) == "x.yaml --overwrite"
    assert interrupted(SAVED, overwrite=True) == f"x.yaml --overwrite {off}"


def test_a_resumed_run_goes_on_by_its_own_command(interrupted):
    assert interrupted(BEGUN, resume="auto") == interrupted(SAVED, resume="auto") == "x.yaml"


def test_a_branch_goes_on_from_its_own_checkpoint_once_it_has_one(interrupted, tmp_path):
    assert interrupted({}, resume="elsewhere") == "x.yaml"
    assert interrupted(BEGUN, resume="elsewhere") == "x.yaml --overwrite"
    shutil.rmtree(tmp_path / "run")
    assert interrupted(SAVED, resume="elsewhere") == "x.yaml --resume auto"


@pytest.mark.parametrize("typed", ["--overwrite", "--overwrite yes", "--overwrite=true", ""])
def test_a_run_that_goes_on_replaces_nothing(tmp_path, typed):
    (tmp_path / "x.yaml").write_text(f"data: d\noutput_dir: {tmp_path}/run\noverwrite: true\n")
    argv = [str(tmp_path / "x.yaml"), *typed.split(), "--overwrite", "false", "--resume", "auto"]
    config = parse_config(TrainConfig, description=None, argv=argv)
    assert (config.overwrite, config.resume) == (False, "auto")


@pytest.mark.parametrize("left", ["latest", "model.safetensors"])
def test_a_run_without_its_checkpoints_is_not_begun_anew(
    finished, small_data, tmp_path, monkeypatch, capsys, left
):
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("checkpoint-*"))
    (run / ({"latest", "model.safetensors"} - {left}).pop()).unlink()
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    code, error = refusal(monkeypatch, capsys, *flags(small_data, run, resume="auto", seed=5))
    wanted = "checkpoint-12" if left == "latest" else "a checkpoint"
    assert code == 1
    assert f"{run}: expected {wanted} to resume from, found a run without complete" in error
    assert error.endswith("put it back, or start in another directory")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_missing_newest_checkpoint_is_named(run_copy, small_data, monkeypatch, capsys):
    (run_copy / "latest").write_text("checkpoint-12")
    assert run_here(monkeypatch, *flags(small_data, run_copy, resume="auto")) == 0
    warning = f"{run_copy}: expected checkpoint-12, which `latest` names, found no such complete"
    assert f"{warning} checkpoint; trying checkpoint-8" in capsys.readouterr().err
    assert max(steps_of(run_copy)) == 12


@pytest.mark.parametrize("resume", ["none", "auto"])
def test_a_run_that_was_made_while_this_one_started_is_kept(
    finished, small_data, tmp_path, monkeypatch, capsys, resume
):
    run, acquire = tmp_path / "run", OutputLock.acquire

    def acquire_late(self):
        shutil.copytree(finished, run)
        acquire(self)

    monkeypatch.setattr(OutputLock, "acquire", acquire_late)
    arguments = flags(small_data, run, resume=resume, seed=5, max_steps=3)
    code, error = refusal(monkeypatch, capsys, *arguments)
    assert code == 2
    assert f"expected no other run in {run}, found one that was made while this one was" in error
    for path in finished.iterdir():
        if path.is_file() and path.name != "run.lock":
            assert (run / path.name).read_bytes() == path.read_bytes()
