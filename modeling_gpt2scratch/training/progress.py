"""How far a run has come: what a checkpoint must know besides weights and moments."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

from modeling_gpt2scratch.checkpoints.checkpoint import CheckpointError
from modeling_gpt2scratch.checkpoints.retention import STATE_NAME
from modeling_gpt2scratch.common.errors import named
from modeling_gpt2scratch.distributed.processes import say

from .configuration import TrainConfig
from .guard_rails import DivergenceError, LossGuard

MAX_ROLLBACKS = 3  # to the same checkpoint


@dataclass
class StepMeans:
    """Mean loss and gradient norm of the steps since the last multiple of `log_every`.

    Validations and checkpoints make lines between these multiples; the sums go on across them, so
    that a curve does not depend on where they are.
    """

    n_steps: int = 0  # those that count, with a finite loss and gradient
    loss: float = 0.0  # sums
    grad_norm: float = 0.0

    def add(self, loss: float, grad_norm: float) -> None:
        """Adds a step; one that was skipped leaves the means as they are."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.n_steps += 1
            self.loss += loss
            self.grad_norm += grad_norm

    def values(self) -> dict[str, float]:
        """The means; without a step they are no numbers."""
        n_steps = self.n_steps or math.nan
        return {"loss": self.loss / n_steps, "grad_norm": self.grad_norm / n_steps}


@dataclass
class BestValidation:
    """The lowest validation loss so far."""

    step: int | None = None
    loss: float | None = None
    n_since: int = 0  # validations without a lower one
    last_step: int | None = None  # of the last validation

    def add(self, step: int, loss: float) -> None:
        """Adds a validation; one that is no number never is the best.

        One that is made once more at the same step changes nothing.
        """
        if step == self.last_step:
            return
        self.last_step = step
        if loss < (math.inf if self.loss is None else self.loss):
            self.step, self.loss, self.n_since = step, loss, 0
        else:
            self.n_since += 1


@dataclass
class TrainingProgress:
    """The position of a run. Everything else that decides its future is a function of it."""

    guard: LossGuard
    step: int = 0  # optimizer updates made
    left_out_steps: int = 0  # steps' worth of data that rollbacks have skipped
    elapsed_seconds: float = 0.0  # spent in training, over all resumptions
    means: StepMeans = field(default_factory=StepMeans)
    best: BestValidation = field(default_factory=BestValidation)
    is_owed: bool = False  # validation and scores after `step`, which a stop has left to be made
    was_done: bool = False  # before anything new was asked of it
    rolled_back_to: int | None = None  # the step of the last rollback,
    rollbacks: int = 0  # and how often in succession
    forgotten_at: int | None = None  # the step of a checkpoint whose best validation does not count

    @classmethod
    def load(
        cls, state: dict, config: TrainConfig, validation: str | None, *, place: Path | None = None
    ) -> "TrainingProgress":
        """The position that a checkpoint holds, or the start if there is none.

        Args:
            state: of the checkpoint, what `to_state` wrote among it; else empty.
            validation: what tells the held-out tokens from others.

        Raises:
            CheckpointError: if the state is of another version, or was edited.
        """
        try:
            return cls._loaded(state, config, validation)
        except (LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{place}: expected the state of a run in {STATE_NAME}, found {named(error)}; "
                f"resume from another checkpoint"
            ) from error

    @classmethod
    def _loaded(
        cls, state: dict, config: TrainConfig, validation: str | None
    ) -> "TrainingProgress":
        guard = LossGuard(
            spike_threshold=config.spike_threshold, max_skipped_steps=config.max_skipped_steps
        )
        names = ("left_out_steps", "elapsed_seconds")
        progress = cls(guard, **{name: state[name] for name in names if state})
        if state:
            progress._return_to(state)
        progress.was_done = bool(state) and progress.is_done(config)
        before = state.get("config", {})
        if before.get("eval_tokens", config.eval_tokens) != config.eval_tokens:
            progress.forget_best("losses with another --eval_tokens cannot be compared")
        elif state.get("validation", validation) != validation:
            progress.forget_best("losses on other validation data do not compare")
        # A run that was done has something left to do if its end is now here, or if a task, the
        # number of its examples or the repository is new.
        n_steps, tasks, repository = config.max_steps, config.eval_tasks, config.push_to_hub
        is_other_end = progress.step == n_steps != before.get("max_steps", n_steps)
        is_new = {*tasks} - {*before.get("eval_tasks", tasks)}
        limit = config.eval_tasks_limit
        is_new = is_new or (tasks and before.get("eval_tasks_limit", limit) != limit)
        is_new = is_new or (repository and repository != before.get("push_to_hub", repository))
        progress.is_owed |= progress.was_done and bool(is_other_end or is_new)
        return progress

    def forget_best(self, reason: str | None = None) -> None:
        """Begins anew with the best validation, also after a rollback to this step."""
        if reason and self.best.step is not None:
            best = f"the best validation so far (step {self.best.step})"
            say(f"{best} no longer counts: {reason}")
        self.best, self.forgotten_at = BestValidation(), self.step

    def go_back(self, state: dict) -> None:
        """Returns to the step of a checkpoint; the data read since then will not be read again.

        Raises:
            DivergenceError: if the run has come back to this step too often.
        """
        self.rollbacks = self.rollbacks + 1 if self.rolled_back_to == state["step"] else 1
        self.rolled_back_to = state["step"]
        if self.rollbacks > MAX_ROLLBACKS:
            raise DivergenceError(
                f"expected to get past the spikes after step {state['step']}, found more of them "
                f"after going back there {MAX_ROLLBACKS} times; lower --learning_rate"
            )
        self.left_out_steps = self.data_step - state["step"]
        self._return_to(state)
        if self.step == self.forgotten_at:
            self.forget_best()

    @property
    def data_step(self) -> int:
        """The step whose data come next."""
        return self.step + self.left_out_steps

    def is_out_of_patience(self, patience: int) -> bool:
        """Whether so many validations in a row found no lower loss; 0 for never."""
        return 0 < patience <= self.best.n_since

    def is_done(self, config: TrainConfig) -> bool:
        """Whether there is nothing left to do."""
        is_at_end = self.step >= config.max_steps or self.is_out_of_patience(config.patience)
        return is_at_end and not self.is_owed

    def to_state(self) -> dict:
        """JSON values for a checkpoint."""
        return {
            "step": self.step,
            "left_out_steps": self.left_out_steps,
            "elapsed_seconds": round(self.elapsed_seconds, 3),
            "is_owed": self.is_owed,
            "guard": self.guard.state_dict(),
            "means": dataclasses.asdict(self.means),
            "best": dataclasses.asdict(self.best),
        }

    def _return_to(self, state: dict) -> None:
        """Takes what belongs to a step from a checkpoint."""
        self.step, self.is_owed = state["step"], state["is_owed"]
        self.guard.load_state_dict(state["guard"])
        self.means = StepMeans(**state["means"])
        self.best = BestValidation(**state["best"])
