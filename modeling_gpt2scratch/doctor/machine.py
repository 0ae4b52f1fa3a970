"""What a machine must have for a training run: packages, devices, processes and a disk."""

import importlib.metadata
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from modeling_gpt2scratch.common.atomic_files import write_file
from modeling_gpt2scratch.common.errors import file_problem
from modeling_gpt2scratch.common.output_directory import nearest_existing
from modeling_gpt2scratch.common.threads import CHOICES, load_of_others, n_cores
from modeling_gpt2scratch.distributed.device import (
    available_device,
    cpu_bf16,
    device_name,
    has_bf16,
    lacking,
)
from modeling_gpt2scratch.hardware.compilation import missing_for_compilation
from modeling_gpt2scratch.hardware.devices import GIB, available_memory

PACKAGE = "gpt2scratch"
CHECKPOINT_BYTES = 3 * 124_439_808 * 4  # of GPT-2 small: weights and Adam's two moments
SHARED_MEMORY_BYTES = GIB  # what NCCL and loaders of several processes get along with
OPEN_FILES = 4096


@dataclass(frozen=True)
class CheckResult:
    """What a check found, and what to do about it."""

    status: Literal["ok", "warning", "failed"]
    found: str
    advice: str = ""


def check_versions() -> CheckResult:
    """Python and the packages are in the ranges of setup.cfg."""
    try:
        metadata = importlib.metadata.metadata(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return CheckResult("warning", f"{PACKAGE} is not installed", "pip install -e .")
    problems = []
    for text in importlib.metadata.requires(PACKAGE) or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "none"
        if version == "none" or not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name}{requirement.specifier}: found {version}")
    if problems:
        return CheckResult("failed", "; ".join(problems), "pip install -c constraints.txt -e .")
    names = ("torch", "transformers", "accelerate")
    found = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return CheckResult(
        "ok",
        f"Python {platform.python_version()} ({metadata['Requires-Python']}), " + ", ".join(found),
    )


def check_devices() -> CheckResult:
    """GPUs, and whether torch sees those that the driver sees."""
    host = f"{n_cores()} CPU cores, {available_memory() / GIB:.0f} GiB of memory free"
    if devices := accelerators():
        names = [device_name(device) for device in devices]
        counts = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
        lacks = "".join(f", without {name}" for name in lacking(devices[0]))
        return CheckResult("ok", f"{', '.join(counts)}{lacks}; {host}")
    if shutil.which("nvidia-smi"):
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
        found = f"nvidia-smi is here, but torch sees no GPU; it was built for {built}"
        return CheckResult(
            "failed", found, "install a torch build for this driver: pytorch.org/get-started"
        )
    return CheckResult("ok", f"no GPU; {host}")


def accelerators() -> list[torch.device]:
    """The devices of this machine besides its CPU."""
    kind = available_device().type
    return [torch.device(kind, i) for i in range(torch.accelerator.device_count())]


def check_load() -> CheckResult:
    """What others compute on this machine, and how threads that wait give way to them."""
    load, cores = load_of_others(), n_cores()
    waiting = ", ".join(f"{name}={os.environ[name]}" for name in CHOICES if name in os.environ)
    found = f"others want {load:g} of {cores} cores; threads wait by {waiting or 'spinning'}"
    if load > cores:
        return CheckResult("warning", found, "a run here is slow until they are done")
    return CheckResult("ok", found)


def check_bf16() -> CheckResult:
    """Whether the device multiplies bf16 faster than float32."""
    device = available_device()
    if device.type != "cpu":
        if has_bf16(device):
            return CheckResult("ok", "the GPU has it")
        return CheckResult("warning", "the GPU has none", "train with --mixed_precision fp16 or no")
    if has := cpu_bf16():
        return CheckResult("ok", f"the CPU has {', '.join(has)}: --mixed_precision bf16 is faster")
    return CheckResult("ok", "the CPU has neither AMX nor AVX512-BF16: float32 is faster")


def check_matrix_products() -> CheckResult:
    """Products of every device agree with float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator, dtype=torch.float64) for _ in "ab")
    expected = left @ right
    devices = [torch.device("cpu"), *accelerators()]
    for device in devices:
        # TF32 has 11 bits of precision, and bf16 8; their errors average out over 256 products.
        for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 1e-2)):
            on_device = [matrix.to(dtype).to(device) for matrix in (left, right)]
            product = torch.mm(*on_device).cpu().double()
            error = ((product - expected).norm() / expected.norm()).item()
            if not error < tolerance:
                found = f"an error of {error:.1e} in {dtype} on {device}, more than {tolerance}"
                return CheckResult(
                    "failed", found, "the device or its driver is broken; use another"
                )
    return CheckResult("ok", f"right in float32 and bf16 on {', '.join(map(str, devices))}")


def check_compilation() -> CheckResult:
    """torch.compile makes code that runs."""
    constant = random.random()  # so that no cache has the result
    device = available_device()
    x = torch.linspace(0, 1, 1000, device=device)

    def function(x):
        return torch.sin(x) * constant + x

    try:
        close = torch.allclose(torch.compile(function)(x), function(x), atol=1e-6)
    except Exception as error:  # inductor, dynamo and compilers raise dozens of kinds
        cause = error.__cause__ or error
        missing = missing_for_compilation(device)
        install = f"install {missing}, which it needs, or " if missing else ""
        found = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
        return CheckResult("warning", found, f"{install}train with --compile no")
    if not close:
        return CheckResult("failed", "code that computes something else", "train with --compile no")
    return CheckResult("ok", f"compiles for {device.type}")


def check_gloo(*, timeout_seconds: float) -> CheckResult:
    """Two processes on the CPU find each other and add their numbers."""
    return _all_reduce("gloo", n_processes=2, timeout_seconds=timeout_seconds)


def check_nccl(*, timeout_seconds: float) -> CheckResult:
    """One process for each GPU of this machine, likewise."""
    devices = accelerators()
    if not devices:
        return CheckResult("ok", "no GPU, nothing to do")
    backend = torch.distributed.get_default_backend_for_device(devices[0].type)
    return _all_reduce(backend, n_processes=len(devices), timeout_seconds=timeout_seconds)


def check_directory(output_dir: str) -> CheckResult:
    """Files can be written, flushed and renamed where runs are to be, and there is room."""
    existing = nearest_existing(Path(output_dir).absolute())
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing) as directory:
            write_file(Path(directory, "file"), b"x" * 2**20)
            os.rename(directory, f"{directory}.renamed")
            os.rename(f"{directory}.renamed", directory)
    except OSError as error:
        return CheckResult("failed", file_problem(error), "choose another --output_dir")
    free = shutil.disk_usage(existing).free
    found = f"{free / GIB:.0f} GiB free in {existing}"
    if free < 4 * CHECKPOINT_BYTES:
        advice = (
            f"a checkpoint of GPT-2 small takes {CHECKPOINT_BYTES / GIB:.1f} GiB; free some space"
        )
        return CheckResult("warning", found, advice)
    return CheckResult("ok", found)


def check_shared_memory(path: str = "/dev/shm") -> CheckResult:
    """What processes of one machine exchange data through; containers have little of it."""
    if not Path(path).is_dir():
        return CheckResult("ok", f"no {path} on this system")
    free = shutil.disk_usage(path).free
    found = f"{free / GIB:.1f} GiB free in {path}"
    if free < SHARED_MEMORY_BYTES:
        return CheckResult("warning", found, "start the container with --shm-size 8g or --ipc host")
    return CheckResult("ok", found)


def check_open_files() -> CheckResult:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = "no limit" if soft == resource.RLIM_INFINITY else f"{soft} at once"
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        advice = f"ulimit -n {most}; a process holds every shard that it has read open"
        return CheckResult("warning", found, advice)
    return CheckResult("ok", found)


def _all_reduce(backend: str, *, n_processes: int, timeout_seconds: float) -> CheckResult:
    """Starts torchrun on `all_reduce.py`, in the way in which `accelerate launch` does."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"]
    program = ["-m", "modeling_gpt2scratch.doctor.all_reduce", backend, str(timeout_seconds)]
    process = subprocess.Popen(
        [sys.executable, *launcher, *program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        output, _ = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # which torchrun hands on to its processes
        output = f"no answer within {timeout_seconds:g} seconds"
    if process.returncode == 0:
        return CheckResult("ok", f"{n_processes} processes add their numbers")
    errors = [line for line in output.splitlines() if "Error" in line] or output.splitlines()[-1:]
    variable = "GLOO_SOCKET_IFNAME" if backend == "gloo" else "NCCL_SOCKET_IFNAME, NCCL_DEBUG=INFO"
    advice = f"a firewall, or the wrong network interface: set {variable}"
    return CheckResult("failed", " ".join(errors[:1])[:200], advice)
