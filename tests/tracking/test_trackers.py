"""Trackers beside metrics.jsonl: what they are given, and that a run survives their failures."""

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from support.paths import REPOSITORY
from support.processes import run_on_two

from modeling_gpt2scratch.tracking import trackers
from modeling_gpt2scratch.tracking.metrics import EventLog, JsonlTracker, read_metrics
from modeling_gpt2scratch.tracking.trackers import TrackerError, start_trackers

KEY = "k" * 40
VALUES = {"loss": 2.5, "sample": "once upon a time"}


class Failing(GeneralTracker):
    """A tracker whose method called `at` raises."""

    name = "wandb"
    requires_logging_directory = False
    tracker = None
    run_id = "abc"

    def __init__(self, at: str):
        super().__init__()
        self.calls = []
        for method in ("start", "store_init_configuration", "log", "finish"):
            setattr(self, method, lambda *_, name=method, **__: self._call(name, at))

    def _call(self, name: str, at: str) -> None:
        self.calls.append(name)
        if name == at:
            raise RuntimeError(f"no\n{name}")


class FakeWandb(SimpleNamespace):
    """As much of wandb as its tracker uses: it writes down what it is asked for."""

    def __init__(self, *, mode="online", logged_in=True, reachable=True):
        self.asked = []
        self.errors = SimpleNamespace(CommError=ConnectionError)
        self._logged_in, self._reachable = logged_in, reachable
        self.config = SimpleNamespace(update=lambda values, **_: None)
        self._settings = SimpleNamespace(mode=mode)

    def Settings(self, **settings):
        assert settings["init_timeout"] <= 30
        return settings

    def setup(self):
        return SimpleNamespace(settings=self._settings)

    def login(self, *, prompt, verify):
        assert not prompt
        return self._logged_in

    def init(self, **kwargs):
        self.asked.append(kwargs)
        if not self._reachable and kwargs.get("mode") != "offline":
            raise ConnectionError("no such host")
        nothing = lambda *_, **__: None  # noqa: E731
        methods = {"define_metric": nothing, "log": nothing, "finish": nothing}
        return SimpleNamespace(id=kwargs["id"] or "new", dir="run-1/files", **methods)


# One of several processes, of which only the first knows that there is no TensorBoard.
SCRIPT = """
import json, sys
from pathlib import Path
from accelerate import Accelerator
from modeling_gpt2scratch.tracking.metrics import JsonlTracker
from modeling_gpt2scratch.tracking.trackers import TrackerError, start_trackers
outcome = []
for module in ("torch.utils.tensorboard", "tensorboardX"):
    sys.modules[module] = None
for strict in (False, True):
    accelerator = Accelerator(cpu=True)
    jsonl = JsonlTracker(Path("metrics.jsonl"), resume_step=int(strict))
    values = {"project": "p", "output_dir": "x", "arguments": {}, "strict": strict}
    try:
        start_trackers(accelerator, ["tensorboard"], **values, jsonl=jsonl, saved={})
        accelerator.log({"loss": 1.0}, step=1)
        outcome.append("started")
    except TrackerError as error:
        outcome.append(str(error))
Path(f"rank{accelerator.process_index}.json").write_text(json.dumps(outcome))
accelerator.end_training()
"""


def start(output_dir: Path, name: str, *, saved=None, strict=False, resume_step=0):
    """An Accelerator whose trackers are started, and the identities to be saved."""
    output_dir.mkdir(exist_ok=True)
    jsonl = JsonlTracker(output_dir / "metrics.jsonl", resume_step=resume_step)
    accelerator = Accelerator(cpu=True)
    ids = start_trackers(
        accelerator,
        [name],
        project="gpt2scratch",
        output_dir=str(output_dir),
        arguments={"learning_rate": 6e-4, "report_to": [name], "init_from": None},
        strict=strict,
        jsonl=jsonl,
        saved=saved or {},
    )
    return accelerator, ids


def records_of(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    content, position, record = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left_in_block = 32_768 - position % 32_768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def history_of(directory: Path) -> list[dict]:
    """What was logged to an offline run of wandb, all of it drawn over `step`."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    records = [Record.FromString(content) for content in records_of(file)]
    metrics = {r.metric.glob_name: r.metric.step_metric for r in records if r.HasField("metric")}
    assert metrics.get("*") == "step"
    return [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.HasField("history")
    ]


@pytest.fixture
def real_wandb(monkeypatch):
    """The library itself, which reads its variables once in a process."""
    wandb = pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield wandb
    wandb.teardown()


@pytest.mark.parametrize("at", ["start", "store_init_configuration"])
def test_a_run_goes_on_without_a_tracker_that_cannot_start(at, tmp_path, monkeypatch, capsys):
    failing = Failing(at)
    monkeypatch.setattr(trackers, "_tracker", lambda *_, **__: failing)
    accelerator, ids = start(tmp_path, "wandb", saved={"wandb": "old"})
    accelerator.log(VALUES, step=1)
    accelerator.end_training()
    expected = f"without wandb: no {at}; the run goes on with metrics.jsonl\n"
    assert capsys.readouterr().out == expected
    assert ids == {"wandb": "old"}  # a later process may have more luck
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1} | VALUES]
    assert "log" not in failing.calls


def test_under_strict_a_tracker_that_cannot_start_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_tracker", lambda *_, **__: Failing("start"))
    with pytest.raises(TrackerError, match="^without wandb: no start$"):
        start(tmp_path, "wandb", strict=True)


@pytest.mark.gate
def test_all_processes_go_on_or_end_alike(tmp_path, warm_commands):
    (tmp_path / "start.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    process = run_on_two(warm_commands, "start.py", cwd=tmp_path, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[0] == "started"
    assert first[1].startswith("without tensorboard: expected the package")
    assert process.stdout.count("the run goes on with metrics.jsonl") == 1
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]


@pytest.mark.parametrize("at", ["log", "finish"])
def test_a_tracker_that_fails_later_is_said_once(at, tmp_path, monkeypatch, capsys):
    failing = Failing(at)
    monkeypatch.setattr(trackers, "_tracker", lambda *_, **__: failing)
    accelerator, ids = start(tmp_path, "wandb")
    for step in (1, 2):
        accelerator.log(VALUES, step=step)
    accelerator.end_training()
    assert ids == {"wandb": "abc"}
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    assert capsys.readouterr().out.count(f"no {at}") == 1
    assert failing.calls.count("log") == (1 if at == "log" else 2)
    assert failing.calls[-1] == "finish"


def test_a_full_disk_keeps_no_values_from_the_other_trackers(tmp_path, monkeypatch):
    failing = Failing("nothing")
    monkeypatch.setattr(trackers, "_tracker", lambda *_, **__: failing)
    accelerator, _ = start(tmp_path, "wandb")
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        accelerator.log(VALUES, step=1)
    assert failing.calls.count("log") == 1


def test_an_event_that_cannot_be_written_is_said_and_ends_nothing(tmp_path, capsys):
    EventLog(tmp_path / "none" / "events.jsonl").write("skipped", step=3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: skipped at step 3 is not logged: ")
    assert line.endswith("; the run goes on")


def test_wandb_without_credentials_is_left_out_and_asks_nothing(tmp_path, monkeypatch, capsys):
    fake = FakeWandb(logged_in=False)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    accelerator, ids = start(tmp_path, "wandb")
    accelerator.end_training()
    assert "without wandb: expected credentials, found none; run `wandb" in capsys.readouterr().out
    assert ids == {} and fake.asked == []


def test_wandb_out_of_reach_goes_on_offline_under_the_saved_identity(tmp_path, monkeypatch, capsys):
    fake = FakeWandb(reachable=False)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    accelerator, ids = start(tmp_path, "wandb", saved={"wandb": "old"})
    accelerator.end_training()
    assert [(call.get("mode"), call["id"], call["resume"]) for call in fake.asked] == [
        (None, "old", "allow"),
        ("offline", "old", "allow"),
    ]
    assert ids == {"wandb": "old"}
    said = "wandb offline: no such host; after the run, `wandb sync run-1` uploads it"
    assert said in capsys.readouterr().out
    with pytest.raises(TrackerError, match="without wandb: no such host"):
        start(tmp_path, "wandb", strict=True)


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "trackio"])
def test_a_library_that_is_not_installed_is_named(name, tmp_path, monkeypatch, capsys):
    for module in ("wandb", "tensorboard", "tensorboardX", "trackio", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    accelerator, ids = start(tmp_path, name)
    accelerator.end_training()
    assert ids == {}
    line = capsys.readouterr().out
    assert f"without {name}: expected the package " in line
    assert f'found none; pip install -e ".[{name}]"; the run goes on' in line


@pytest.mark.gate
def test_wandb_offline_has_every_step_of_a_run_that_went_back(tmp_path, monkeypatch, real_wandb):
    monkeypatch.setenv("WANDB_MODE", "offline")
    accelerator, ids = start(tmp_path, "wandb")
    for step in (10, 20, 15):
        accelerator.log({"loss": step / 10}, step=step)
    accelerator.log(VALUES, step=16)
    accelerator.log({"event": "rollback", "to_step": 10}, step=17)
    accelerator.end_training()
    second, again = start(tmp_path / "second", "wandb", saved=ids)
    second.end_training()
    assert again == ids and len(ids["wandb"]) > 1
    rows = history_of(tmp_path)
    assert [row["step"] for row in rows] == [10, 20, 15, 16, 17]
    assert [row["loss"] for row in rows[:4]] == [1.0, 2.0, 1.5, 2.5]
    assert len(list(tmp_path.rglob("*.table.json"))) == 1
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


@pytest.mark.gate
def test_wandb_disabled_logs_nothing(tmp_path, monkeypatch, real_wandb):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    accelerator, _ = start(tmp_path, "wandb")
    accelerator.log(VALUES, step=1)
    accelerator.end_training()
    assert not (tmp_path / "wandb").exists()


@pytest.mark.slow
def test_tensorboard_shows_the_steps_that_count(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator, ids = start(tmp_path, "tensorboard")
    for step, loss in ((10, 1.0), (20, 2.0), (15, 1.5)):
        accelerator.log({"loss": loss, "sample": "text"}, step=step)
    accelerator.end_training()
    accelerator, _ = start(tmp_path, "tensorboard", resume_step=12)
    accelerator.log({"loss": 1.25}, step=13)
    accelerator.end_training()
    assert ids == {}
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (10, 1.0),
        (13, 1.25),
    ]


def test_tensorboard_hides_what_came_before_a_start_without_a_checkpoint(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for losses in ([1.0, 2.0], [1.5]):
        accelerator, _ = start(tmp_path, "tensorboard")
        for step, loss in enumerate(losses, start=1):
            accelerator.log({"loss": loss}, step=step)
        accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.5)]


@pytest.mark.slow
def test_trackio_continues_a_run_under_its_name(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="the extra `trackio` is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    for name in ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    accelerator, ids = start(tmp_path, "trackio")
    accelerator.log(VALUES, step=10)
    accelerator.end_training()
    accelerator, again = start(tmp_path, "trackio", saved=ids)
    accelerator.log({"loss": 2.0}, step=5)
    accelerator.end_training()
    assert ids == again
    rows = SQLiteStorage.get_logs("gpt2scratch", ids["trackio"])
    assert sorted((row["step"], row["loss"]) for row in rows) == [(5, 2.0), (10, 2.5)]
    assert all("sample" not in row for row in rows)
