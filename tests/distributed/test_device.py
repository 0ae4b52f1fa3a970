"""What devices are asked, and that none is asked for by name; none of them is here but the CPU."""

import ast
from types import SimpleNamespace

import pytest
import torch
from support.paths import REPOSITORY
from support.training_runs import curve, flags, run_here

from modeling_gpt2scratch.distributed import device as devices
from modeling_gpt2scratch.optim import optimizer as optimizers
from modeling_gpt2scratch.training import banner

# Where CUDA itself is meant, and why.
OF_CUDA = {
    "modeling_gpt2scratch/doctor/machine.py": "says which CUDA torch was built for",
    "modeling_gpt2scratch/hardware/devices.py": "fp8 goes by the compute capability",
    "modeling_gpt2scratch/loss_gpt2scratch.py": "tensor cores want aligned rows",
}


def asks_for_cuda(node: ast.AST) -> bool:
    """Whether this is `torch.cuda`, or a device or library of NVIDIA by its name."""
    if isinstance(node, ast.Attribute):
        return node.attr == "cuda"
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return is_text and node.value.split(":")[0] in ("cuda", "nccl")


def test_nothing_asks_for_cuda_where_any_accelerator_is_meant():
    files = [*REPOSITORY.glob("*.py"), *(REPOSITORY / "modeling_gpt2scratch").rglob("*.py")]
    for directory in ("benchmarks", "evaluate"):
        files += (REPOSITORY / directory).rglob("*.py")
    found = {
        file.relative_to(REPOSITORY).as_posix()
        for file in files
        if any(map(asks_for_cuda, ast.walk(ast.parse(file.read_text(encoding="utf-8")))))
    }
    assert found == OF_CUDA.keys()


@pytest.mark.parametrize(
    ("kind", "module", "expected"),
    [
        ("cuda", {"is_bf16_supported": lambda including_emulation: True}, True),
        ("cuda", {"is_bf16_supported": lambda including_emulation: including_emulation}, False),
        ("xpu", {"is_bf16_supported": lambda including_emulation: True}, True),
        ("npu", {"is_bf16_supported": lambda: True}, True),
        ("mps", {}, False),
    ],
)
def test_a_device_is_asked_for_bf16(monkeypatch, kind, module, expected):
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(**module))
    assert devices.has_bf16(SimpleNamespace(type=kind)) is expected


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16", "bf16", "avx512_fp16"])
def test_a_cpu_has_bf16_by_its_instructions(monkeypatch, name):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True})
    assert devices.has_bf16(torch.device("cpu")) is (name != "avx512_fp16")


def test_a_device_has_the_name_of_its_vendor_or_of_its_kind(monkeypatch):
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: "Intel(R) Arc(TM) B580")
    assert devices.device_name(torch.device("xpu")) == "Intel(R) Arc(TM) B580"
    assert devices.device_name(torch.device("mps")) == "mps"
    assert devices.device_name(torch.device("cpu")) == "cpu"


def test_a_kind_that_torch_has_no_kernels_for_lacks_them():
    nowhere = torch.device("fpga")  # a kind that torch knows by its name alone
    assert not devices.has_fused_adamw(nowhere) and not devices.has_pinned_memory(nowhere)
    cpu = torch.device("cpu")
    assert devices.has_fused_adamw(cpu)
    assert devices.lacking(cpu) == []


def test_the_banner_says_what_a_device_lacks(monkeypatch):
    answers = {"has_bf16": False, "has_fused_adamw": True, "has_pinned_memory": False}
    for name, answer in answers.items():
        monkeypatch.setattr(devices, name, lambda device, answer=answer: answer)
    monkeypatch.setattr(banner, "has_bf16", devices.has_bf16)
    monkeypatch.setattr(banner, "missing_for_compilation", lambda device: "Triton")
    sizes = {"n_positions": 8, "sequence_length": 8, "total_batch_tokens": 64}
    config = SimpleNamespace(eval_every=0, init_from=None, patience=0, **sizes)
    accelerator = SimpleNamespace(
        device=torch.device("mps"), num_processes=1, mixed_precision="no", distributed_type="NO"
    )
    model = SimpleNamespace(num_parameters=lambda: 1000)
    assert banner.surprises(config, accelerator, model, has_validation=True) == [
        "matrices are multiplied in float32; try --mixed_precision fp16",
        "mps lacks bf16, pinned memory, torch.compile; the run does without",
    ]
    accelerator.mixed_precision = "bf16"  # as a configuration for other cards says
    assert banner.surprises(config, accelerator, model, has_validation=True) == [
        "mps is not known to multiply bf16 itself; --mixed_precision fp16 may be faster",
        "mps lacks pinned memory, torch.compile; the run does without",
    ]


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.gate)])
def test_without_the_fused_kernel_the_curve_is_the_same(
    small_data, tmp_path, monkeypatch, optimizer
):
    options = {"n_positions": 16, "total_batch_tokens": 128, "eval_every": 0, "save_every": 4}
    options |= {"optimizer": optimizer, "max_steps": 8}
    assert run_here(monkeypatch, *flags(small_data, tmp_path / "fused", **options)) == 0
    monkeypatch.setattr(optimizers, "has_fused_adamw", lambda device: False)
    assert run_here(monkeypatch, *flags(small_data, tmp_path / "plain", **options)) == 0
    resumed = flags(small_data, tmp_path / "resumed", **options)
    checkpoint = str(tmp_path / "plain" / "checkpoint-4")
    assert run_here(monkeypatch, *resumed, "--resume", checkpoint) == 0
    fused, plain, rest = (curve(tmp_path / name) for name in ("fused", "plain", "resumed"))
    for step, values in fused.items():
        assert plain[step] == pytest.approx(values, rel=1e-4)
    assert rest == {step: plain[step] for step in range(5, 9)}
