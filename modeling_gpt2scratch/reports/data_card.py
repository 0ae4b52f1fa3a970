"""The data set card of published shards: Markdown, with the metadata that the Hub reads.

It says what the manifest records, and nothing of the machine that the data was prepared on.
"""

import dataclasses
import re
from pathlib import PureWindowsPath
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from modeling_gpt2scratch.data.shards.directory import shard_layout
from modeling_gpt2scratch.data.shards.format import HEADER_BYTES
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.sources.docstrings import DOCSTRINGS
from modeling_gpt2scratch.data.sources.hub_files import PRESETS
from modeling_gpt2scratch.data.tokens.ids import token_dtype

from .model_card import pipe_table, tokenizer_in_words
from .records import is_hub_name, is_source_on_hub

# Never a path, though a condition on a column may look like one.
PLAIN_ARGUMENTS = ("subset", "text_column", "where")
HIDDEN_ARGUMENTS = ("ignore_free_space", "num_workers", "output_dir", "overwrite")
# By `split` of the manifest's `held_out`.
HELD_OUT = {
    "documents": "A hash of a document's text decides which split it is in.",
    "tail": "The validation split is the end of the text.",
}
# What would be Markdown or HTML in a table's cell.
MARKUP = str.maketrans({"|": "\\|", "`": "\\`", "[": "\\[", "<": "&lt;"})
USAGE = """\
## How to train on it

```bash
python train_accelerate.py --data hf://datasets/{repository} --output_dir runs/{name}
```

## How to read it

With numpy alone:

```python
import numpy as np
from huggingface_hub import hf_hub_download

path = hf_hub_download("{repository}", "{shard}", repo_type="dataset")
tokens = np.memmap(path, dtype="{dtype}", mode="r", offset={offset})
print(len(tokens), tokens[:10])
```"""


def public_manifest(manifest: Manifest) -> Manifest:
    """The manifest without paths of this machine: of a local file, only its name is left."""
    hub_names = {source["name"] for source in manifest.sources if source.get("revision")}
    described = {
        field.name: _public(getattr(manifest, field.name), hub_names)
        for field in dataclasses.fields(manifest)
        if field.name != "splits"
    }
    return dataclasses.replace(manifest, **described)


def data_card(manifest: Manifest, *, repository: str, license: str | None = None) -> DatasetCard:
    """The card of a data directory.

    Args:
        manifest: of the directory; what it says is published, see `public_manifest`.
        repository: "OWNER/NAME" on the Hub.
        license: of the text, by the Hub's name for it; None states none.
    """
    name = repository.rpartition("/")[2]
    sources = source_repositories(manifest)
    n_documents = sum(split.n_documents for split in manifest.splits.values())
    data = DatasetCardData(
        license=license,
        task_categories=["text-generation"],
        tags=["gpt2scratch", "tokenized", "pretraining"],
        size_categories=[size_category(n_documents)],
        source_datasets=sources or None,
        pretty_name=name,
        viewer=False,  # there are no tables to show
    )
    first = manifest.splits["train"].shards[0]
    layout = shard_layout(first, manifest.vocab_size)
    usage = USAGE.format(
        repository=repository,
        name=name,
        shard=first.file,
        dtype=layout.dtype,
        offset=layout.header_bytes,
    )
    sections = (
        f"# {name}",
        _introduction(manifest, sources),
        _splits(manifest),
        usage,
        _format(manifest),
        _origin(manifest),
        _licence(license),
    )
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def source_repositories(manifest: Manifest) -> list[str]:
    """The data sets of the Hub that the text is from, each once."""
    if manifest.sources:
        found = [str(source["name"]) for source in manifest.sources if is_source_on_hub(source)]
    else:  # of other programs' files or a datatrove pipeline, which name only their data set
        names = [name for name, _ in _named_shares(str(manifest.arguments.get("dataset", "")))]
        found = filter(is_hub_name, (PRESETS[n].repository if n in PRESETS else n for n in names))
    return list(dict.fromkeys("/".join(name.split("/")[:2]) for name in found))


def size_category(n_rows: int) -> str:
    """The Hub's word for a number of rows, such as "1M<n<10M"."""
    if n_rows < 1000:
        return "n<1K"
    names = [f"{digits}{unit}" for unit in "KMBT" for digits in (1, 10, 100)]
    power = min(len(str(n_rows)) - 4, len(names) - 1)
    return f"{names[power]}<n<{names[power + 1]}" if power < len(names) - 1 else "n>1T"


def _introduction(manifest: Manifest, sources: list[str]) -> str:
    """What the data set is, and how large."""
    n_tokens = sum(split.n_tokens for split in manifest.splits.values())
    origins = [f"[{name}](https://huggingface.co/datasets/{name})" for name in sources]
    for name, _ in _named_shares(str(manifest.arguments.get("dataset", "text"))):
        if name == DOCSTRINGS:
            origins.append("the docstrings of Python packages")
        elif name not in PRESETS and not any(name.startswith(source) for source in sources):
            origins.append(f"`{name}`")
    if manifest.is_adopted:
        return (
            f"{n_tokens:,} tokens, in files that another program wrote ({' and '.join(origins)}) "
            f"and that GPT2Scratch trains on as they are."
        )
    return (
        f"{n_tokens:,} tokens of {' and '.join(origins)}, as shards in GPT2Scratch's format, which "
        f"llm.c and modded-nanogpt read too. Made with GPT2Scratch's `prepare_data.py`."
    )


def _splits(manifest: Manifest) -> str:
    rows = [
        [
            name,
            f"{split.n_documents:,}",
            f"{split.n_tokens:,}",
            f"{split.n_bytes:,}",
            f"{len(split.shards):,}",
        ]
        for name, split in manifest.splits.items()
    ]
    table = pipe_table(["Split", "Documents", "Tokens", "Bytes of text", "Shards"], rows)
    how = HELD_OUT.get(manifest.held_out.get("split"), "")
    return f"{table}\n\n{how}" if how else table


def _format(manifest: Manifest) -> str:
    """What a reader has to know of the files."""
    if manifest.is_adopted:
        rows = [
            [f"`{entry.file}`", entry.layout.format, entry.layout.dtype, entry.layout.header_bytes]
            for entry in manifest.shards
        ]
        table = pipe_table(["File", "Format", "Type", "Bytes before the tokens"], rows)
        return (
            f"## Format\n\nEach file is a stream of ids below {manifest.vocab_size:,}, in which "
            f"`<|endoftext|>` is {manifest.end_of_text_id}. A document may run from one file into "
            f"the next. `manifest.json` has the sha256 of every file.\n\n{table}"
        )
    kind = {"<u2": "uint16", "<u4": "uint32"}[token_dtype(manifest.vocab_size)]
    return (
        f"## Format\n\nA shard is a header of {HEADER_BYTES:,} bytes and then its tokens as "
        f"little-endian {kind}. The header is 256 little-endian int32, of which the third is the "
        f"number of tokens. A document may run from one shard into the next; `<|endoftext|>`, "
        f"which is {manifest.end_of_text_id}, stands before each. Ids are below "
        f"{manifest.vocab_size:,}. `manifest.json` has the number of tokens and the sha256 of "
        f"every shard; the tokenizer's files are beside it."
    )


def _origin(manifest: Manifest) -> str:
    """Tokenizer, sources and arguments, as they were recorded."""
    words = tokenizer_in_words(manifest.tokenizer["name"])
    fingerprint = manifest.tokenizer["fingerprint"]
    parts = [f"Tokenizer: {words} (sha256 of its content: `{fingerprint}`)."]
    if manifest.sources:
        headers = [key.capitalize() for key in manifest.sources[0]]
        rows = [[_cell(value) for value in source.values()] for source in manifest.sources]
        parts.append(f"Sources:\n\n{pipe_table(headers, rows)}")
    if manifest.left_out:
        rows = [[reason, f"{count:,}"] for reason, count in manifest.left_out.items()]
        parts.append(f"Documents left out:\n\n{pipe_table(['Reason', 'Documents'], rows)}")
    rows = [
        [f"`{name}`", _cell(value)]
        for name, value in manifest.arguments.items()
        if name not in HIDDEN_ARGUMENTS
    ]
    parts.append(f"Arguments of `prepare_data.py`:\n\n{pipe_table(['Argument', 'Value'], rows)}")
    return "## How it was made\n\n" + "\n\n".join(parts)


def _licence(license: str | None) -> str:
    text = f"The text: `{license}`." if license else "None is stated here; see that of the sources."
    return f"## Licence\n\n{text}"


def _public(value: Any, hub_names: set[str]) -> Any:
    """A recorded value without paths, whatever it is nested in."""
    if isinstance(value, dict):
        return {
            key: entry if key in PLAIN_ARGUMENTS else _public(entry, hub_names)
            for key, entry in value.items()
            if key != "output_dir"
        }
    if isinstance(value, list | tuple):
        return [_public(entry, hub_names) for entry in value]
    if not isinstance(value, str) or not {"/", "\\"} & set(value):
        return value
    return ",".join(
        (name if name in hub_names or is_hub_name(name) else PureWindowsPath(name).name) + share
        for name, share in _named_shares(value)
    )


def _named_shares(text: str) -> list[tuple[str, str]]:
    """The names in "a:0.7,b:0.3", and what stands behind each."""
    parts = [re.fullmatch(r"(.*?)(:[\d.e+-]+)?", part.strip()) for part in text.split(",")]
    return [(part[1], part[2] or "") for part in parts if part]


def _cell(value: Any) -> str:
    """A recorded value in a table."""
    if isinstance(value, list):
        return ", ".join(_cell(entry) for entry in value) or "none"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return "none" if value is None else " ".join(str(value).split()).translate(MARKUP)
