"""Muon for matrices and AdamW for everything else, in one optimizer.

One, because Accelerate's FSDP2 and DeepSpeed know no more than one. Its parameters may be whole on
each process, as under DDP, or sharded by rows, as under FSDP2.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from .matrix_sharing import (
    MatrixJob,
    orthogonalize_alone,
    orthogonalize_replicated,
    orthogonalize_sharded,
)
from .newton_schulz import iteration_dtype, update_scale

RULES = ("adamw", "muon")


class MuonAdamW(Optimizer):
    """Steps each parameter group by its `rule`, "muon" or "adamw".

    A Muon group's `parts` says of how many matrices, stacked by rows, each of its parameters
    consists. The processes of the default group, or of the mesh that parameters are sharded over,
    must step together and hold the same parameters; they share the work of Muon.

    If the attribute `found_inf` is a tensor of one element, a step changes nothing where it is 1.
    It is read on its device only. This is the protocol of torch's fused optimizers, except that
    gradients are not unscaled.

    Args:
        params: groups, or parameters for a single group.
        lr: learning rate of groups that bring none.
        weight_decay: decoupled, times the learning rate.
        betas: of AdamW.
        eps: of AdamW.
        momentum: of Muon, in Nesterov's form.
        rule: of groups that bring none.
        fused: AdamW in one kernel. Without it `found_inf` is no protection, and whoever steps has
            to look at the number first.

    Raises:
        ValueError: for an unknown rule, or a parameter of Muon that is no matrix of such parts.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025 (its scale and weight decay); Loshchilov and
    Hutter 2019 (AdamW).
    """

    def __init__(
        self,
        params,
        *,
        lr: float,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        momentum: float = 0.95,
        rule: str = "adamw",
        fused: bool = True,
    ):
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "betas": betas,
            "eps": eps,
            "momentum": momentum,
            "rule": rule,
            "parts": 1,
            "fused": fused,  # what torch asks before it puts the loaded `step` on a device
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict) -> None:
        """Checks and adds a group."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["rule"] not in RULES:
            raise ValueError(f"expected a rule of {' or '.join(RULES)}, found {group['rule']!r}")
        if group["rule"] == "muon":
            for parameter in group["params"]:
                _check_matrix(parameter, group["parts"])

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Tensor | None:
        """One update of all parameters that have a gradient.

        Raises:
            ValueError: for parameters of Muon that were flattened, or are sharded by columns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices = []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["rule"] == "muon":
                matrices += [(parameter, group) for parameter in parameters]
            else:
                self._step_adamw(parameters, group)
        self._step_muon([(p, group) for p, group in matrices if not isinstance(p, DTensor)])
        self._step_muon([(p, group) for p, group in matrices if isinstance(p, DTensor)])
        return loss

    def _step_adamw(self, parameters: Sequence[Tensor], group: dict) -> None:
        """torch's own AdamW, on the rows that this process has."""
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                device = parameter.device if group["fused"] else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            [_local(parameter) for parameter in parameters],
            [_local(parameter.grad) for parameter in parameters],
            [_local(state["exp_avg"]) for state in states],
            [_local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            found_inf=self._found_inf() if group["fused"] else None,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _step_muon(self, matrices: Sequence[tuple[Tensor, dict]]) -> None:
        """Momentum and update for parameters that are all whole or all sharded."""
        if not matrices:
            return
        device = matrices[0][0].device
        found_inf = self._found_inf()
        is_skipped = None if found_inf is None else found_inf.to(device, non_blocking=True).bool()
        dtype = iteration_dtype(device)
        jobs = []
        for parameter, group in matrices:
            _check_matrix(parameter, group["parts"])
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momentum_buffer, gradient = _local(state["momentum_buffer"]), _local(parameter.grad)
            # A gradient that is no number is replaced, as 0 times it would be no number either.
            finite = gradient
            if is_skipped is not None:
                finite = torch.where(is_skipped, momentum_buffer, gradient)
            momentum_buffer.lerp_(finite, 1 - group["momentum"])
            jobs.append(
                MatrixJob(
                    shape=parameter.shape,
                    parts=group["parts"],
                    rows=_nesterov(gradient, momentum_buffer, group["momentum"], dtype),
                )
            )
        parameters = [parameter for parameter, _ in matrices]
        updates = _orthogonalize_together(parameters, jobs, dtype=dtype)
        for (parameter, group), update in zip(matrices, updates, strict=True):
            rows, lr = _local(parameter), group["lr"]
            decay = 1 - lr * group["weight_decay"]
            if is_skipped is not None:
                decay = torch.where(is_skipped, 1.0, decay)
                update = update.masked_fill(is_skipped, 0.0)
            rows.mul_(decay)
            rows.add_(update, alpha=-lr * update_scale(parameter.shape, parts=group["parts"]))

    def _found_inf(self) -> Tensor | None:
        """The flag, whole on this process."""
        found_inf = getattr(self, "found_inf", None)
        return None if found_inf is None else _local(found_inf)


def _nesterov(
    gradient: Tensor, momentum_buffer: Tensor, momentum: float, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """Makes a matrix's update when its turn comes, so that few exist at a time."""
    return lambda: gradient.lerp(momentum_buffer, momentum).to(dtype)


def _orthogonalize_together(
    parameters: Sequence[Tensor], jobs: Sequence[MatrixJob], *, dtype: torch.dtype
) -> Iterator[Tensor]:
    """What this process needs of the orthogonal matrices, in the order of the jobs."""
    first = parameters[0]
    if isinstance(first, DTensor):
        group = _sharding_group(first)
        if any(_sharding_group(parameter) is not group for parameter in parameters):
            raise ValueError("expected all matrices of Muon sharded over one mesh, found several")
        return orthogonalize_sharded(jobs, group, device=_local(first).device, dtype=dtype)
    if dist.is_initialized() and dist.get_world_size() > 1:
        return orthogonalize_replicated(jobs, dist.group.WORLD, device=first.device, dtype=dtype)
    return orthogonalize_alone(jobs)


def _sharding_group(parameter: DTensor) -> dist.ProcessGroup:
    """The processes that a parameter's rows are dealt out to."""
    shards = [dim for dim, placement in enumerate(parameter.placements) if placement == Shard(0)]
    n_replicated = sum(isinstance(placement, Replicate) for placement in parameter.placements)
    if len(shards) != 1 or n_replicated != len(parameter.placements) - 1:
        raise ValueError(
            f"expected matrices of Muon sharded by rows over one dimension of the mesh, found "
            f"{parameter.placements}; use AdamW with such a plan"
        )
    return parameter.device_mesh.get_group(shards[0])


def _check_matrix(parameter: Tensor, parts: int) -> None:
    """Refuses what cannot be orthogonalized."""
    if parameter.dim() != 2 or parameter.shape[0] % parts:
        raise ValueError(
            f"expected a matrix of {parts} x n rows for Muon, found shape "
            f"{tuple(parameter.shape)}; use AdamW for it, and where ZeRO flattens parameters"
        )


def _local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor; writing to it writes to the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
