"""CTranslate2, in float32."""

from pathlib import Path

import ctranslate2
from ctranslate2.converters import TransformersConverter
from transformers import AutoTokenizer

from client_checks.comparison import Answer, check


def answer(directory: Path, expected: dict) -> Answer:
    """What its generator writes; it takes and gives tokens as text."""
    converter = TransformersConverter(str(directory), trust_remote_code=directory.name == "run")
    converted = converter.convert(f"{directory}-ctranslate2", force=True)
    generator = ctranslate2.Generator(converted, device="cpu", compute_type="float32")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    words = [tokenizer.convert_ids_to_tokens(ids) for ids in expected["prompts"]]
    n_new = expected["n_new"]
    # As many as asked for, also after an end of text, and without the prompt.
    lengths = {"max_length": n_new, "min_length": n_new, "include_prompt_in_result": False}
    results = generator.generate_batch(words, sampling_topk=1, **lengths)
    whole = [
        tokenizer.convert_ids_to_tokens(prompt + new)
        for prompt, new in zip(expected["prompts"], expected["tokens"], strict=True)
    ]
    scores = [score.log_probs[-n_new:] for score in generator.score_batch(whole)]
    nll = [-sum(log_probs) / n_new for log_probs in scores]
    return Answer([result.sequences_ids[0] for result in results], nll)


if __name__ == "__main__":
    check(answer)
