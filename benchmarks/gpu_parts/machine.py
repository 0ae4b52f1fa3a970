"""What the machine is, and the tests marked `gpu`."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import torch

from gpu_parts.plan import Plan, Record
from modeling_gpt2scratch.distributed.device import device_name, lacking
from modeling_gpt2scratch.doctor.checks import checks_for, examine

REPOSITORY = Path(__file__).parents[2]
OFFLINE = {"gpt2 tokenizer", "Hugging Face Hub", "wandb"}  # checks that need a network
LAST_LINES = 40  # of the tests


def run(plan: Plan, record: Record) -> None:
    """The device, the doctor's findings, and how the tests ended."""
    device = plan.device
    record(device=device_name(device), lacks=lacking(device), torch=torch.__version__)
    if device.type != "cpu":
        record(memory_gib=torch.accelerator.get_memory_info()[1] / 2**30)
    checks = checks_for(plan.output_dir, timeout_seconds=40)
    checks = {name: check for name, check in checks.items() if name not in OFFLINE}
    if plan.is_smoke:  # the doctor's own tests run those that start processes and compilers
        quick = ("versions", "devices", "bf16", "matrix products")
        checks = {name: checks[name] for name in quick}
    findings = {
        name: f"{finding.status}: {finding.found}"
        for name, finding in examine(checks, timeout_seconds=45)
    }
    record(doctor=findings)
    record(tests=run_tests(plan.seconds_left - 8))


def run_tests(seconds: float) -> dict[str, int | str]:
    """How many tests marked `gpu` ended how, and the last lines if any failed."""
    options = ["-m", "pytest", "-m", "gpu", "-n", "0", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    process = subprocess.Popen(
        [sys.executable, *options],
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest then says what it has seen so far
        output, _ = process.communicate()
    lines = output.splitlines()
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", output)
    counts = {word: int(n) for n, word in found}
    if process.returncode:
        counts["output"] = "\n".join(lines[-LAST_LINES:])
    return counts
