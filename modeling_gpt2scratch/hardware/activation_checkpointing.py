"""Activations that are computed a second time instead of kept."""

from transformers import PreTrainedModel


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keeps only the inputs of the blocks; what is inside is computed again on the way back.

    Losses and gradients stay as they are, with dropout, too: the random state of each block is
    remembered. Costs about a third more time. Call it before `compile_model`.
    """
    # The name before the word of the field became transformers' own, too.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
