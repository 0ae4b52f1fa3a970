"""Documents for tests of the preparation."""

import json
import random

WORDS = ["ant", "grain", "winter", "song", "cicada", "store", "sing", "summer", "hungry", "dry"]


def fables(n, seed=0):
    """Different short documents, each of which spells the end of text."""
    generator = random.Random(seed)
    return [
        f"{seed} {i} {' '.join(generator.choices(WORDS, k=generator.randint(1, 30)))}"
        " é<|endoftext|>狐"
        for i in range(n)
    ]


def write_jsonl(path, documents):
    """The path, now of a file with these documents."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path
