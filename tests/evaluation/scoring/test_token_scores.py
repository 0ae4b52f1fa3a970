"""The head's product in aligned rows: the head's own numbers, or the head itself."""

import pytest
import torch
from torch import nn

from modeling_gpt2scratch.evaluation.scoring import token_scores
from modeling_gpt2scratch.evaluation.scoring.token_scores import head_product, score_tokens


@pytest.fixture
def states():
    return torch.randn(7, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def head():
    torch.manual_seed(1)
    return nn.Linear(24, 101, bias=False)


@torch.no_grad()
def test_rows_begin_at_cache_lines_and_hold_the_heads_numbers(head, states):
    found = head_product(head, states)
    assert found.shape == (7, 101) and found.stride() == (112, 1)
    torch.testing.assert_close(found, head(states), rtol=1e-6, atol=1e-6)


class Doubled(nn.Linear):
    def forward(self, states):
        return 2 * super().forward(states)


def hooked(module, inputs, output):
    return 2 * output


@torch.no_grad()
def test_a_head_that_does_more_than_multiply_is_called_itself(head, states):
    expected = 2 * head(states)
    doubled = Doubled(24, 101, bias=False)
    doubled.load_state_dict(head.state_dict())
    assert torch.equal(head_product(doubled, states), expected)

    handle = head.register_forward_hook(hooked)
    assert torch.equal(head_product(head, states), expected)
    handle.remove()
    own_forward = head.forward
    head.forward = lambda states: 2 * own_forward(states)  # as Accelerate's hooks do
    assert torch.equal(head_product(head, states), expected)
    del head.forward

    biased = nn.Linear(24, 101)
    assert torch.equal(head_product(biased, states), biased(states))
    assert head_product(head.to(torch.bfloat16), states.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert head_product(head.float(), states).dtype == torch.bfloat16


@torch.no_grad()
def test_scores_are_the_same_in_any_number_of_passes(head, states, monkeypatch):
    sources = torch.tensor([0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 6])  # several targets of one state
    targets = torch.arange(11) * 9
    log_probs = head(states).log_softmax(-1)[sources]
    targets[4] = log_probs[4].argmax()
    expected = -log_probs.gather(1, targets[:, None]).squeeze(1)
    for rows in (1, 2, 3, 128):
        monkeypatch.setitem(token_scores.HEAD_ROWS, "cpu", rows)
        nats, is_argmax = score_tokens(
            lambda chunk: head_product(head, chunk), states, sources, targets
        )
        torch.testing.assert_close(torch.from_numpy(nats), expected)
        assert (is_argmax == (log_probs.argmax(-1) == targets).numpy()).all()
        assert is_argmax[4]
