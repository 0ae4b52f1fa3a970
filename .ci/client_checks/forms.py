"""A trained checkpoint in both forms, and what this package writes with it."""

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
N_NEW = 24
N_PROMPTS = 4
# Between the best token and the second, in nats: above what another order of summing can change.
LEAST_MARGIN = 0.01
N_STEPS = 600
# Less than a minute of one core; the text is that of the documentation.
TRAINING = (
    "--model tiny --n_layer 2 --n_embd 64 --n_head 2 --n_positions 128 --total_batch_tokens 1024 "
    f"--micro_batch_size 8 --max_steps {N_STEPS} --optimizer muon --learning_rate 0.01 "
    f"--eval_every {N_STEPS} --save_every {N_STEPS} --log_every 200"
)
PROMPTS = (
    "The checkpoint is",
    "A run that was",
    "The loss of the",
    "python train_accelerate.py --data",
    "Each process reads",
    "If the directory",
    "The model and its tokenizer",
    "| argument | default |",
    "This page says how to",
    "A file is complete or",
)


def make_forms(directory: Path) -> None:
    """Writes `run`, `gpt2` and `expected.json`; one or two minutes on a core.

    `run` is a checkpoint-N: vLLM once stumbled over the optimizer's file beside its model.
    """
    pages = sorted((REPOSITORY / "docs").rglob("*.md"))
    text = "<|endoftext|>".join(page.read_text(encoding="utf-8") for page in pages)
    (directory / "pages.txt").write_text(text, encoding="utf-8")
    data = ["--dataset", directory / "pages.txt", "--output_dir", directory / "data"]
    prepare = ["prepare_data.py", *data, "--tokenizer", "bpe:512", "--val_fraction", "0.1"]
    (directory / "run").symlink_to(Path("training", f"checkpoint-{N_STEPS}"))
    output = ["--output_dir", directory / "training"]
    train = ["train_accelerate.py", "--data", directory / "data", *output]
    convert = ["-m", "modeling_gpt2scratch", "convert", "to-gpt2"]
    for command in (
        prepare,
        [*train, *TRAINING.split()],
        [*convert, directory / "run", directory / "gpt2"],
    ):
        subprocess.run([sys.executable, *map(str, command)], cwd=REPOSITORY, check=True)
    expected = expected_of(directory / "run")
    (directory / "expected.json").write_text(json.dumps(expected))


def expected_of(run: Path) -> dict:
    """Prompts, the greedy ids after each, and their mean negative log-likelihood in nats.

    A prompt after which two tokens are nearly even, or after which the text ends, says nothing
    about a client and is left out.
    """
    import torch
    from transformers import AutoTokenizer

    from modeling_gpt2scratch import GPT2ScratchForCausalLM

    model = GPT2ScratchForCausalLM.from_pretrained(run).eval()
    tokenizer = AutoTokenizer.from_pretrained(run)
    expected = {"n_new": N_NEW, "texts": [], "prompts": [], "tokens": [], "nll": []}
    for text in PROMPTS:
        prompt = tokenizer(text)["input_ids"]
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)).long(),
            **{"do_sample": False, "max_new_tokens": N_NEW, "eos_token_id": None},
        )
        new = ids[0, len(prompt) :]
        with torch.no_grad():
            log_probs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        best = log_probs.topk(2).values
        if (best[:, 0] - best[:, 1]).min() < LEAST_MARGIN or tokenizer.eos_token_id in new:
            continue
        expected["texts"].append(text)
        expected["prompts"].append(prompt)
        expected["tokens"].append(new.tolist())
        expected["nll"].append(-log_probs.gather(1, new[:, None]).mean().item())
    if len(expected["prompts"]) < N_PROMPTS:
        n_left = len(expected["prompts"])
        raise SystemExit(f"expected {N_PROMPTS} prompts without ties, found {n_left}; add some")
    return {
        key: value[:N_PROMPTS] if isinstance(value, list) else value
        for key, value in expected.items()
    }
