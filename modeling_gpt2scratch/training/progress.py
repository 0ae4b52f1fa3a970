"""How far a run has come: what a checkpoint must know besides weights and moments."""

from dataclasses import dataclass

from .configuration import TrainConfig
from .guard_rails import DivergenceError, LossGuard

MAX_ROLLBACKS = 3  # to the same checkpoint


@dataclass
class TrainingProgress:
    """The position of a run. Everything else that decides its future is a function of it."""

    guard: LossGuard
    step: int = 0  # optimizer updates made
    left_out_steps: int = 0  # steps' worth of data that rollbacks have skipped
    elapsed_seconds: float = 0.0  # spent in training, over all resumptions
    rolled_back_to: int | None = None  # the step of the last rollback,
    rollbacks: int = 0  # and how often in succession

    @classmethod
    def load(cls, state: dict, config: TrainConfig) -> "TrainingProgress":
        """The position that `to_state` wrote into a checkpoint, or the start if there is none."""
        guard = LossGuard(
            spike_threshold=config.spike_threshold,
            max_skipped_steps=config.max_skipped_steps,
            state=state.get("guard"),
        )
        names = ("step", "left_out_steps", "elapsed_seconds")
        return cls(guard, **{name: state[name] for name in names if name in state})

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
        self.step = state["step"]
        self.guard.load_state_dict(state["guard"])

    @property
    def data_step(self) -> int:
        """The step whose data come next."""
        return self.step + self.left_out_steps

    def to_state(self) -> dict:
        """JSON values for a checkpoint."""
        return {
            "step": self.step,
            "left_out_steps": self.left_out_steps,
            "elapsed_seconds": round(self.elapsed_seconds, 3),
            "guard": self.guard.state_dict(),
        }
