"""The loss in chunks of tokens against the plain one, which materialises all logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM, loss_gpt2scratch
from modeling_gpt2scratch.loss_gpt2scratch import IGNORED, linear_cross_entropy


def inputs(n_tokens: int, *, n_channels=8, n_vocab=37, ignored=()) -> list[torch.Tensor]:
    """Hidden states (N, C), weight (V, C) and targets (N,), the first two with gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden_states = torch.randn(n_tokens, n_channels, generator=generator, requires_grad=True)
    weight = torch.randn(n_vocab, n_channels, generator=generator, requires_grad=True)
    targets = torch.randint(n_vocab, (n_tokens,), generator=generator)
    targets[list(ignored)] = IGNORED
    return [hidden_states, weight, targets]


def plain(hidden_states, weight, targets) -> torch.Tensor:
    """The textbook loss."""
    return F.cross_entropy((hidden_states @ weight.t()).float(), targets, ignore_index=IGNORED)


def loss_and_gradients(function, tensors, **options) -> list[torch.Tensor]:
    """What comes back forward, and what backward for the two tensors that have gradients."""
    loss = function(*tensors, **options)
    return [loss, *torch.autograd.grad(loss * 3, tensors[:2])]


@pytest.fixture(params=[False, True], ids=["step by step", "as compiled"])
def either_way(request, monkeypatch) -> None:
    """The loss as it runs, then as torch.compile sees it."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param)


@settings(deadline=None, max_examples=60)
@given(
    n_tokens=st.integers(1, 40),
    chunk_tokens=st.integers(1, 50),
    aligned=st.sampled_from([1, 8, 64]),
    ignored=st.sets(st.integers(0, 39), max_size=20),
    is_compiling=st.booleans(),
)
def test_any_chunks_and_any_padding_of_the_vocabulary_give_the_plain_loss_and_gradients(
    n_tokens, chunk_tokens, aligned, ignored, is_compiling
):
    ignored = {place for place in ignored if place < n_tokens - 1}  # one target is left
    tensors = inputs(n_tokens, ignored=ignored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss_gpt2scratch.CHUNK_TOKENS, "cpu", chunk_tokens)
        patch.setitem(loss_gpt2scratch.ALIGNED_WEIGHT, "cpu", aligned)
        patch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
        found = loss_and_gradients(linear_cross_entropy, tensors)
    for left, right in zip(found, loss_and_gradients(plain, tensors), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_products_run_in_its_type_and_the_weight_keeps_float32(dtype):
    hidden_states, weight, targets = tensors = inputs(600)  # more than one chunk
    with torch.autocast("cpu", dtype):
        found = loss_and_gradients(linear_cross_entropy, tensors)
        expected = loss_and_gradients(lambda h, w, t: plain(h, w, t), tensors)
    assert [tensor.dtype for tensor in found] == [torch.float32] * 3
    assert not torch.equal(found[0], plain(*tensors))  # it did round
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, atol=2e-3, rtol=2e-2)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("probability", [0.9, 0.99, 0.998, 0.9995])
def test_what_is_left_of_a_sure_prediction_is_still_a_gradient(dtype, probability):
    logit = torch.tensor(probability).logit().to(dtype).float()  # of which nothing is rounded off
    hidden_states, weight = torch.tensor([[1.0]]), torch.tensor([[logit], [0.0]])
    with torch.autocast("cpu", dtype):
        found = loss_and_gradients(
            linear_cross_entropy,
            [hidden_states.requires_grad_(), weight.requires_grad_(), torch.tensor([0])],
        )
    rest = 3 * (-logit).sigmoid()  # what the other token has
    torch.testing.assert_close(found[2].flatten(), torch.stack((-rest, rest)), rtol=5e-3, atol=0)


@pytest.mark.usefixtures("either_way")
def test_a_frequent_token_with_large_hidden_states_does_not_overflow_in_fp16():
    hidden_states, weight, targets = tensors = inputs(512)
    targets[:] = 3
    with torch.no_grad():
        hidden_states[:, 0], weight[:, 0] = 150.0, 0.0  # their sum is beyond 65,504
    with torch.autocast("cpu", torch.float16):
        found = loss_and_gradients(linear_cross_entropy, tensors)
    expected = loss_and_gradients(plain, tensors)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, atol=5e-3, rtol=5e-3)


def test_weights_in_bfloat16_sum_their_gradient_in_float32():
    tensors = inputs(2048)
    exact = loss_and_gradients(linear_cross_entropy, tensors)[2]
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in tensors[:2]]
    found = loss_and_gradients(linear_cross_entropy, [*halves, tensors[2]])[2]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=3e-3, rtol=3e-2)


@pytest.mark.parametrize(("is_compiling", "n_chunks"), [(False, 16), (True, 8)])
def test_a_compiled_batch_is_cut_into_eight_chunks_at_most(monkeypatch, is_compiling, n_chunks):
    monkeypatch.setitem(loss_gpt2scratch.CHUNK_TOKENS, "cpu", 4)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
    taken = []
    forward = loss_gpt2scratch._LinearCrossEntropy.forward

    def counting(ctx, hidden_states, weight, targets, dtype, is_grad_enabled, chunk_tokens, *more):
        taken.append(-(-len(targets) // chunk_tokens))
        return forward(
            ctx, hidden_states, weight, targets, dtype, is_grad_enabled, chunk_tokens, *more
        )

    monkeypatch.setattr(loss_gpt2scratch._LinearCrossEntropy, "forward", staticmethod(counting))
    linear_cross_entropy(*inputs(64))
    assert taken == [n_chunks]


def test_num_items_in_batch_divides_the_sum():
    tensors = inputs(10, ignored=[3])
    torch.testing.assert_close(
        linear_cross_entropy(*tensors, num_items_in_batch=torch.tensor(90)), plain(*tensors) / 10
    )


@pytest.mark.usefixtures("either_way")
def test_a_frozen_weight_gets_no_gradient_and_hidden_states_the_same():
    hidden_states, weight, targets = inputs(10)
    expected = torch.autograd.grad(plain(hidden_states, weight, targets), hidden_states)[0]
    loss = linear_cross_entropy(hidden_states, weight.detach(), targets)
    torch.testing.assert_close(torch.autograd.grad(loss, hidden_states)[0], expected)


@pytest.mark.usefixtures("either_way")
def test_without_gradients_it_only_measures():
    tensors = inputs(10)
    with torch.no_grad():
        loss = linear_cross_entropy(*tensors)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(*tensors).detach())


def test_a_second_backward_pass_is_refused_because_the_first_scales_in_place():
    hidden_states, weight, targets = inputs(10)
    loss = linear_cross_entropy(hidden_states, weight, targets)
    torch.autograd.grad(loss, weight, retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again, without retain_graph"):
        torch.autograd.grad(loss, weight)


def test_a_second_derivative_is_refused_as_it_would_lack_the_loss_itself():
    hidden_states, weight, targets = inputs(10)
    loss = linear_cross_entropy(hidden_states, weight, targets)
    with pytest.raises(RuntimeError, match="found create_graph=True; give labels in place of shi"):
        torch.autograd.grad(loss, weight, create_graph=True)


def test_the_gradient_of_the_weight_is_not_copied_on_its_way_to_the_parameter():
    _, weight, targets = inputs(10)
    hidden_states = torch.nn.functional.embedding(targets.clamp(min=0), weight)
    loss = linear_cross_entropy(2 * hidden_states, weight, targets)
    with torch.profiler.profile(record_shapes=True) as profile:
        loss.backward()
    shape = list(weight.shape)
    operators = {event.name for event in profile.events() if shape in (event.input_shapes or [])}
    # Scaled and added to in place; what is new is the gradient of the other use.
    assert {"aten::mul_", "aten::add_"} <= operators
    assert not {"aten::mul", "aten::add", "aten::clone", "aten::copy_"} & operators


@pytest.mark.usefixtures("either_way")
def test_a_target_beyond_the_vocabulary_is_an_error():
    hidden_states, weight, targets = inputs(10)
    targets[4] = 37
    with pytest.raises(RuntimeError, match="index 37 is out of bounds"):
        linear_cross_entropy(hidden_states, weight, targets)
    targets[4] = -1
    with pytest.raises(RuntimeError, match="index -1 is out of bounds"):
        linear_cross_entropy(hidden_states, weight, targets)


def test_no_tensor_of_all_logits_exists_at_any_moment():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        n_elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            for tensor in result if isinstance(result, (list, tuple)) else [result]:
                if isinstance(tensor, torch.Tensor):
                    self.n_elements = max(self.n_elements, tensor.numel())
            return result

    config = GPT2ScratchConfig(
        vocab_size=512, n_positions=1024, n_embd=8, n_layer=1, n_head=1, bos_token_id=0
    )
    model = GPT2ScratchForCausalLM(config)
    ids = torch.randint(512, (2, 1024))
    n_logits = 2 * 1024 * 512
    for labels, expected in (({"labels": ids}, True), ({"shift_labels": ids}, False)):
        with Largest() as largest:
            model(ids, **labels).loss.backward()
        assert (largest.n_elements >= n_logits) is expected


def test_the_models_two_losses_and_their_gradients_are_equal():
    config = GPT2ScratchConfig(
        vocab_size=101, n_positions=48, n_embd=48, n_layer=2, n_head=4, bos_token_id=0
    )
    model = GPT2ScratchForCausalLM(config)
    ids = torch.randint(101, (2, 33))
    labels = ids.clone()
    labels[0, 5:9] = IGNORED
    losses, gradients = [], []
    for arguments in (
        {"input_ids": ids, "labels": labels},
        {"input_ids": ids[:, :-1], "shift_labels": labels[:, 1:]},
    ):
        model.zero_grad()
        losses.append(model(**arguments).loss)
        losses[-1].backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=0)


def test_targets_may_be_of_any_whole_numbers():
    hidden_states, weight, targets = inputs(9, ignored={3})
    expected = linear_cross_entropy(hidden_states, weight, targets)
    assert linear_cross_entropy(hidden_states, weight, targets.int()) == expected


def test_targets_of_another_length_are_refused():
    hidden_states, weight = torch.randn(2, 513, 4), torch.randn(7, 4)
    targets = torch.zeros(2, 512, dtype=torch.long)
    with pytest.raises(ValueError, match=r"expected the shape \(2, 513\) .* found \(2, 512\)"):
        linear_cross_entropy(hidden_states, weight, targets)
