"""transformers shards the model over processes by the plans of its classes."""

import os

import pytest
from support.processes import run_on_two
from support.tiny_models import tiny_twins

pytestmark = pytest.mark.slow

# Loss and gradients of two processes that share the model, against those of a whole one.
COMPARE = """
import sys, torch, torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig
from modeling_gpt2scratch import GPT2ScratchForCausalLM
directory, kind = sys.argv[1:]
whole = GPT2ScratchForCausalLM.from_pretrained(directory).train()
config = DistributedConfig(**{f"{kind}_size": 2})
shared = GPT2ScratchForCausalLM.from_pretrained(directory, distributed_config=config).train()
for name in ("transformer.wte", "transformer.h.1.attn.o_proj", "transformer.h.1.mlp.up_proj"):
    assert isinstance(shared.get_submodule(name).weight, DTensor), name
assert isinstance(shared.transformer.h[1], FSDPModule) is (kind == "fsdp")  # a unit of its own
ids = torch.randint(269, (2, 17), generator=torch.Generator().manual_seed(0))
for labels in ({"labels": ids}, {"shift_labels": ids.roll(-1, dims=1)}):
    found, expected = shared(ids, **labels).loss, whole(ids, **labels).loss
    for loss in (found, expected):
        loss.backward()
    torch.testing.assert_close(found, expected)
    for (name, left), right in zip(shared.named_parameters(), whole.parameters(), strict=True):
        gradient = left.grad.full_tensor() if isinstance(left.grad, DTensor) else left.grad
        torch.testing.assert_close(gradient, right.grad, atol=1e-5, rtol=1e-4, msg=name)
    shared.zero_grad(), whole.zero_grad()
dist.destroy_process_group()
"""


@pytest.mark.gate
@pytest.mark.parametrize("kind", ["tp", "fsdp"])
def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path, warm_commands, kind):
    tiny_twins(tmp_path / "stock")[0].save_pretrained(tmp_path / "model")
    (tmp_path / "compare.py").write_text(COMPARE)
    process = run_on_two(
        *(warm_commands, "compare.py", "model", kind),
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert process.returncode == 0, process.stderr[-3000:]
