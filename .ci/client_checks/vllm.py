"""vLLM on a CPU, in float32; our own form runs through its backend for transformers' models."""

import os
from pathlib import Path

from client_checks.comparison import Answer, check

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def answer(directory: Path, expected: dict) -> Answer:
    """What its engine writes, with the log-probability of each token."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(directory),
        trust_remote_code=directory.name == "run",
        **{"dtype": "float32", "max_model_len": 128, "max_num_seqs": 4, "enforce_eager": True},
    )
    n_new = expected["n_new"]
    settings = SamplingParams(temperature=0, max_tokens=n_new, ignore_eos=True, logprobs=0)
    prompts = [{"prompt_token_ids": ids} for ids in expected["prompts"]]
    outputs = [output.outputs[0] for output in llm.generate(prompts, settings, use_tqdm=False)]
    tokens = [list(output.token_ids) for output in outputs]
    # The log-probabilities are those of its own tokens, so they are compared where these are equal.
    is_equal = tokens == expected["tokens"]
    nll = [-output.cumulative_logprob / n_new for output in outputs] if is_equal else None
    return Answer(tokens, nll)


if __name__ == "__main__":
    check(answer)
