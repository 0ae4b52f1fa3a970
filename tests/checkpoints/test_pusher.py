"""Training runs that send their checkpoints to a Hub on this machine while they go on."""

import hashlib
import json
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
from support.paths import REPOSITORY as ROOT
from support.processes import run_process, started, wait_until
from support.servers import fake_hub
from support.terminal import terminal
from support.tiny_models import WITHOUT_PACKAGE
from support.training_runs import events_of, flags, launch, refusal, require_same_curve, run_here

from modeling_gpt2scratch.checkpoints.outbox import Outbox
from modeling_gpt2scratch.checkpoints.pusher import RevisionPusher
from modeling_gpt2scratch.common.checksums import checksum, write_checksums

REPOSITORY = "someone/tiny"
TOKEN = "hf_secret"
PUSH = {"push_to_hub": REPOSITORY, "push_every": 4}
COMMIT = f"POST /api/models/{REPOSITORY}/commit"
LOADED = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
repository, revision = sys.argv[1:]
options = {"revision": revision, "trust_remote_code": True}
model = AutoModelForCausalLM.from_pretrained(repository, **options)
tokenizer = AutoTokenizer.from_pretrained(repository, **options)
model.save_pretrained("loaded")
with torch.no_grad():
    loss = model(**(batch := tokenizer("the model", return_tensors="pt"))).logits.sum().item()
print(json.dumps({"module": type(model).__module__, "loss": loss}))
"""


@pytest.fixture
def hub():
    """An empty repository."""
    with fake_hub.serve(REPOSITORY, {".gitattributes": b"*"}, kind="models") as hub:
        yield hub


@pytest.fixture
def environment(hub, tmp_path):
    """Of a process that knows this Hub and may write there."""
    return os.environ | hub.environment(tmp_path) | {"HF_TOKEN": TOKEN}


@pytest.fixture(scope="module")
def unsent(small_data, tmp_path_factory):
    """The directory of a run of forty steps that sends nothing."""
    output_dir = tmp_path_factory.mktemp("unsent") / "run"
    with pytest.MonkeyPatch.context() as patch:
        arguments = flags(small_data, output_dir, max_steps=40, keep_checkpoints=0)
        assert run_here(patch, *arguments) == 0
    return output_dir


def pushed(output_dir):
    """Steps that went to the Hub, by their events."""
    return [event["step"] for event in events_of(output_dir) if event["event"] == "pushed"]


def sha256_of(content):
    return hashlib.sha256(content).hexdigest()


def require_own_weights(hub, output_dir, steps):
    """Each branch has been written once, with the weights of its own step."""
    assert hub.revisions.keys() == {f"step-{step}" for step in steps}
    assert {name: len(commits) for name, commits in hub.branch_commits.items()} == {
        f"step-{step}": 1 for step in steps
    }
    for step in steps:
        files = hub.revisions[f"step-{step}"]
        weights = (output_dir / f"checkpoint-{step}" / "model.safetensors").read_bytes()
        assert files["model.safetensors"] == weights
        assert {"config.json", "tokenizer.json", "modeling_gpt2scratch.py"} < files.keys()
        assert not {"training_state.json", "train_config.json"} & files.keys()
        assert not [name for name in files if name.startswith("optimizer")]
        rows = [json.loads(line) for line in files["metrics.jsonl"].splitlines()]
        assert [row["step"] for row in rows] == list(range(1, step + 1))
        listed = json.loads(files["checksums.json"])
        assert listed["model.safetensors"]["sha256"] == sha256_of(weights)
        for content in files.values():
            assert TOKEN.encode() not in content and str(output_dir).encode() not in content


def test_what_cannot_be_sent_is_refused_before_anything_is_built(tmp_path, monkeypatch, capsys):
    for values, reason in (
        ({"push_every": 6}, "expected push_every to be a multiple of save_every = 4"),
        ({"save_every": 0}, "expected push_every to be a multiple of save_every = 0"),
        ({"push_every": 0}, "expected push_every with push_to_hub, found none"),
        ({"push_to_hub": "tiny"}, "expected --push_to_hub OWNER/NAME, found 'tiny'"),
    ):
        arguments = flags(tmp_path / "data", tmp_path / "run", **PUSH | values)
        code, error = refusal(monkeypatch, capsys, *arguments)
        assert code == 2 and reason in error
    arguments = flags(tmp_path / "data", tmp_path / "run", push_every=4)
    assert "expected push_to_hub with push_every" in refusal(monkeypatch, capsys, *arguments)[1]
    arguments = flags(tmp_path / "data", tmp_path / "run", private=True)
    assert "expected private only with push_to_hub" in refusal(monkeypatch, capsys, *arguments)[1]


def test_a_run_without_a_login_is_refused_before_its_first_step(
    hub, small_data, tmp_path, monkeypatch, capsys
):
    hub.use_here(monkeypatch, tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    code, error = refusal(monkeypatch, capsys, *flags(small_data, tmp_path / "run", **PUSH))
    assert code == 2 and "expected a login at the Hub, found none" in error
    assert not (tmp_path / "run").exists()
    assert not hub.commits and not hub.revisions


@pytest.mark.gate
def test_a_run_sends_each_checkpoint_and_the_last_one(
    hub, small_data, tmp_path, monkeypatch, capsys
):
    hub.use_here(monkeypatch, tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fail(f"{COMMIT}/step-4", 500, times=1)
    options = {"max_steps": 10, "keep_checkpoints": 0, "push_every": 8}
    arguments = flags(small_data, tmp_path / "run", **PUSH | options)
    assert run_here(monkeypatch, *arguments) == 0
    require_own_weights(hub, tmp_path / "run", (8, 10))
    assert pushed(tmp_path / "run") == [8, 10]
    assert hub.files == {".gitattributes": b"*"}
    output = capsys.readouterr()
    assert f"every 8 steps to branches of {REPOSITORY}" in output.out
    assert f"step 8: sent to {REPOSITORY}@step-8" in output.out
    assert TOKEN not in output.out + output.err
    # A finished run has nothing left to send, and a new one must not take these for its own.
    n_requests = len(hub.requests)
    assert run_here(monkeypatch, *arguments, "--resume", "auto") == 0
    assert not [request for request in hub.requests[n_requests:] if "commit/" in request]
    other = flags(small_data, tmp_path / "other", **PUSH | options)
    code, error = refusal(monkeypatch, capsys, *other)
    assert code == 2 and "expected no branches of another run, found step-8" in error


def test_a_finished_run_sends_its_last_checkpoint_if_it_is_asked_to_only_then(
    hub, small_data, tmp_path, monkeypatch
):
    arguments = flags(small_data, tmp_path / "run", max_steps=4, resume="auto")
    assert run_here(monkeypatch, *arguments) == 0
    hub.use_here(monkeypatch, tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push = [part for name, value in PUSH.items() for part in (f"--{name}", str(value))]
    assert run_here(monkeypatch, *arguments, *push) == 0
    require_own_weights(hub, tmp_path / "run", [4])


@pytest.mark.gate
def test_a_hub_that_refuses_every_upload_leaves_the_run_as_it_is(
    hub, environment, small_data, tmp_path, monkeypatch
):
    assert run_here(monkeypatch, *flags(small_data, tmp_path / "plain")) == 0
    hub.fail(COMMIT, 403, times=1000)
    arguments = flags(small_data, tmp_path / "run", **PUSH, keep_checkpoints=1)
    process = launch(*arguments, env=environment)
    assert process.returncode == 0, process.stderr
    require_same_curve(tmp_path / "plain", tmp_path / "run")
    failed = [event for event in events_of(tmp_path / "run") if event["event"] == "push_failed"]
    assert {event["step"] for event in failed} == {4, 8, 12}
    lines = [line for line in process.stderr.splitlines() if "step-" in line]
    assert all(line.startswith("warning: ") for line in lines) and len(lines) == len(failed) + 1
    assert "found that step-4, step-8, step-12 could not be sent" in lines[-1]
    # The same command sends what is left, even of checkpoints that are gone.
    hub.forgive()
    process = launch(*arguments, "--resume", "auto", env=environment)
    assert process.returncode == 0, process.stderr
    assert pushed(tmp_path / "run") == [4, 8, 12]
    assert not (tmp_path / "run" / "to_push").exists()
    assert not (tmp_path / "run" / "checkpoint-4").exists()
    for step in (4, 8, 12):
        ours = (tmp_path / "plain" / f"checkpoint-{step}" / "model.safetensors").read_bytes()
        assert hub.revisions[f"step-{step}"]["model.safetensors"] == ours


@pytest.mark.gate
@pytest.mark.parametrize("place", ["preupload", "commit", "tree"])
def test_a_run_killed_in_an_upload_goes_on_and_sends_nothing_twice(
    place, hub, environment, small_data, tmp_path, unsent
):
    # The request of the second checkpoint takes longer than the process lives: before the commit
    # is made, and after it, when the Hub is asked for its checksums.
    request = f"[A-Z]+ /api/models/{REPOSITORY}/{place}/step-8"
    hub.fail(request, 3.0, times=2 if place == "tree" else 1)
    options = PUSH | {"max_steps": 40, "keep_checkpoints": 1, "resume": "auto"}
    command = [sys.executable, "train_accelerate.py"]
    command += flags(small_data, tmp_path / "run", **options)
    with (
        open(tmp_path / "errors", "w") as errors,
        started(command, cwd=ROOT, env=environment, stderr=errors) as process,
    ):
        wait_until(lambda: any(f"/{place}/step-8" in line for line in hub.requests), process)
        if place == "tree":
            wait_until(lambda: "step-8" in hub.branch_commits, process)
        process.kill()
        process.wait()
    assert (tmp_path / "run" / "to_push" / ".step-8.sending").is_dir()
    n_stored = len(hub.objects)
    hub.forgive()
    process = run_process(command, cwd=ROOT, env=environment)
    assert process.returncode == 0, process.stderr
    steps = range(4, 41, 4)
    assert {name: len(commits) for name, commits in hub.branch_commits.items()} == {
        f"step-{step}": 1 for step in steps
    }
    assert len(hub.objects) == len(steps) > n_stored
    for step in steps:
        ours = (unsent / f"checkpoint-{step}" / "model.safetensors").read_bytes()
        assert hub.revisions[f"step-{step}"]["model.safetensors"] == ours
    assert not (tmp_path / "run" / "to_push").exists()


@pytest.mark.gate
def test_a_terminal_shows_the_wait_at_the_end_and_ctrl_c_leaves_the_rest_to_the_next_process(
    hub, environment, small_data, tmp_path
):
    hub.fail(f"{COMMIT}/step-12", 60.0)
    command = [sys.executable, "train_accelerate.py"]
    command += flags(small_data, tmp_path / "run", **PUSH, keep_checkpoints=0)
    with terminal(command, env=environment) as shown:
        assert shown.wait_for(rf"sending checkpoints to {REPOSITORY} \.\.\. 00:0[2-9]")
        status = json.loads((tmp_path / "run" / "status.json").read_bytes())
        shown.press_ctrl_c()
        assert shown.wait() == 130
    assert status["status"] == "finished"
    assert "train_accelerate.py: interrupted; go on with: " in shown.output
    assert "Traceback" not in shown.output
    process = run_process([*command, "--resume", "auto"], cwd=ROOT, env=environment)
    assert process.returncode == 0, process.stderr
    assert hub.revisions.keys() == {"step-4", "step-8", "step-12"}
    for step in (4, 8, 12):
        assert len(hub.branch_commits[f"step-{step}"]) == 1


@pytest.mark.gate
def test_two_processes_send_once_and_a_fresh_process_loads_and_compares_the_revisions(
    hub, environment, small_data, tmp_path
):
    arguments = flags(small_data, tmp_path / "run", **PUSH, keep_checkpoints=0)
    process = launch(*arguments, config="cpu_2proc.yaml", env=environment)
    assert process.returncode == 0, process.stderr
    require_own_weights(hub, tmp_path / "run", (4, 8, 12))

    reader = environment | {"HF_TOKEN": ""}  # who reads a public model need not be logged in
    command = [sys.executable, "-c", WITHOUT_PACKAGE + LOADED, REPOSITORY, "step-8"]
    process = run_process(command, cwd=tmp_path, env=reader, check=True)
    found = json.loads(process.stdout.splitlines()[-1])
    assert found["module"].startswith("transformers_modules.someone.tiny.")
    weights = (tmp_path / "run" / "checkpoint-8" / "model.safetensors").read_bytes()
    assert (tmp_path / "loaded" / "model.safetensors").read_bytes() == weights

    names = [f"{REPOSITORY}@step-{step}" for step in (4, 12)]
    here = [str(tmp_path / "run" / f"checkpoint-{step}") for step in (4, 12)]
    options = ["--tasks", "val", "--val_data", str(small_data), "--output_dir", "results"]
    command = [sys.executable, str(ROOT / "evaluate" / "compare.py"), "--models", *names, *here]
    process = run_process([*command, *options], cwd=tmp_path, env=reader)
    assert process.returncode == 0, process.stdout + process.stderr
    models = json.loads((tmp_path / "results" / "results.json").read_bytes())["models"]
    scores = {name: models[name]["results"]["val"]["loss,none"] for name in [*names, *here]}
    assert [scores[name] for name in names] == [scores[name] for name in here]
    assert scores[names[0]] != scores[names[1]]
    assert models[names[0]]["config"]["model_args"] == {
        **{"pretrained": REPOSITORY, "revision": "step-4", "dtype": "float32"},
    }
    for name, step in zip(names, (4, 12), strict=True):
        sha256 = sha256_of(hub.revisions[f"step-{step}"]["model.safetensors"])
        assert models[name]["model_sha256"]["model.safetensors"] == sha256
        assert models[name]["config"]["model_sha"] == hub.commit_at(f"step-{step}")
    assert models[here[0]]["config"]["model_sha"] is None


def set_aside(output_dir, *steps):
    """Checkpoints of a few bytes that wait to be sent."""
    outbox = Outbox(output_dir)
    for step in steps:
        checkpoint = output_dir / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(b"weights")
        entries = {"model.safetensors": checksum(checkpoint / "model.safetensors")}
        write_checksums(checkpoint, entries)
        outbox.add(checkpoint)
    return outbox


def test_checkpoints_of_a_continuation_that_is_left_are_not_sent(tmp_path, monkeypatch):
    outbox = set_aside(tmp_path, 4, 8, 12)
    monkeypatch.setattr(RevisionPusher, "_work", lambda pusher: None)
    values = {"private": False, "metrics": tmp_path / "metrics.jsonl", "record": print}
    with RevisionPusher(tmp_path, REPOSITORY, step=8, **values):
        assert outbox.steps() == [4, 8]


def test_no_more_is_given_up_than_the_disk_lacks(tmp_path, monkeypatch, capsys):
    outbox = set_aside(tmp_path, 4, 8, 12)
    free = 1000 - 2 * len(b"weights")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    values = {"private": False, "metrics": tmp_path / "metrics.jsonl", "step": 12}
    pusher = RevisionPusher(tmp_path, REPOSITORY, record=lambda *_, **__: None, **values)
    pusher._make_room(1000)
    assert outbox.steps() == [12]
    assert capsys.readouterr().err.count("the disk is full") == 2
    pusher._make_room(10**6)
    assert outbox.steps() == []
