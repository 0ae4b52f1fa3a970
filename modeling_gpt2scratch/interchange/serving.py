"""A run as `transformers serve` can offer it to OpenAI's clients.

That program knows only classes of transformers itself, and names to its clients what it finds in
the Hub's cache. So a stock copy of the model is kept in a cache of the same layout. As a module,
this is the program with requests that fit the model:

    python -m modeling_gpt2scratch.interchange.serving CACHE NAME [--host HOST] [--port PORT]
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BatchEncoding, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from modeling_gpt2scratch import __version__
from modeling_gpt2scratch.checkpoints.checkpoint import find_model
from modeling_gpt2scratch.checkpoints.retention import CHECKPOINT_PREFIX
from modeling_gpt2scratch.common.atomic_files import PARTIAL_SUFFIX, publish_directory
from modeling_gpt2scratch.common.checksums import file_sha256
from modeling_gpt2scratch.common.errors import named, one_line
from modeling_gpt2scratch.common.output_directory import writable_directory
from modeling_gpt2scratch.common.sampling import SAMPLING
from modeling_gpt2scratch.data.tokens.text import LONG_CHARACTERS, well_formed
from modeling_gpt2scratch.evaluation.scoring.encoding import prefix_token

from .conversion import read_run, save_converted, to_gpt2
from .foreign_checkpoints import ConversionError

# What of a run is in its copy.
SOURCES = ("config.json", "generation_config.json", "model*.safetensors*", "tokenizer*.json")
SOURCES += ("pytorch_model*", "vocab.*", "merges.txt")
SOURCES += ("*.jinja", "special_tokens_map.json", "added_tokens.json")
# For clients that only chat; the model writes on from the last message.
CHAT_TEMPLATE = "{{ messages[-1]['content'] }}"
MAX_NAME_CHARACTERS = 90  # the Hub has a limit
KEY = re.compile("[0-9a-f]{40}")
MAX_COPIES = 4  # the least recently served ones go
MAX_TOKEN_CHARACTERS = 256  # on average in a prompt; GPT-2's longest token has 128
MAX_COPYING_SECONDS = 86_400  # whoever began earlier was killed


def copy_for_serving(source: Path, root: Path) -> tuple[Path, str]:
    """A cache directory that holds a stock copy of the model, and its name there.

    Args:
        source: a run or a checkpoint. Of a run that is not finished, it is the newest checkpoint.
        root: directory of such caches. One of the same files, made earlier, serves again.

    Raises:
        ConversionError: if it is no whole model of ours with a tokenizer.
        TokenizerError: if the tokenizer cannot be loaded.
        OSError: if the copy cannot be written.
    """
    source = find_model(source)
    name = _name_for(source)
    key = _key_of(source, name)
    root = writable_directory(root, flag="XDG_CACHE_HOME")
    cache = root / key
    if not cache.is_dir():
        model, tokenizer = read_run(source)
        if tokenizer is None:
            raise ConversionError(f"{source}: expected a tokenizer beside the model, found none")
        tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE
        if not model.generation_config.do_sample:  # else a client's temperature has no effect
            model.generation_config.update(**SAMPLING)
        options = {"suffix": PARTIAL_SUFFIX, "ignore_cleanup_errors": True}
        with tempfile.TemporaryDirectory(dir=root, **options) as partial:
            folder = Path(partial) / f"models--{name}"
            (folder / "snapshots" / key).mkdir(parents=True)
            save_converted(to_gpt2(model), tokenizer, folder / "snapshots" / key)
            (folder / "refs").mkdir()
            (folder / "refs" / "main").write_text(key)
            if not cache.is_dir():  # another process may have been faster
                publish_directory(Path(partial), cache)
    os.utime(cache)
    _prune(root)
    return cache, name


def fit_request(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: BatchEncoding,
    generation_config: GenerationConfig,
) -> None:
    """Changes a request so that it has a first token, and ends with the model's last position.

    `transformers serve` asks for 1,024 new tokens where a client names no number. Beyond the last
    position, GPT-2 fails; on a GPU, it takes the whole program with it.

    Raises:
        ValueError: if the prompt itself has more tokens than the model has positions, or less than
            one new token is asked for.
    """
    if inputs["input_ids"].shape[-1] == 0:  # the beginning of a document
        inputs["input_ids"] = torch.tensor([[prefix_token(tokenizer)]], device=model.device)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    n_given, n_positions = inputs["input_ids"].shape[-1], model.config.n_positions
    if n_given > n_positions:
        raise ValueError(
            f"expected a prompt of at most {n_positions:,} tokens, found {n_given:,}; shorten it"
        )
    n_left = n_positions + 1 - n_given  # the last token needs no position itself
    n_asked = generation_config.max_new_tokens
    if n_asked is not None and n_asked < 1:
        raise ValueError(f"expected at least 1 token to generate, found {n_asked}; ask for more")
    stops = generation_config.stop_strings or []
    stops = [stops] if isinstance(stops, str) else stops
    # An empty list is no request to stop, and an empty string would stop at once.
    generation_config.stop_strings = [stop for stop in stops if stop != ""] or None
    generation_config.max_new_tokens = n_left if n_asked is None else min(n_asked, n_left)


def sound_request(model: PreTrainedModel, body: dict) -> dict:
    """A request without halves of characters, and short enough to be encoded soon.

    Nobody is answered while a prompt is encoded. `fit_request` counts the tokens of what passes.

    Raises:
        ValueError: if it has more characters than a prompt that fits the model.
    """
    text = json.dumps(body, ensure_ascii=False)
    n_characters = max(LONG_CHARACTERS, MAX_TOKEN_CHARACTERS * model.config.n_positions)
    if len(text) > n_characters:
        raise ValueError(
            f"expected a request of at most {n_characters:,} characters, found {len(text):,}; "
            f"shorten it"
        )
    return json.loads(well_formed(text))


def main() -> None:
    """Serves until somebody ends it, or the program that started it is gone."""
    from transformers.cli.serving import utils
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.transformers import main as transformers_cli

    cache, name, *options = sys.argv[1:]
    os.chdir(cache)  # a directory of this name would come before the copy
    threading.Thread(target=_end_with_parent, daemon=True).start()
    utils.GenerateManager = _fitting(utils.GenerateManager)
    for handler in (ChatCompletionHandler, CompletionHandler, ResponseHandler):
        handler.handle_request = _refusing(handler.handle_request)
    sys.argv = ["transformers", "serve", name, *options]
    transformers_cli()


def _prune(root: Path) -> None:
    """Deletes all but the last `MAX_COPIES` copies, and what an interrupted one left long ago."""
    copies = [path for path in root.iterdir() if KEY.fullmatch(path.name)]
    copies.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    old = copies[MAX_COPIES:]
    for path in root.glob(f"*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # another process has completed it
            if path.stat().st_mtime < time.time() - MAX_COPYING_SECONDS:
                old.append(path)
    for path in old:
        shutil.rmtree(path, ignore_errors=True)


def _key_of(source: Path, name: str) -> str:
    """What a copy depends on, as a sha256 that is cut to the length of a commit's."""
    files = sorted({file for pattern in SOURCES for file in source.glob(pattern)})
    checksums = {file.name: file_sha256(file) for file in files}
    content = json.dumps([__version__, name, checksums])
    return hashlib.sha256(content.encode()).hexdigest()[:40]


def _name_for(source: Path) -> str:
    """The name of the run in the letters that the Hub allows, with the step of a checkpoint."""
    path = source.resolve()
    is_checkpoint = path.name.startswith(CHECKPOINT_PREFIX)
    name = f"{path.parent.name}-{path.name}" if is_checkpoint else path.name
    words = re.findall(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*", name)
    return "-".join(words)[:MAX_NAME_CHARACTERS].strip("-.") or "model"


def _fitting(manager: type) -> type:
    """The class that generates for all of the server's handlers, with requests that fit."""
    from fastapi import HTTPException

    def fit(*request) -> None:
        try:
            fit_request(*request)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error

    class FittingManager(manager):
        def generate_streaming(self, model, processor, inputs, gen_config, *args, **kwargs):
            fit(model, processor, inputs, gen_config)
            return super().generate_streaming(model, processor, inputs, gen_config, *args, **kwargs)

        async def generate_non_streaming(
            self, model, processor, inputs, gen_config, *args, **kwargs
        ):
            request = (model, processor, inputs, gen_config)
            fit(*request)
            try:
                return await super().generate_non_streaming(*request, *args, **kwargs)
            except (TypeError, ValueError) as error:  # what `generate` says of the settings
                raise HTTPException(400, one_line(error)) from error

    return FittingManager


def _refusing(handle_request: Callable) -> Callable:
    """The method of a handler, which answers a request that it cannot read with 400, not 500."""
    from fastapi import HTTPException

    # What the handlers raise at values that they do not expect.
    unfit = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

    async def handle(self, body, request_id):
        _, model, _ = self._resolve_model(dict(body))
        try:
            sound = sound_request(model, body)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        try:
            return await handle_request(self, sound, request_id)
        except unfit as error:
            expected = "expected a request as OpenAI's API describes it"
            raise HTTPException(400, f"{expected}, found {named(error)}") from error

    return handle


def _end_with_parent() -> None:
    """Ends this process when the other end of its standard input is closed."""
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
