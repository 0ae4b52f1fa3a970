"""What a device can do at most, and how much of that a run uses."""

import contextlib
import ctypes
import importlib.util
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from modeling_gpt2scratch.configuration_gpt2scratch import GPT2ScratchConfig
from modeling_gpt2scratch.distributed.device import device_name
from modeling_gpt2scratch.distributed.processes import LaunchError

# Dense peaks in TFLOP/s, by a pattern of the device's name; the first that fits counts. Vendors
# print the figure for 2:4 sparse matrices, which is twice as high, in larger letters. bf16 and fp8
# are with float32 sums, as torch makes them; GeForce cards are half as fast that way as with
# float16 sums. What is missing is unknown: a device without the type, or a figure that no datasheet
# gives.
PEAK_TFLOPS: tuple[tuple[str, dict[str, float]], ...] = (
    # "NVIDIA H200 Tensor Core GPU" datasheet.
    (r"H200 NVL", {"fp8": 1670.5, "bf16": 835.5, "tf32": 417.5, "fp32": 60.0}),
    # "NVIDIA H100 Tensor Core GPU" datasheets: NVL, PCIe and SXM, the last with the decimals of the
    # "NVIDIA H100 Tensor Core GPU Architecture" white paper. It is the chip of H200 ("NVIDIA H200
    # Tensor Core GPU" datasheet) and of GH200 ("NVIDIA GH200" datasheet) too.
    (r"H100 NVL", {"fp8": 1670.5, "bf16": 835.5, "tf32": 417.5, "fp32": 60.0}),
    (r"H100 PCIe", {"fp8": 1513.0, "bf16": 756.0, "tf32": 378.0, "fp32": 51.0}),
    (
        r"H100 80GB HBM3|H100 SXM|H200\b|GH200",
        {"fp8": 1979.0, "bf16": 989.4, "tf32": 494.7, "fp32": 67.0},
    ),
    # "NVIDIA Blackwell" datasheet (HGX B200 and GB200 NVL72, per GPU, tensor cores halved), where
    # the superchip is clocked higher; "NVIDIA DGX B300" and "GB300 NVL72" datasheets, where quotes
    # of them disagree about float32.
    (r"GB200", {"fp8": 5000.0, "bf16": 2500.0, "tf32": 1250.0, "fp32": 80.0}),
    (r"GB300", {"fp8": 5000.0, "bf16": 2500.0, "tf32": 1250.0}),
    (r"B200", {"fp8": 4500.0, "bf16": 2250.0, "tf32": 1125.0, "fp32": 75.0}),
    (r"B300", {"fp8": 4500.0, "bf16": 2250.0, "tf32": 1125.0}),
    # "NVIDIA A100 Tensor Core GPU" datasheet; SXM and PCIe have the same peak.
    (r"A100\b", {"bf16": 312.0, "tf32": 156.0, "fp32": 19.5}),
    # "NVIDIA A30", "NVIDIA A40", "NVIDIA A10" and "NVIDIA A10G" (of AWS) datasheets.
    (r"A30\b", {"bf16": 165.0, "tf32": 82.0, "fp32": 10.3}),
    (r"A40\b", {"bf16": 149.7, "tf32": 74.8, "fp32": 37.4}),
    (r"A10\b", {"bf16": 125.0, "tf32": 62.5, "fp32": 31.2}),
    (r"A10G", {"bf16": 70.0, "tf32": 35.0}),
    # "NVIDIA L4", "NVIDIA L40S" and "NVIDIA L40" datasheets. 362.05 is what they print, though half
    # of their sparse figure is 366.5. An L40 sums in float32 at half the rate, as GeForce cards do.
    (r"L4\b", {"fp8": 242.5, "bf16": 121.0, "tf32": 60.0, "fp32": 30.3}),
    (r"L40S", {"fp8": 733.0, "bf16": 362.05, "tf32": 183.0, "fp32": 91.6}),
    (r"L40\b", {"fp8": 362.0, "bf16": 181.05, "tf32": 90.5, "fp32": 90.5}),
    # "NVIDIA T4", "Tesla P100" (SXM2, PCIe 16 GB) and "NVIDIA V100" (SXM2, PCIe, S) datasheets;
    # none has bf16 or TF32.
    (r"T4\b", {"fp16": 65.0, "fp32": 8.1}),
    (r"P100-SXM2", {"fp32": 10.6}),
    (r"P100-PCIE", {"fp32": 9.3}),
    (r"V100S", {"fp16": 130.0, "fp32": 16.4}),
    (r"V100-SXM", {"fp16": 125.0, "fp32": 15.7}),
    (r"V100-PCIE", {"fp16": 112.0, "fp32": 14.0}),
    # "NVIDIA Ampere GA102 GPU Architecture" white paper, appendices A and C; those of the RTX 3070
    # Ti, 3080 Ti and 3090 Ti stand beside newer cards in the next two white papers. Two cards call
    # themselves RTX 3080; the figures are of the one with 10 GB.
    (r"RTX A6000", {"bf16": 154.8, "tf32": 77.4, "fp32": 38.7}),
    (r"RTX 3070$", {"bf16": 40.6, "tf32": 20.3, "fp32": 20.3}),
    (r"RTX 3070 Ti$", {"bf16": 43.5, "tf32": 21.7, "fp32": 21.7}),
    (r"RTX 3080$", {"bf16": 59.5, "tf32": 29.8, "fp32": 29.8}),
    (r"RTX 3080 Ti$", {"bf16": 68.2, "tf32": 34.1, "fp32": 34.1}),
    (r"RTX 3090$", {"bf16": 71.0, "tf32": 35.6, "fp32": 35.6}),
    (r"RTX 3090 Ti$", {"bf16": 80.0, "tf32": 40.0, "fp32": 40.0}),
    # That of the RTX 3090 by tensor cores and clock. The announcement of the card says 101, sparse
    # and with float16 sums, which is four times as much.
    (r"RTX 3060$", {"bf16": 25.4, "tf32": 12.7, "fp32": 12.7}),
    # "NVIDIA Ada GPU Architecture" and "NVIDIA RTX Blackwell GPU Architecture" white papers,
    # appendices.
    (r"RTX 4070$", {"fp8": 116.6, "bf16": 58.3, "tf32": 29.1, "fp32": 29.1}),
    (r"RTX 4070 Ti$", {"fp8": 160.4, "bf16": 80.2, "tf32": 40.1, "fp32": 40.1}),
    (r"RTX 4080$", {"fp8": 194.9, "bf16": 97.5, "tf32": 48.7, "fp32": 48.7}),
    (r"RTX 4090$", {"fp8": 330.3, "bf16": 165.2, "tf32": 82.6, "fp32": 82.6}),
    (r"RTX 5070$", {"fp8": 123.5, "bf16": 61.7, "tf32": 30.9, "fp32": 30.9}),
    (r"RTX 5070 Ti$", {"fp8": 175.8, "bf16": 87.9, "tf32": 43.9, "fp32": 43.9}),
    (r"RTX 5080$", {"fp8": 225.1, "bf16": 112.6, "tf32": 56.3, "fp32": 56.3}),
    (r"RTX 5090$", {"fp8": 419.0, "bf16": 209.5, "tf32": 104.8, "fp32": 104.8}),
    # "Compare GeForce Graphics Cards" page of NVIDIA. Its "AI TOPS" are sparse fp8 with float16
    # sums, eight times bf16, and sparse fp4 from the RTX 50 on, sixteen times bf16, as they are for
    # the cards above.
    (r"RTX 4060$", {"fp8": 60.5, "bf16": 30.2, "tf32": 15.1, "fp32": 15.1}),
    (r"RTX 4060 Ti$", {"fp8": 88.2, "bf16": 44.1, "tf32": 22.1, "fp32": 22.1}),
    (r"RTX 4070 SUPER$", {"fp8": 142.0, "bf16": 71.0, "tf32": 35.5, "fp32": 35.5}),
    (r"RTX 4070 Ti SUPER$", {"fp8": 176.5, "bf16": 88.2, "tf32": 44.1, "fp32": 44.1}),
    (r"RTX 4080 SUPER$", {"fp8": 209.0, "bf16": 104.5, "tf32": 52.2, "fp32": 52.2}),
    (r"RTX 5060$", {"fp8": 76.8, "bf16": 38.4, "tf32": 19.2, "fp32": 19.2}),
    (r"RTX 5060 Ti$", {"fp8": 94.9, "bf16": 47.4, "tf32": 23.7, "fp32": 23.7}),
    # "NVIDIA RTX A4000", "RTX A5000", "RTX 5000 Ada Generation", "RTX 6000 Ada Generation" and "RTX
    # PRO 6000 Blackwell Workstation Edition" datasheets. Their one tensor figure is sparse: bf16,
    # for Ada fp8, for Blackwell fp4. Float32 sums do not slow these cards down.
    (r"RTX A4000$", {"bf16": 76.7, "tf32": 38.4, "fp32": 19.2}),
    (r"RTX A5000$", {"bf16": 111.1, "tf32": 55.6, "fp32": 27.8}),
    (r"RTX 5000 Ada Generation$", {"fp8": 522.2, "bf16": 261.1, "tf32": 130.6, "fp32": 65.3}),
    (r"RTX 6000 Ada Generation$", {"fp8": 728.5, "bf16": 364.2, "tf32": 182.1, "fp32": 91.1}),
    (
        r"RTX PRO 6000 Blackwell Workstation Edition$",
        {"fp8": 1000.0, "bf16": 500.0, "tf32": 250.0, "fp32": 125.0},
    ),
    # "NVIDIA Turing GPU Architecture" white paper, reference clocks; no bf16, no TF32.
    (r"GTX 1080 Ti$", {"fp32": 11.3}),
    (r"RTX 2080 Ti$", {"fp16": 53.8, "fp32": 13.4}),
    (r"Quadro RTX 6000$", {"fp16": 130.5, "fp32": 16.3}),
    # "AMD Instinct MI300X", "MI325X", "MI300A", "MI355X", "MI250X" and "MI210" data sheets, matrix
    # peaks. A MI250X is two devices; each has half of what its data sheet says.
    (r"MI3(00|25)X", {"fp8": 2614.9, "bf16": 1307.4, "tf32": 653.7, "fp32": 163.4}),
    (r"MI300A", {"bf16": 980.6, "fp32": 122.6}),
    (r"MI355X", {"fp8": 5033.2, "bf16": 2516.6, "fp32": 157.3}),
    (r"MI250X", {"bf16": 191.5, "fp32": 47.9}),
    (r"MI210", {"bf16": 181.0, "fp32": 45.3}),
    # "AMD Radeon RX 7900 XTX" specifications.
    (r"RX 7900 XTX", {"bf16": 122.8, "fp32": 61.4}),
)
GIB = 2**30
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def peak_flops(name: str, precision: str) -> float | None:
    """Dense peak of a device in FLOP/s, None if it is unknown.

    Args:
        name: as torch gives it. A slice of a device (MIG) is unknown: it has a part of the peak.
        precision: of matrix products: fp8, bf16, fp16, tf32 or fp32.
    """
    if "MIG" in name:
        return None
    for pattern, peaks in PEAK_TFLOPS:
        if re.search(rf"\b({pattern})", name):
            return peaks[precision] * 1e12 if precision in peaks else None
    return None


def device_peak_flops(
    device: torch.device, *, mixed_precision: str, peak_tflops: float | None = None
) -> float | None:
    """Dense peak in FLOP/s of the device a run is on, None if it is unknown, as any CPU's is.

    Args:
        mixed_precision: of the Accelerator: no, fp16, bf16 or fp8.
        peak_tflops: what the user says it is, in TFLOP/s.
    """
    if peak_tflops is not None:
        return peak_tflops * 1e12
    if device.type == "cpu":
        return None
    name = device_name(device)
    if mixed_precision == "fp16":  # the same as bf16 where a device has both
        return peak_flops(name, "fp16") or peak_flops(name, "bf16")
    if mixed_precision != "no":
        return peak_flops(name, mixed_precision)
    if torch.get_float32_matmul_precision() == "highest":
        return peak_flops(name, "fp32")
    # Devices without TF32 multiply in float32, whatever is allowed.
    return peak_flops(name, "tf32") or peak_flops(name, "fp32")


def use_tf32(enabled: bool) -> None:
    """Lets GPUs multiply float32 matrices in TF32: ten bits of mantissa, some eight times as fast.

    CPUs are left alone, whose results should not change.
    """
    if torch.accelerator.is_available():
        torch.set_float32_matmul_precision("high" if enabled else "highest")


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Within the block, or the function that it decorates, float32 matrices are multiplied as such.

    A training in the same process may have allowed less.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def keep_freed_memory() -> None:
    """Lets a CPU run use freed memory again instead of returning it; call it once, at the start.

    glibc gets every large tensor from the system and returns it when it is freed, so that each step
    waits for the same pages to be cleared again. Does nothing where the C library is another.

    Source: mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)  # everything from the heap
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks


def flops_per_token(config: GPT2ScratchConfig, sequence_length: int) -> int:
    """Floating-point operations of forward and backward that one token needs: 6 N + 12 L H Q T.

    N counts all parameters but the position embedding, which is looked up and not multiplied; the
    token embedding counts once, as the head that it is tied to. L layers, H heads of Q channels,
    T tokens of a row. Attention counts in full, as if it were not causal, and nothing that is
    computed a second time (activation checkpointing) counts again.

    Source: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    n_embd, n_layer = config.n_embd, config.n_layer
    n_inner = config.n_inner if config.n_inner is not None else 4 * n_embd
    attention = 4 * n_embd**2 + 4 * n_embd
    mlp = 2 * n_embd * n_inner + n_inner + n_embd
    n_parameters = config.vocab_size * n_embd + n_layer * (attention + mlp + 4 * n_embd)
    n_parameters += 2 * n_embd  # the final norm
    return 6 * n_parameters + 12 * n_layer * n_embd * sequence_length


def mfu(
    tokens_per_second: float, *, flops_per_token: float, n_devices: int, peak_flops: float | None
) -> float | None:
    """Model FLOPs utilisation, 0 to 1: the share of the devices' dense peak that the model needs.

    Args:
        tokens_per_second: of all devices together.
        flops_per_token: see the function of that name.
        n_devices: processes of the run.
        peak_flops: of one device in FLOP/s; None if it is unknown, and then the result is too.
    """
    if peak_flops is None:
        return None
    return tokens_per_second * flops_per_token / (n_devices * peak_flops)


def counts_memory(device: torch.device) -> bool:
    """Whether a device counts its memory; Apple's shares the host's, and may not be asked."""
    return device.type not in ("cpu", "mps")


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory of this process so far, in GiB, by names that say which memory."""
    peaks = {}
    if counts_memory(device) and (n_bytes := torch.accelerator.max_memory_allocated(device)):
        peaks["peak_device_memory_gib"] = n_bytes / GIB
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's peak, too
        match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if match:
            peaks["peak_resident_memory_gib"] = int(match[1]) * 1024 / GIB
    return peaks


def total_memory(device: torch.device) -> int:
    """Bytes of an accelerator's memory; on MPS, those that the system recommends as the most."""
    if device.type == "mps":  # which `torch.accelerator` cannot ask
        return torch.mps.recommended_max_memory()
    _, total = torch.accelerator.get_memory_info(device)
    return total


def require_fp8() -> None:
    """Refuses fp8 where the device or the package for it is missing; call it before Accelerate.

    On a device without fp8, Accelerate itself would go on in fp16, with no more than a warning.

    Raises:
        LaunchError: with what to do.
    """
    instead = "use --mixed_precision bf16"
    if not torch.cuda.is_available():
        raise LaunchError(f"expected a GPU with fp8, found none; {instead}")
    capability = torch.cuda.get_device_capability()
    # Ada has 8.9, Hopper 9.0; AMD counts otherwise, and its MI300 is the first with fp8.
    if capability < ((9, 4) if torch.version.hip else (8, 9)):
        raise LaunchError(
            f"expected a GPU with fp8 (from compute capability 8.9), found "
            f"{torch.cuda.get_device_name()} with {capability[0]}.{capability[1]}; {instead}"
        )
    if not any(map(importlib.util.find_spec, ("torchao", "transformer_engine"))):
        raise LaunchError(
            f"expected torchao or transformer_engine for fp8, found neither; pip install torchao, "
            f"or {instead}"
        )


def free_swap() -> int:
    """Bytes of this machine's swap space that nothing uses."""
    return psutil.swap_memory().free


def available_memory() -> int:
    """Bytes that processes on this machine, or in this container, can still take."""
    available = psutil.virtual_memory().available
    container = Path("/sys/fs/cgroup")
    try:
        limit = int((container / "memory.max").read_text())  # "max" where there is no limit
        used = int((container / "memory.current").read_text())
        stat = (container / "memory.stat").read_text().split()
        reclaimable = int(stat[stat.index("inactive_file") + 1])  # files that were read
    except (OSError, ValueError):
        return available
    return max(0, min(available, limit - used + reclaimable))
