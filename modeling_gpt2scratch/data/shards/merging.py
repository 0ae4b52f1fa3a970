"""What each task of a distributed preparation has written, and how it becomes one data set.

Every task leaves `manifest.part-00007.json`: a manifest of its own shards, with its rank and the
number of tasks. Merged, the shards stand in the order of the ranks; not a byte of them is copied.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from modeling_gpt2scratch.common.atomic_files import write_json
from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer, save_tokenizer, vocabulary_of

from .directory import open_shard, unlisted_files
from .format import ShardError
from .manifest import MANIFEST_NAME, PART_PATTERN, Manifest, Split
from .manifest_checks import ManifestError, check_content


@dataclass(frozen=True)
class Part:
    """The manifest of one task's shards."""

    manifest: Manifest
    rank: int
    world_size: int  # number of tasks

    def save(self, directory: Path) -> None:
        """Writes it in one step, which says that the shards of this task are complete."""
        counts = {"rank": self.rank, "world_size": self.world_size}
        write_json(directory / part_name(self.rank), self.manifest.content() | counts)

    @classmethod
    def load(cls, path: Path) -> "Part":
        """Reads one.

        Raises:
            ShardError: if it is no part or incomplete.
        """
        manifest = Manifest.load(path.parent, path.name)
        content = json.loads(path.read_bytes())
        part = cls(manifest, content.get("rank"), content.get("world_size"))
        is_whole = type(part.rank) is type(part.world_size) is int  # which true is not
        if not (
            is_whole and 0 <= part.rank < part.world_size and path.name == part_name(part.rank)
        ):
            raise ShardError(
                f"{path}: expected the rank in its name, below the number of tasks, found "
                f"{part.rank} of {part.world_size}; run this task again"
            )
        return part


def part_name(rank: int) -> str:
    """`manifest.part-00007.json`."""
    return f"manifest.part-{rank:05d}.json"


def merge_parts(directory: Path) -> Manifest:
    """Makes the parts of all tasks one data set: `manifest.json` and the tokenizer beside it.

    The parts are removed last, so a merge that was killed can be repeated.

    Raises:
        ShardError: if a task is missing or differs from the others, or if shards are missing,
            truncated or of none of the tasks.
        TokenizerError: if the tokenizer cannot be had any more.
    """
    if (manifest := _made_before(directory)) is not None:
        return manifest
    parts = _load_parts(directory)
    splits = _merged_splits(directory, [part.manifest for part in parts])
    first = parts[0].manifest
    manifest = dataclasses.replace(first, splits=splits)
    for entry in manifest.shards:
        open_shard(directory / entry.file, entry, vocab_size=first.vocab_size)
    for file in unlisted_files(directory, manifest):
        raise ShardError(
            f"{file}: expected only shards of the {len(parts)} tasks, found another; remove it or "
            f"write to an empty directory"
        )
    name = first.tokenizer["name"]
    tokenizer = load_tokenizer(name)
    if vocabulary_of(tokenizer) != first.vocabulary:
        raise ShardError(
            f"{directory}: expected the tokenizer {name} as the tasks used it, found another; "
            f"put the old one back"
        )
    try:
        check_content(manifest.content())
    except ManifestError as error:
        raise ManifestError(f"{directory}: the parts together: {error}") from None
    save_tokenizer(tokenizer, directory)
    manifest.save(directory)
    _remove(directory)
    return manifest


def _made_before(directory: Path) -> Manifest | None:
    """The manifest of a merge that was killed while it removed the parts; removes the rest."""
    rest = [Part.load(path).manifest for path in sorted(directory.glob(PART_PATTERN))]
    try:  # beside parts, `Manifest.load` refuses it
        splits = json.loads((directory / MANIFEST_NAME).read_bytes())["splits"].values()
        listed = {(entry["file"], entry["sha256"]) for split in splits for entry in split["shards"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    entries = [entry for part in rest for entry in part.shards]
    if not rest or not {(entry.file, entry.sha256) for entry in entries} <= listed:
        return None
    _remove(directory)
    return Manifest.load(directory)


def _remove(directory: Path) -> None:
    """Removes the parts, whose shards the manifest has."""
    for path in directory.glob(PART_PATTERN):
        path.unlink()


def _load_parts(directory: Path) -> list[Part]:
    """The parts of all tasks by rank, if all are there and agree."""
    parts = [Part.load(path) for path in sorted(directory.glob(PART_PATTERN))]
    if not parts:
        hint = f"; it has a {MANIFEST_NAME}" if (directory / MANIFEST_NAME).exists() else ""
        raise ShardError(f"{directory}: expected {PART_PATTERN} of several tasks, found none{hint}")
    for part in parts:
        for name, expected in _shared_fields(parts[0]).items():
            found = _shared_fields(part)[name]
            if found != expected:
                raise ShardError(
                    f"{directory / part_name(part.rank)}: expected {name} as in "
                    f"{part_name(parts[0].rank)}, {expected}, found {found}; run all tasks again "
                    f"in an empty directory"
                )
    missing = sorted(set(range(parts[0].world_size)) - {part.rank for part in parts})
    if missing:
        raise ShardError(
            f"{directory}: expected the parts of {parts[0].world_size} tasks, found none of task "
            f"{', '.join(map(str, missing))}; run the pipeline again, which repeats what is missing"
        )
    return parts


def _shared_fields(part: Part) -> dict:
    """What all tasks must have in common."""
    names = ("vocab_size", "end_of_text_id", "tokenizer", "arguments")
    fields = {name: getattr(part.manifest, name) for name in names}
    return fields | {"world_size": part.world_size, "splits": list(part.manifest.splits)}


def _merged_splits(directory: Path, manifests: list[Manifest]) -> dict[str, Split]:
    """The splits of all tasks, one after another."""
    merged = {}
    for name in manifests[0].splits:
        splits = [manifest.splits[name] for manifest in manifests]
        merged[name] = Split(
            n_tokens=sum(split.n_tokens for split in splits),
            n_documents=sum(split.n_documents for split in splits),
            n_bytes=sum(split.n_bytes for split in splits),
            shards=tuple(entry for split in splits for entry in split.shards),
        )
        if merged[name].n_documents == 0:
            raise ShardError(
                f"{directory}: expected documents in split {name!r}, found none; change "
                f"val_fraction or the seed, or give more documents"
            )
    return merged
