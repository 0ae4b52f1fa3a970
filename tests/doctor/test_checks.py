"""The doctor: what it finds on this machine, and on machines that lack something."""

import contextlib
import importlib.metadata
import os
import re
import resource
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants
from support.paths import REPOSITORY
from support.processes import run_process

from modeling_gpt2scratch.doctor import checks as doctor
from modeling_gpt2scratch.doctor import machine as machine_checks
from modeling_gpt2scratch.doctor import network as network_checks
from modeling_gpt2scratch.doctor.machine import CheckResult

SECRET = "hf_" + "s" * 30


@contextlib.contextmanager
def server(status: int):
    """The address of a server that gives every request this status, and what it was asked."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, self.headers.get("authorization")))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("localhost", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        try:
            yield f"http://localhost:{httpd.server_port}", requests
        finally:
            httpd.shutdown()


@pytest.fixture
def hub(monkeypatch):
    """Puts an address in the place of the Hub's, with or without a token."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def use(address: str, token: str | None) -> CheckResult:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(network_checks, "get_token", lambda: token)
        return network_checks.check_hub()

    return use


@pytest.fixture
def nobody():
    """An address at which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return f"http://localhost:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("status", "token", "finding"),
    [
        (200, SECRET, CheckResult("ok", "reachable, and the token is valid")),
        (401, None, CheckResult("ok", "reachable, no token; pushing needs one (hf auth login)")),
        (
            *(401, SECRET),
            CheckResult(
                "warning", "reachable, but it refuses the token (HTTP 401)", "hf auth login"
            ),
        ),
    ],
)
def test_the_hub_is_asked_whether_it_takes_the_token(hub, status, token, finding):
    with server(status) as (address, requests):
        assert hub(address, token) == finding
    assert requests == [("/api/whoami-v2", token and f"Bearer {SECRET}")]
    assert SECRET not in str(finding)


def test_a_hub_that_is_not_reachable_is_a_warning_and_an_offline_one_is_not_asked(
    hub, nobody, monkeypatch
):
    finding = hub(nobody, SECRET)
    assert finding.status == "warning" and finding.found == f"{nobody} is not reachable"
    finding = hub(nobody.replace("://", f"://user:{SECRET}@"), None)
    assert finding.status == "warning" and SECRET not in finding.found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub(nobody, None).status == "ok"


def test_wandb_needs_a_key_and_a_server_unless_it_is_offline(monkeypatch, tmp_path, nobody):
    monkeypatch.setattr(network_checks.importlib.util, "find_spec", lambda name: None)
    assert network_checks.check_wandb().found.startswith("not installed")
    monkeypatch.setattr(network_checks.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert network_checks.check_wandb().status == "ok"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with server(200) as (address, requests):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        assert network_checks.check_wandb() == CheckResult(
            "warning", "no key", "wandb login, or WANDB_MODE=offline"
        )
        assert not requests
        (tmp_path / "netrc").write_text(f"machine localhost login user password {SECRET}\n")
        assert network_checks.check_wandb() == CheckResult("ok", "reachable, and there is a key")
        assert [authorization for _, authorization in requests] in ([None], ["Basic"])
    monkeypatch.setenv("WANDB_BASE_URL", nobody)
    assert network_checks.check_wandb().found == f"{nobody} is not reachable"


def test_a_tokenizer_that_is_not_to_be_had_is_a_warning(monkeypatch):
    def refuse(*arguments):
        raise OSError("no network")

    monkeypatch.setattr("modeling_gpt2scratch.data.tokens.tokenizer.read_file_cached", refuse)
    finding = network_checks.check_tokenizer()
    assert finding.status == "warning" and "TIKTOKEN_CACHE_DIR" in finding.advice


@pytest.mark.gate
def test_a_check_that_hangs_or_raises_leaves_the_others_their_answers():
    forever, is_seen = threading.Event(), threading.Event()

    def broken():
        raise RuntimeError("driver\nmismatch")

    def late():
        is_seen.wait()
        return CheckResult("ok", "well")

    checks = {"hangs": forever.wait, "works": late, "raises": broken}
    findings = {}
    for name, finding in doctor.examine(checks, timeout_seconds=4):
        findings[name] = finding
        is_seen.set()  # as soon as one has ended, it is seen, and another may end
    forever.set()
    assert list(findings) == ["raises", "works", "hangs"]
    assert findings["hangs"].found == "no answer within 4 seconds"
    assert findings["raises"].found == "RuntimeError: driver mismatch"
    assert findings["works"] == CheckResult("ok", "well")
    assert findings["hangs"].status == findings["raises"].status == "failed"


def test_versions_out_of_their_range_are_named(monkeypatch):
    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda name: ["torch>=99", "numpy", "nothing-of-this-name", "wandb>99; extra == 'wandb'"],
    )
    finding = machine_checks.check_versions()
    version = importlib.metadata.version("torch")
    assert finding.status == "failed"
    assert finding.found == f"torch>=99: found {version}; nothing-of-this-name: found none"


def test_a_gpu_that_torch_does_not_see_is_a_failure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(machine_checks.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "but torch sees no GPU" in machine_checks.check_devices().found
    monkeypatch.setattr(machine_checks.shutil, "which", lambda name: None)
    assert machine_checks.check_devices().found.startswith("no GPU; ")


def test_a_directory_that_does_not_exist_is_tried_where_it_would_be(tmp_path):
    finding = machine_checks.check_directory(str(tmp_path / "runs" / "first"))
    assert finding.status in ("ok", "warning") and str(tmp_path) in finding.found
    assert not list(tmp_path.iterdir())


def test_little_room_is_a_warning_and_no_room_a_failure(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda path: usage(free=2**20))
    assert machine_checks.check_directory(str(tmp_path)).status == "warning"
    assert machine_checks.check_shared_memory(str(tmp_path)).status == "warning"
    assert machine_checks.check_shared_memory(str(tmp_path / "none")).status == "ok"

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(machine_checks, "write_file", full)
    finding = machine_checks.check_directory(str(tmp_path))
    assert finding.status == "failed" and "No space left" in finding.found
    assert not list(tmp_path.iterdir())


def test_others_that_want_more_cores_than_there_are_make_a_warning(monkeypatch):
    monkeypatch.setattr(machine_checks, "n_cores", lambda: 4)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    for load, status in ((0.0, "ok"), (4.0, "ok"), (5.0, "warning")):
        monkeypatch.setattr(machine_checks, "load_of_others", lambda load=load: load)
        finding = machine_checks.check_load()
        assert finding.status == status
        assert f"others want {load:g} of 4 cores; " in finding.found
        assert "OMP_WAIT_POLICY=passive" in finding.found


@pytest.mark.parametrize(("limits", "status"), [((256, 999), "warning"), ((65536, 65536), "ok")])
def test_the_limit_of_open_files_is_compared_with_what_shards_need(monkeypatch, limits, status):
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits)
    finding = machine_checks.check_open_files()
    assert finding.status == status
    if status == "warning":
        assert finding.advice.startswith("ulimit -n 999;")


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    def refuse(function):
        raise RuntimeError("backend") from FileNotFoundError("no g++")

    monkeypatch.setattr(torch, "compile", refuse)
    for missing, advice in (
        ("C compiler", "install C compiler, which it needs, or train with --compile no"),
        (None, "train with --compile no"),
    ):
        monkeypatch.setattr(
            machine_checks, "missing_for_compilation", lambda device, missing=missing: missing
        )
        finding = machine_checks.check_compilation()
        assert finding.status == "warning" and "no g++" in finding.found
        assert finding.advice == advice


def test_products_and_bf16_of_this_machine_are_well():
    assert machine_checks.check_matrix_products().status == "ok"
    assert machine_checks.check_bf16().status in ("ok", "warning")


def run_doctor(tmp_path, **environment: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "modeling_gpt2scratch",
        "doctor",
        "--output_dir",
        str(tmp_path),
    ]
    command += ["--timeout_seconds", "200"]
    return run_process(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"} | environment,
    )


@pytest.mark.gate
def test_the_doctor_examines_this_machine(tmp_path):
    process = run_doctor(tmp_path, HF_TOKEN=SECRET)
    found = re.findall(r"^(ok|warning|failed) +([\w.() ]+): ", process.stdout, re.MULTILINE)
    statuses = {name: status for status, name in found}
    assert statuses.keys() == doctor.checks_for(".", timeout_seconds=50).keys()
    assert process.returncode == int("failed" in statuses.values()), process.stdout
    assert statuses["two processes (gloo)"] == "ok"
    assert SECRET not in process.stdout + process.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.gate
def test_processes_that_do_not_find_each_other_fail(tmp_path):
    # Half a second is too short for a process to come up.
    finding = machine_checks.check_gloo(timeout_seconds=0.5)
    assert finding.status == "failed" and "GLOO_SOCKET_IFNAME" in finding.advice
