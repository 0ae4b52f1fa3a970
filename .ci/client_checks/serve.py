"""`gpt2scratch serve`, which is `transformers serve` on a stock copy, asked by OpenAI's client."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
from transformers import AutoTokenizer

from client_checks.comparison import Answer, check

ADDRESS = re.compile(r"^(\S+) answers at (http://\S+)", re.MULTILINE)


def answer(directory: Path, expected: dict) -> Answer:
    """What the client gets, as the ids of its text."""
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    wanted = [tokenizer.decode(ids) for ids in expected["tokens"]]
    with served(directory) as (name, url):
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        request = {"model": name, "temperature": 0, "max_tokens": expected["n_new"]}
        texts = [
            client.completions.create(prompt=prompt, **request).choices[0].text
            for prompt in expected["texts"]
        ]
    # Text is what the client gets; equal text counts as equal ids.
    ids = [
        own if text == whole else tokenizer(text)["input_ids"]
        for own, text, whole in zip(expected["tokens"], texts, wanted, strict=True)
    ]
    return Answer(ids, note="compared as text")


@contextlib.contextmanager
def served(directory: Path) -> Iterator[tuple[str, str]]:
    """The model's name and the server's address, while it runs."""
    command = [sys.executable, "-m", "modeling_gpt2scratch", "serve", directory, "--port", "0"]
    environment = os.environ | {"XDG_CACHE_HOME": str(directory.parent / "cache")}
    log = directory.with_name(f"{directory.name}-serve.log")
    with (
        log.open("w") as errors,
        subprocess.Popen(
            list(map(str, command)),
            **{"stdout": subprocess.PIPE, "stderr": errors, "text": True, "env": environment},
        ) as server,
    ):
        try:
            found = ADDRESS.match(server.stdout.readline())
            if found is None:
                server.wait()
                raise ValueError(log.read_text().strip().splitlines()[-1])
            yield found.groups()
        finally:
            server.terminate()


if __name__ == "__main__":
    check(answer)
