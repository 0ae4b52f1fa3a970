"""TRL: twenty steps of SFTTrainer on a text, and the checkpoint that it leaves."""

from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from client_checks.causal_lm import greedy, load, nll
from client_checks.comparison import Answer, check

N_STEPS = 20


def answer(directory: Path, expected: dict) -> Answer:
    """What the model writes before; then the loss must fall and the checkpoint reload equal."""
    model = load(directory)
    before = Answer(greedy(model, expected), nll(lambda ids: model(ids).logits, expected))
    text = (directory.parent / "pages.txt").read_text(encoding="utf-8")
    rows = Dataset.from_dict({"text": [text[start : start + 250] for start in range(0, 4000, 250)]})
    output = directory.with_name(f"{directory.name}-trl")
    options = {"max_steps": N_STEPS, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
    options |= {"logging_steps": 1, "save_steps": N_STEPS, "report_to": "none", "use_cpu": True}
    options |= {"max_length": 128, "bf16": False, "lr_scheduler_type": "constant"}
    trainer = SFTTrainer(
        model,
        args=SFTConfig(str(output), **options),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(directory, trust_remote_code=False),
    )
    trainer.train()
    losses = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    if last >= first:
        raise ValueError(f"expected the loss to fall, found {first:.3f}, then {last:.3f}")
    checkpoint = output / f"checkpoint-{N_STEPS}"
    ids = torch.tensor([expected["prompts"][0]])
    with torch.no_grad():
        wanted = trainer.model.eval()(ids).logits
        gap = (load(checkpoint, directory.name == "run")(ids).logits - wanted).abs().max().item()
    if gap > 1e-5:
        raise ValueError(f"expected the checkpoint to give the same logits, found {gap:.1e} apart")
    return Answer(before.tokens, before.nll, f"{N_STEPS} steps: loss falls, checkpoint reloads")


if __name__ == "__main__":
    check(answer)
