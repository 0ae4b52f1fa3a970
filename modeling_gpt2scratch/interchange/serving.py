"""A run as `transformers serve` can offer it to OpenAI's clients.

That program knows only classes of transformers itself, and names to its clients what it finds in
the Hub's cache. So a stock copy of the model is kept in a cache of the same layout. As a module,
this is the program with a GPT-2 that ends with its last position:

    python -m modeling_gpt2scratch.interchange.serving CACHE NAME [--host HOST] [--port PORT]
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import transformers
from transformers import GPT2LMHeadModel

from modeling_gpt2scratch import __version__
from modeling_gpt2scratch.checkpoints.checkpoint import find_model
from modeling_gpt2scratch.checkpoints.retention import CHECKPOINT_PREFIX
from modeling_gpt2scratch.common.atomic_files import publish_directory
from modeling_gpt2scratch.common.checksums import file_sha256
from modeling_gpt2scratch.common.output_directory import writable_directory
from modeling_gpt2scratch.common.sampling import SAMPLING

from .conversion import read_run, save_converted, to_gpt2
from .foreign_checkpoints import ConversionError

# What of a run is in its copy.
SOURCES = ("config.json", "generation_config.json", "model*.safetensors*", "tokenizer*.json")
SOURCES += ("*.jinja", "special_tokens_map.json", "added_tokens.json")
# For clients that only chat; the model writes on from the last message.
CHAT_TEMPLATE = "{{ messages[-1]['content'] }}"
MAX_NAME_CHARACTERS = 90  # the Hub has a limit
KEY = re.compile("[0-9a-f]{40}")
MAX_COPIES = 4  # the least recently served ones go


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
        with tempfile.TemporaryDirectory(dir=root, ignore_cleanup_errors=True) as partial:
            folder = Path(partial) / f"models--{name}"
            (folder / "snapshots" / key).mkdir(parents=True)
            save_converted(to_gpt2(model), tokenizer, folder / "snapshots" / key)
            (folder / "refs").mkdir()
            (folder / "refs" / "main").write_text(key)
            if not cache.is_dir():  # another process may have been faster
                publish_directory(Path(partial), cache)
    os.utime(cache)
    # Whatever else is there is not ours, or is being made by another process.
    copies = [path for path in root.iterdir() if KEY.fullmatch(path.name)]
    copies.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for copy in copies[MAX_COPIES:]:
        shutil.rmtree(copy, ignore_errors=True)
    return cache, name


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


class _GPT2(GPT2LMHeadModel):
    """GPT-2 that ends with its last position.

    `transformers serve` asks for 1,024 new tokens where a client names no number. Beyond the last
    position, the stock class fails; on a GPU, it takes the whole program with it.
    """

    def _prepare_generated_length(self, generation_config, *args, **kwargs):
        prepared = super()._prepare_generated_length(generation_config, *args, **kwargs)
        # The last token needs no position itself.
        prepared.max_length = min(prepared.max_length, self.config.n_positions + 1)
        return prepared


def main() -> None:
    """Serves until somebody ends it, or the program that started it is gone."""
    from transformers.cli.transformers import main as transformers_cli

    cache, name, *options = sys.argv[1:]
    os.chdir(cache)  # a directory of this name would come before the copy
    threading.Thread(target=_end_with_parent, daemon=True).start()
    transformers.GPT2LMHeadModel = _GPT2
    sys.argv = ["transformers", "serve", name, *options]
    transformers_cli()


def _end_with_parent() -> None:
    """Ends this process when the other end of its standard input is closed."""
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
