"""What the machine is, and the tests marked `gpu`."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

from gpu_parts.plan import Plan, Record
from modeling_gpt2scratch.distributed.device import device_name, lacking
from modeling_gpt2scratch.doctor.checks import checks_for, examine

REPOSITORY = Path(__file__).parents[2]
OFFLINE = {"gpt2 tokenizer", "Hugging Face Hub", "wandb"}  # checks that need a network
TESTS = (  # the most valuable first
    *("tests/gpu/test_runs_on_device.py", "tests/training/test_steps.py"),
    "tests/gpu/test_model_on_device.py",
)
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
        for name, finding in examine(checks, timeout_seconds=30)
    }
    record(doctor=findings)
    record(tests=run_tests(plan.seconds_left - 5, Path(plan.output_dir, "parts", "tests.log")))


def run_tests(seconds: float, log: Path) -> dict[str, int | str]:
    """How many tests marked `gpu` ended how, and the last lines if any failed or did not end."""
    options = ["-m", "pytest", "-m", "gpu", "-n", "0", "-v", "-p", "no:cacheprovider", *TESTS]
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *options], cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()  # a test may take Ctrl-C for its own
            code = process.wait()
    output = log.read_text(errors="replace")
    ends = re.findall(r"^tests/.* (PASSED|FAILED|SKIPPED|ERROR)\b", output, re.MULTILINE)
    counts: dict[str, int | str] = {word.lower(): n for word, n in Counter(ends).items()}
    if code:
        counts["output"] = "\n".join(output.splitlines()[-LAST_LINES:])
    return counts
