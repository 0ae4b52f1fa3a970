"""Models in directories where something went wrong on the way, or was put there to do harm."""

import json
import struct
from pathlib import Path

import torch

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 548105171\n"


def lfs_pointer(directory: Path) -> Path:
    """A model's directory as a clone without Git LFS leaves it: no weights, and no tokenizer."""
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "gpt2", "n_layer": 2}')
    (directory / "model.safetensors").write_bytes(LFS_POINTER)
    return directory


# What happened to a safetensors file, and what is then found.
DAMAGES = {
    "cut": "incomplete metadata, .*; copy or download it again",
    "cut in the header": "invalid header length; copy",
    "empty": "an empty file; copy",
    "Git-LFS pointer": "a Git-LFS pointer; run `git lfs pull` there",
    "huge header": "header too large; copy",
    "header beyond the end": "invalid header length; copy",
    "no JSON": "invalid JSON in header: .*; copy",
    "web page": "a web page; download the file itself",
}


def damaged(content: bytes, damage: str) -> bytes:
    """A safetensors file after that damage."""
    return {
        "cut": content[:-5],
        "cut in the header": content[:20],
        "empty": b"",
        "Git-LFS pointer": LFS_POINTER,
        "huge header": struct.pack("<Q", 1 << 40) + content[8:],
        "header beyond the end": struct.pack("<Q", len(content)) + content[8:],
        "no JSON": content[:8] + b"!" + content[9:],
        "web page": b"<!DOCTYPE html><html><body>404: not found</body></html>",
    }[damage]


# Changes of a config.json, or all of it, that make no model.
BAD_CONFIGS = {
    "no JSON": "{",
    "a list": "[]",
    "deep": "[" * 9999,
    "text for a number": {"n_layer": "two"},
    "a fraction": {"n_embd": 32.5},
    "null": {"vocab_size": None},
    "a negative size": {"n_head": -2},
    "no divisor": {"n_head": 11},
    "a mistyped number of layers": {"n_layer": 10**9},
    "a mistyped width": {"n_embd": 2**40},
    "another activation": {"activation_function": "relu"},
    "not a number": {"layer_norm_epsilon": float("nan")},
    "an unknown dtype": {"dtype": "float33"},
    "an object for a number": {"n_positions": {}},
}


def spoil_config(directory: Path, change: dict | str) -> None:
    """Changes values of a model's configuration, or replaces all of it."""
    path = directory / "config.json"
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change)
    path.write_text(change)


def add_hostile_code(directory: Path) -> Path:
    """Names code in a model's directory as the code of its classes; returns what it would make."""
    touched = directory / "touched"
    code = f"open({str(touched)!r}, 'w').close()\n"
    (directory / "hostile.py").write_text(f"{code}class Any: pass\n")
    (directory / "custom_generate").mkdir()
    (directory / "custom_generate" / "generate.py").write_text(f"{code}def generate(**_): pass\n")
    kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
    spoil_config(directory, {"auto_map": dict.fromkeys(kinds, "hostile.Any")})
    tokenizer_config = directory / "tokenizer_config.json"
    if tokenizer_config.exists():
        settings = json.loads(tokenizer_config.read_text())
        settings["auto_map"] = {"AutoTokenizer": ["hostile.Any", "hostile.Any"]}
        tokenizer_config.write_text(json.dumps(settings))
    return touched


class Touch:
    """What an attacker would put into a pickle: code that runs when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def replace_by_hostile_pickle(directory: Path) -> Path:
    """Puts a pickle in the place of a model's weights; returns what it would make."""
    (directory / "model.safetensors").unlink()
    touched = directory / "touched"
    torch.save({"transformer.ln_f.bias": Touch(touched)}, directory / "pytorch_model.bin")
    return touched
