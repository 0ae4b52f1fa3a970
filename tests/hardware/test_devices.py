"""Peaks, the operations of a model, and the shares that follow from them."""

import re
import sys

import pytest
import torch
from support.processes import run_process
from support.tiny_models import random_ids, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from modeling_gpt2scratch import GPT2ScratchConfig
from modeling_gpt2scratch.distributed.processes import LaunchError
from modeling_gpt2scratch.hardware import devices

BF16_PEAKS = {  # where several patterns of the table could fit
    "NVIDIA H200": 989.4,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA B200": 2250,
    "NVIDIA GB200": 2500,
    "NVIDIA A10": 125,
    "NVIDIA A10G": 70,
    "NVIDIA L40": 181.05,
    "NVIDIA L40S": 362.05,
    "NVIDIA GeForce RTX 4070 SUPER": 71,
    "NVIDIA GeForce RTX 4070 Ti": 80.2,
    "NVIDIA GeForce RTX 4070 Ti SUPER": 88.2,
    "NVIDIA RTX 6000 Ada Generation": 364.2,
}


@pytest.mark.parametrize("name", BF16_PEAKS)
def test_each_device_has_its_own_peak(name):
    assert devices.peak_flops(name, "bf16") == BF16_PEAKS[name] * 1e12


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("NVIDIA GeForce RTX 2080 Ti", "bf16"),
        ("Tesla P100-PCIE-16GB", "fp16"),  # without tensor cores
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16"),  # a seventh of a device
        ("NVIDIA GeForce RTX 3060 Ti", "bf16"),
        ("NVIDIA GeForce RTX 4090 D", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA RTX A5000 Laptop GPU", "bf16"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "bf16"),
        ("Tesla T4", "bf16"),
        ("NVIDIA A100-SXM4-80GB", "fp8"),
        ("NVIDIA A1000", "bf16"),
        ("NVIDIA T400", "fp32"),
    ],
)
def test_what_no_datasheet_says_is_unknown(name, precision):
    assert devices.peak_flops(name, precision) is None


def test_no_peak_is_a_sparse_one():
    # Halving the width of a type doubles the peak; a sparse figure among dense ones breaks that.
    for _, peaks in devices.PEAK_TFLOPS:
        if {"fp8", "bf16"} <= set(peaks):
            assert peaks["fp8"] == pytest.approx(2 * peaks["bf16"], rel=0.02)
        if {"bf16", "tf32"} <= set(peaks):
            assert peaks["bf16"] == pytest.approx(2 * peaks["tf32"], rel=0.02)


def test_no_peak_of_a_geforce_card_is_with_float16_sums():
    # With float32 sums its tensor cores multiply TF32 as fast as its other cores float32.
    geforce = [peaks for name, peaks in devices.PEAK_TFLOPS if re.match(r"RTX [345]0[5-9]0", name)]
    assert len(geforce) >= 20
    for peaks in geforce:
        assert peaks["tf32"] == peaks["fp32"]
        assert peaks["bf16"] == pytest.approx(2 * peaks["fp32"], rel=0.01)


def test_the_peak_of_a_cpu_is_what_the_user_says_or_unknown():
    cpu = torch.device("cpu")
    assert devices.device_peak_flops(cpu, mixed_precision="no") is None
    assert devices.device_peak_flops(cpu, mixed_precision="no", peak_tflops=1.5) == 1.5e12


def test_the_operations_of_a_token_are_those_that_torch_counts():
    model = tiny_model(n_embd=64, n_layer=3).train()
    model.set_attn_implementation("eager")  # which multiplies in full, as the formula has it
    ids = random_ids(2, 48)
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids).loss.backward()
    of_vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)  # added, not multiplied
    found = devices.flops_per_token(model.config, 48) - 6 * of_vectors
    assert found == counter.get_total_flops() / ids.numel()


def test_n_is_all_parameters_but_the_position_embedding():
    for n_inner in (None, 96):
        model = tiny_model(n_inner=n_inner)
        n_parameters = model.num_parameters() - model.transformer.wpe.weight.numel()
        assert devices.flops_per_token(model.config, 0) == 6 * n_parameters


def test_utilisation_is_needed_operations_over_possible_ones():
    config = GPT2ScratchConfig(bos_token_id=0, eos_token_id=0)  # GPT-2 with 124M parameters
    needed = devices.flops_per_token(config, 1024)
    assert needed == 6 * 123_653_376 + 12 * 12 * 768 * 1024
    arguments = {"flops_per_token": needed, "n_devices": 2}
    assert devices.mfu(1e6, **arguments, peak_flops=989.4e12) == pytest.approx(0.4322, abs=1e-4)
    assert devices.mfu(1e6, **arguments, peak_flops=None) is None


def test_an_apple_gpu_is_not_asked_for_its_memory():
    assert "peak_device_memory_gib" not in devices.peak_memory(torch.device("mps"))


@pytest.mark.gate
def test_peak_memory_grows_with_a_tensor():
    program = (
        "import torch\n"
        "from modeling_gpt2scratch.hardware.devices import peak_memory\n"
        "before = peak_memory(torch.device('cpu'))\n"
        "ballast = torch.ones(2**28, dtype=torch.uint8)\n"  # a quarter of a GiB
        "after = peak_memory(torch.device('cpu'))\n"
        "print(*before, *[after[name] - before[name] for name in before])"
    )
    ended = run_process([sys.executable, "-c", program])
    assert ended.returncode == 0, ended.stderr
    if not ended.stdout.strip():
        pytest.skip("this system does not tell a process its peak")
    name, grown = ended.stdout.split()
    assert name == "peak_resident_memory_gib" and 0.2 <= float(grown) <= 0.3


def test_fp8_is_refused_where_nothing_can_do_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LaunchError, match="expected a GPU with fp8, found none; use"):
        devices.require_fp8()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(LaunchError, match="found NVIDIA A100-SXM4-80GB with 8.0; use"):
        devices.require_fp8()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LaunchError, match="expected torchao or transformer_engine for fp8"):
        devices.require_fp8()


def test_fp16_has_a_peak_of_its_own_or_that_of_bf16(monkeypatch):
    peaks = {"Tesla T4": 65, "Tesla V100-SXM2-16GB": 125, "NVIDIA GeForce RTX 3080": 59.5}
    for name, expected in peaks.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, n=name: n)
        found = devices.device_peak_flops(torch.device("cuda"), mixed_precision="fp16")
        assert found == expected * 1e12


@pytest.mark.parametrize(
    ("name", "allowed", "expected"),
    [
        ("Tesla T4", "high", 8.1e12),  # which has no TF32
        ("NVIDIA A100-SXM4-80GB", "high", 156e12),
        ("NVIDIA A100-SXM4-80GB", "highest", 19.5e12),
        ("NVIDIA A100-MIG-1g.10gb", "high", None),
    ],
)
def test_float32_has_the_peak_of_how_the_device_multiplies_it(monkeypatch, name, allowed, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: allowed)
    found = devices.device_peak_flops(torch.device("cuda"), mixed_precision="no")
    assert found == expected


def test_an_evaluation_after_a_training_multiplies_in_float32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        seen = devices.without_tf32()(torch.get_float32_matmul_precision)()
        assert (seen, torch.get_float32_matmul_precision()) == ("highest", "high")
    finally:
        torch.set_float32_matmul_precision(before)
