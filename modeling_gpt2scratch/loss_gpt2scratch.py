"""The language-modelling loss in chunks of tokens. Travels inside every checkpoint.

With GPT-2's 50,257 tokens, the logits of a batch are by far its largest tensor, and the plain loss
holds them several times over: as the product, in float32, and as gradients. Here the logits of
one chunk of tokens at a time become a loss and, right away, gradients of the hidden states and of
the weight; then the next chunk takes their place. So no logits are kept for the backward pass, and
none have to be computed a second time there.

Shapes: N tokens, n tokens of one chunk, C channels, V vocabulary, V' and W the same with padding.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.loss.loss_utils import ForCausalLMLoss

IGNORED = -100  # the target that counts for nothing, as everywhere in torch and transformers
# Large enough that the weight's gradient, to which each chunk adds, costs little beside the matrix
# products; on a CPU, more gains little and takes memory.
CHUNK_TOKENS = {"cpu": 512}
DEFAULT_CHUNK_TOKENS = 2048
MOST_COMPILED_CHUNKS = 8  # each is compiled by itself
# Rows of the weight's gradient that are added at a time where the product has another type: a copy
# of the product in the sum's type is made on the way, which on a CPU should stay in its cache.
SUM_ROWS = {"cpu": 4096}
# fp16 ends at 65,504, and the weight's gradient is summed over a chunk before the loss scale comes
# into it. So the sum is one of smaller hidden states, of which those below 2^-8 lose a few bits.
SUM_SCALE = {torch.float16: 2.0**-6}
# 50,257 is odd. With a few places more, each row of logits begins at a whole cache line, and a CPU
# with AVX-512 multiplies faster. Tensor cores want as many rows of the weight.
ALIGNED_LOGITS = {"cpu": 64}
ALIGNED_WEIGHT = {"cuda": 64}


def linear_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    targets: Tensor,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Mean cross-entropy of `hidden_states @ weight.T`, a float32 scalar in nats per token.

    Under autocast the matrix products run in its type, as `nn.Linear` would; softmax and sums are
    always float32.

    Args:
        hidden_states: (..., C).
        weight: (V, C) of the language-modelling head.
        targets: (...) the token to predict at each place; -100 is ignored.
        num_items_in_batch: divide the sum by this instead of the number of targets.

    Raises:
        ValueError: if there is not one target for each hidden state.
    """
    if targets.shape != hidden_states.shape[:-1]:
        raise ValueError(
            f"targets: expected the shape {tuple(hidden_states.shape[:-1])} of the hidden states, "
            f"found {tuple(targets.shape)}"
        )
    device_type = hidden_states.device.type
    dtype = hidden_states.dtype
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    targets = targets.flatten().to(hidden_states.device, torch.long)
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORED).sum()
    total = _LinearCrossEntropy.apply(
        hidden_states.flatten(0, -2),
        weight,
        targets,
        dtype,
        torch.is_grad_enabled(),
        max(
            CHUNK_TOKENS.get(device_type, DEFAULT_CHUNK_TOKENS),
            -(-len(targets) // MOST_COMPILED_CHUNKS) if torch.compiler.is_compiling() else 1,
        ),
        # Compiled, the copy does not exist, and fewer operations compile faster.
        None if torch.compiler.is_compiling() else SUM_ROWS.get(device_type),
        ALIGNED_LOGITS.get(device_type, 1),
        ALIGNED_WEIGHT.get(device_type, 1),
    )
    return total / num_items_in_batch


def takes_hidden_states(model: nn.Module, device: torch.device) -> bool:
    """Whether a model's loss is that of `linear_cross_entropy`, with its head's weight at hand.

    A loss of a user's own wants logits. A head with a bias or a hook and an adapter in its place do
    more than multiply, and a weight that is offloaded or shared out is whole only while the head is
    called.
    """
    head = model.lm_head
    is_plain = type(head) is nn.Linear and type(head.weight) is nn.Parameter and head.bias is None
    is_plain = is_plain and not (head._forward_hooks or head._forward_pre_hooks)
    is_plain = is_plain and not (head._backward_hooks or head._backward_pre_hooks)
    return is_plain and head.weight.device == device and model.loss_function is ForCausalLMLoss


class _LinearCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy, whose gradients are made on the way forward."""

    @staticmethod
    def forward(
        ctx,
        hidden_states: Tensor,
        weight: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
        is_grad_enabled: bool,
        chunk_tokens: int,
        sum_rows: int | None,
        aligned_logits: int,
        aligned_weight: int,
    ) -> Tensor:
        """(N, C), (V, C), (N,) -> scalar; the matrix products are made in `dtype`."""
        n_vocab, n_chunk = len(weight), min(chunk_tokens, len(targets))
        padded = _with_zeros(weight.to(dtype), aligned_weight)  # (V', C)
        with_hidden, with_weight = (is_grad_enabled and need for need in ctx.needs_input_grad[:2])
        with_grad = with_hidden or with_weight
        hidden_grad = torch.empty_like(hidden_states) if with_hidden else None
        weight_grad = None
        if torch.compiler.is_compiling():
            of_chunk = _in_one_pass
        else:  # Used again by each chunk: the system hands out fresh pages slowly.
            n_places = len(padded) + -len(padded) % aligned_logits  # W
            logits_space = padded.new_empty(n_chunk, n_places)
            log_probs_space = padded.new_empty(n_chunk, n_places, dtype=torch.float32)
            of_chunk = partial(_in_place, logits_space, log_probs_space)

        sum_scale = SUM_SCALE.get(dtype, 1.0)
        total = torch.zeros((), device=hidden_states.device)
        for start in range(0, len(targets), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            hidden, target = hidden_states[chunk].to(dtype), targets[chunk]  # (n, C), (n,)
            is_target = (target != IGNORED).unsqueeze(-1)  # (n, 1)
            index = target.unsqueeze(-1).masked_fill(~is_target, 0)
            log_prob, logits_grad = of_chunk(hidden, padded, n_vocab, index, with_grad)
            total -= log_prob.masked_fill(~is_target, 0.0).sum()
            if not with_grad:
                continue
            counts = is_target.to(dtype)
            if with_hidden:
                hidden_grad[chunk] = (logits_grad @ padded) * counts
            if with_weight:
                hidden = hidden * (counts * sum_scale)
                weight_grad = _with_product(weight_grad, logits_grad.t(), hidden, sum_rows)
        if weight_grad is not None:
            if len(weight_grad) > n_vocab:  # a view keeps all of it, and is added to in a copy
                weight_grad = weight_grad[:n_vocab].clone()
            if sum_scale != 1:
                weight_grad /= sum_scale
            weight_grad = weight_grad.to(weight.dtype)
        if torch.compiler.is_compiling():
            ctx.save_for_backward(hidden_grad, weight_grad)
        else:
            ctx.grads = (hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Scales what the forward pass found, in place, without a copy.

        Nothing holds the gradients afterwards, so that autograd adds to them in place as well.

        Raises:
            RuntimeError: in a second pass through a retained graph; or for `create_graph=True`, as
                the gradients do not know how they depend on the weights.
        """
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "expected gradients of the first order, found create_graph=True; give labels in "
                "place of shift_labels"
            )
        if ctx.saved_tensors:  # under torch.compile
            return *(None if g is None else g * grad for g in ctx.saved_tensors), *[None] * 7
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError(
                "expected one backward pass through the loss, found a second, and the first has "
                "scaled its gradients in place; compute the loss again, without retain_graph"
            )
        return *(None if g is None else g.mul_(grad) for g in grads), *[None] * 7


def _with_zeros(weight: Tensor, aligned: int) -> Tensor:
    """A matrix with rows of zeros up to a multiple of `aligned`; itself if none are missing."""
    n_missing = -len(weight) % aligned
    return F.pad(weight, (0, 0, 0, n_missing)) if n_missing else weight


def _in_place(
    logits_space: Tensor,
    log_probs_space: Tensor,
    hidden: Tensor,
    padded: Tensor,
    n_vocab: int,
    index: Tensor,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the targets and the gradient of the logits, in memory that is there.

    Args:
        logits_space: (n or more, W) for the logits and their gradient.
        log_probs_space: (n or more, W) in float32.
        hidden: (n, C).
        padded: (V', C).
        n_vocab: V.
        index: (n, 1) the targets.
        with_grad: whether the gradient is wanted.

    Returns:
        (n, 1) in float32; and (n, V') or None.
    """
    n, n_padded = len(hidden), len(padded)
    logits, log_probs = logits_space[:n], log_probs_space[:n]
    torch.mm(hidden, padded.t(), out=logits[:, :n_padded])
    logits[:, n_vocab:] = -torch.inf  # no token: its probability and its gradient are 0
    torch.log_softmax(log_probs.copy_(logits), -1, out=log_probs)
    # Of a view whose rows have gaps between them, `nll_loss` would make a copy.
    log_prob = log_probs[:, :n_vocab].gather(1, index)
    if not with_grad:
        return log_prob, None
    # Probability minus target. The difference is taken in float32: a probability near 1 has only
    # two digits in bfloat16.
    log_probs.exp_().scatter_add_(1, index, -torch.ones_like(log_prob))
    same_type = logits.dtype == log_probs.dtype
    return log_prob, (log_probs if same_type else logits.copy_(log_probs))[:, :n_padded]


def _in_one_pass(
    hidden: Tensor, padded: Tensor, n_vocab: int, index: Tensor, with_grad: bool
) -> tuple[Tensor, Tensor]:
    """The same as `_in_place` for torch.compile, which makes few loops of it."""
    columns = torch.arange(len(padded), dtype=torch.int32, device=hidden.device)
    logits = (hidden @ padded.t()).float()
    if len(padded) > n_vocab:
        logits = logits.masked_fill(columns >= n_vocab, -torch.inf)
    log_probs = torch.log_softmax(logits, -1)
    logits_grad = log_probs.exp() - (columns == index.int()).float()
    return log_probs[:, :n_vocab].gather(1, index), logits_grad.to(hidden.dtype)


def _with_product(
    total: Tensor | None, left: Tensor, right: Tensor, sum_rows: int | None
) -> Tensor:
    """A float32 matrix to which `left @ right` was added; a new one for the first product."""
    is_first = total is None
    if is_first:
        total = left.new_empty(len(left), right.shape[1], dtype=torch.float32)
    if left.dtype == total.dtype:
        return torch.addmm(total, left, right, beta=0 if is_first else 1, out=total)
    n_rows = sum_rows or len(total)
    for start in range(0, len(total), n_rows):
        rows = slice(start, start + n_rows)
        product = left[rows] @ right
        if is_first:
            total[rows] = product
        else:
            total[rows] += product
    return total
