"""GPT-2 from scratch, at home in the Hugging Face ecosystem.

Importing this package makes transformers' Auto classes know the model without importing torch or
transformers: the workers that prepare data import it, too. So public names are resolved on first
use (PEP 562), and the registration waits until somebody imports transformers.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder

__version__ = "0.1.0"

_CONFIGURATION = "configuration_gpt2scratch"
_MODELING = "modeling_gpt2scratch"
_MODEL_FILES = (_CONFIGURATION, _MODELING, "loading_gpt2scratch", "loss_gpt2scratch")
_HOME_OF = {
    "GPT2ScratchConfig": _CONFIGURATION,
    "GPT2ScratchForCausalLM": _MODELING,
    "GPT2ScratchModel": _MODELING,
    "GPT2ScratchPreTrainedModel": _MODELING,
    "ShardLoader": "data.loading.loader",
    "WindowDataset": "data.loading.trainer_dataset",
    "compare": "api",
    "prepare": "api",
    "publish": "api",
    "train": "api",
}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    """Imports a public name from its module on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_auto_classes() -> None:
    """Tells the Auto classes about the model, and checkpoints to carry its code with them."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from .configuration_gpt2scratch import GPT2ScratchConfig
    from .modeling_gpt2scratch import GPT2ScratchForCausalLM, GPT2ScratchModel

    AutoConfig.register(GPT2ScratchConfig.model_type, GPT2ScratchConfig, exist_ok=True)
    AutoModel.register(GPT2ScratchConfig, GPT2ScratchModel, exist_ok=True)
    AutoModelForCausalLM.register(GPT2ScratchConfig, GPT2ScratchForCausalLM, exist_ok=True)
    GPT2ScratchConfig.register_for_auto_class()
    GPT2ScratchModel.register_for_auto_class("AutoModel")
    GPT2ScratchForCausalLM.register_for_auto_class("AutoModelForCausalLM")


class _RegisterWithTransformers(MetaPathFinder):
    """Registers the model as soon as transformers and the model files are there, in any order.

    It watches transformers, whose own `__init__` only lists lazy names and so leaves no submodule
    half-imported, and our model files, which may be what imports transformers first.
    """

    _watched = ("transformers", *(f"{__name__}.{file}" for file in _MODEL_FILES))

    def __init__(self):
        self._executing: set[str] = set()

    def find_spec(self, fullname, path=None, target=None):
        """The regular spec of a watched module, with the registration appended to its execution."""
        if fullname not in self._watched:
            return None
        finders = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module) -> None:
                self._executing.add(fullname)
                try:
                    execute(module)
                finally:
                    self._executing.discard(fullname)
                if not self._executing:
                    _register_auto_classes()

            spec.loader.exec_module = execute_and_register
        return spec


if "transformers" in sys.modules:
    _register_auto_classes()
else:
    sys.meta_path.insert(0, _RegisterWithTransformers())
