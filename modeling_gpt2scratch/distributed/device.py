"""What a device is and what it can do, of whatever kind it is: the device itself is asked.

`torch.accelerator` is torch's one door to all kinds: CUDA and ROCm (both `cuda`), Apple's `mps`,
Intel's `xpu`, Ascend's `npu`. What only one kind has is behind its own module.
"""

import functools

import torch
from torch import Tensor

# The CPU's instructions for products of bfloat16: x86, then ARM.
CPU_BF16 = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")


def available_device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def device_name(device: torch.device) -> str:
    """As its vendor calls it, or its kind where torch does not tell."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return name(device) if name else device.type


def cpu_bf16() -> list[str]:
    """The instructions by which this CPU multiplies bfloat16."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return [name for name in CPU_BF16 if capabilities.get(name)]


def has_bf16(device: torch.device) -> bool:
    """Whether it multiplies bfloat16 itself, and faster than float32.

    Apple's devices do not say, and count as without.
    """
    if device.type == "cpu":
        return bool(cpu_bf16())
    is_supported = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    if is_supported is None:
        return False
    # Ascend's does not know emulation.
    return is_supported(including_emulation=False) if device.type != "npu" else is_supported()


@functools.cache
def has_fused_adamw(device: torch.device) -> bool:
    """Whether torch has AdamW in one kernel for it, which skips steps without the host."""
    try:
        torch.optim.AdamW([torch.zeros(1, device=device, requires_grad=True)], fused=True)
    except RuntimeError:
        return False
    return True


@functools.cache
def has_pinned_memory(device: torch.device) -> bool:
    """Whether it copies out of the host's pinned memory while the host goes on."""
    if device.type in ("cpu", "mps"):  # torch's own loader leaves Apple's out as well
        return False
    try:
        return torch.empty(1, pin_memory=True).is_pinned()
    except (RuntimeError, NotImplementedError):
        return False


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies of a batch from the host; it goes on meanwhile if their memory may be pinned.

    From other memory the device could read what has been written there since (MPS does).
    """
    is_pinned = has_pinned_memory(device)
    return {name: ids.to(device, non_blocking=is_pinned) for name, ids in batch.items()}


def lacking(device: torch.device) -> list[str]:
    """What others have and an accelerator has not, in words; nothing of a CPU."""
    if device.type == "cpu":
        return []
    abilities = {
        "bf16": has_bf16,
        "fused AdamW": has_fused_adamw,
        "pinned memory": has_pinned_memory,
    }
    return [name for name, has in abilities.items() if not has(device)]
