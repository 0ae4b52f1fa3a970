"""The data of a training run: one source or a mixture of several, local or remote."""

import hashlib
import math
import os
from pathlib import Path

from accelerate import PartialState
from huggingface_hub.constants import HF_HOME
from transformers import PreTrainedTokenizerBase

from modeling_gpt2scratch.data.loading.cache import ShardCache
from modeling_gpt2scratch.data.loading.loader import ShardLoader, TokenWindows
from modeling_gpt2scratch.data.loading.store import LocalStore, RemoteStore, is_remote
from modeling_gpt2scratch.data.loading.window_order import ORDER_VERSION
from modeling_gpt2scratch.data.shards.directory import load_own_tokenizer
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import MANIFEST_NAME
from modeling_gpt2scratch.data.sources.mixture import SMALLEST, parse_mixture
from modeling_gpt2scratch.distributed.processes import LaunchError

from .configuration import AUTO, TrainConfig

REMOTE_SHUFFLE_SHARDS = 8


class TrainingData:
    """The sources that `config.data` names, with their manifests at hand.

    Raises:
        ShardError: if a source holds no data set, or they do not share a tokenizer.
        OSError: if the cache cannot be made.
    """

    def __init__(self, config: TrainConfig):
        self._config = config
        sources = parse_mixture(config.data, flag="--data")
        addresses = [address for address, _ in sources]
        self._cache = None
        self.shuffle_shards = config.shuffle_shards or 0
        if any(map(is_remote, addresses)):
            directory = Path(config.data_cache or Path(HF_HOME, "gpt2scratch")).expanduser()
            self._cache = ShardCache(directory, limit_bytes=int(config.data_cache_gb * 10**9))
            if config.shuffle_shards is None:
                self.shuffle_shards = REMOTE_SHUFFLE_SHARDS
        self._stores = [
            RemoteStore(
                address,
                self._cache,
                retry_seconds=config.data_retry_seconds,
                verify=config.verify == "full",
            )
            if is_remote(address)
            else LocalStore(Path(address))
            for address in addresses
        ]
        self.manifest = self._stores[0].manifest
        self._refuse_mixed_tokenizers()
        self.train = [self._windows("train", store) for store in self._stores]
        pairs = zip(sources, self.train, strict=True)
        weights = [weight or len(windows) for (_, weight), windows in pairs]
        self.weights = [weight / math.fsum(weights) for weight in weights]
        self._names = _short_names(addresses)
        if min(self.weights) < SMALLEST:
            raise ShardError(
                f"expected sources of --data with shares of at least {SMALLEST}, found "
                f"{min(self.weights):.2g} of all windows in one; give weights or leave it out"
            )

    @property
    def manifest_files(self) -> list[Path]:
        """Where the manifest of each source lies."""
        return [store.directory / MANIFEST_NAME for store in self._stores]

    def close(self) -> None:
        """Ends what is still being downloaded."""
        if self._cache:
            self._cache.closed.set()

    def identity(self) -> dict:
        """What decides the order of tokens, and may not change within a run.

        What a run of one source in its usual order does not have is None, as in the checkpoints of
        versions that knew nothing else.
        """
        shards = ",".join(entry.sha256 for windows in self.train for entry in windows.entries)
        return {
            "tokenizer": self.manifest.tokenizer,
            "order_version": ORDER_VERSION,
            "data": hashlib.sha256(shards.encode()).hexdigest(),
            "mixture": self.weights if len(self.weights) > 1 else None,
            "shuffle_shards": self.shuffle_shards or None,
            "document_mask": self._config.document_mask or None,
        }

    def validation_digest(self) -> str | None:
        """What tells the held-out tokens from others, None if there are none."""
        held_out = [store.manifest.splits.get("val") for store in self._stores]
        shards = [entry.sha256 for split in held_out if split for entry in split.shards]
        return hashlib.sha256(",".join(shards).encode()).hexdigest() if shards else None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that made the shards.

        Raises:
            ShardError: if the files beside the manifest are another one's.
        """
        store = self._stores[0]
        return load_own_tokenizer(store.directory, self.manifest, name=store.name)

    def validation(self) -> dict[str, tuple[TokenWindows, float]]:
        """Held-out windows and weight of each source that held any out, by its short name."""
        held_out = {
            name: (self._windows("val", store), weight)
            for name, store, weight in zip(self._names, self._stores, self.weights, strict=True)
            if "val" in store.manifest.splits
        }
        total = math.fsum(weight for _, weight in held_out.values())
        return {name: (windows, weight / total) for name, (windows, weight) in held_out.items()}

    def rows_per_process(self, world_size: int) -> int:
        """Rows of a step that each process reads.

        Raises:
            LaunchError: if the processes cannot share `total_batch_tokens` evenly.
        """
        config = self._config
        size = config.micro_batch_size
        _refuse_uneven_shares(config, world_size, 1 if size == AUTO else size)
        return config.total_batch_tokens // (config.sequence_length * world_size)

    def open(
        self, *, rank: int, world_size: int, micro_batch_size: int
    ) -> tuple[ShardLoader, dict[str, tuple[TokenWindows, float]]]:
        """This process's training batches, and what `validation` returns, if it will be read.

        Args:
            world_size: number of processes.
            micro_batch_size: rows per process and micro-step, a divisor of `rows_per_process`.

        Raises:
            ShardError: if the data must not be trained on.
        """
        config = self._config
        validation = self.validation() if config.eval_every else {}
        rows_per_step = config.total_batch_tokens // config.sequence_length
        for windows, weight in zip(self.train, self.weights, strict=True):
            rows = math.ceil(rows_per_step * weight)
            if len(windows) < rows:
                raise ShardError(
                    f"{windows.name}: expected at least the {rows} rows of a step, found "
                    f"{len(windows)} of {config.sequence_length} tokens; lower "
                    f"--total_batch_tokens or prepare more text"
                )
        held_out = [windows for windows, _ in validation.values()]
        if config.verify == "full":
            share = rank, world_size
            if n_local := os.environ.get("LOCAL_WORLD_SIZE"):  # each machine may have its own copy
                share = PartialState().local_process_index, int(n_local)
            for windows in (*self.train, *held_out):
                windows.verify(*share)
        self._refuse_small_cache(held_out)
        for windows in held_out:
            windows.keep(self.n_validation_windows(windows))
        loader = ShardLoader(
            self.train,
            rows_per_step=rows_per_step,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
            seed=config.seed,
            weights=self.weights,
            document_start=self.document_start,
        )
        return loader, validation

    @property
    def document_start(self) -> int | None:
        """The id with which documents begin, if they are to be kept apart."""
        return self.manifest.end_of_text_id if self._config.document_mask else None

    def n_validation_windows(self, windows: TokenWindows) -> int:
        """How many of a source's held-out windows are read: together at most `eval_tokens`."""
        n_tokens = self._config.eval_tokens // len(self._stores)
        return min(len(windows), max(1, n_tokens // windows.sequence_length))

    def _windows(self, split: str, store: LocalStore | RemoteStore) -> TokenWindows:
        """The rows that a split of one source has for this run."""
        return TokenWindows(
            store,
            split,
            sequence_length=self._config.sequence_length,
            shuffle_shards=self.shuffle_shards,
        )

    def _refuse_mixed_tokenizers(self) -> None:
        """Sources whose ids mean different tokens cannot be mixed."""
        first = self._stores[0]
        for store in self._stores[1:]:
            if store.manifest.vocabulary != first.manifest.vocabulary:
                names = [f"{s.name} ({s.manifest.tokenizer['name']})" for s in (first, store)]
                raise ShardError(
                    f"expected sources of --data with the same tokenizer, found {names[0]} and "
                    f"{names[1]}; prepare one of them again with the other's tokenizer"
                )

    def _refuse_small_cache(self, held_out: list[TokenWindows]) -> None:
        """The cache must hold two groups of each remote source, and what validation reads."""
        n_bytes = sum(windows.bytes_at_hand() for windows in self.train)
        n_bytes += sum(w.bytes_of_first(self.n_validation_windows(w)) for w in held_out)
        if self._cache and n_bytes > self._cache.limit_bytes:
            raise ShardError(
                f"expected --data_cache_gb of at least {math.ceil(n_bytes / 10**7) / 100} for two "
                f"groups of {self.shuffle_shards or 'all'} shards and the validation split, found "
                f"{self._config.data_cache_gb}; raise it or lower --shuffle_shards"
            )


def _refuse_uneven_shares(config: TrainConfig, world_size: int, micro_batch_size: int) -> None:
    """Processes must be able to share `total_batch_tokens` evenly.

    Raises:
        LaunchError: if they are not.
    """
    divisor = config.sequence_length * micro_batch_size * world_size
    if config.total_batch_tokens % divisor:
        # A resumed run's batch must not change, and that of others need not.
        rows = config.total_batch_tokens // config.sequence_length
        if rows % world_size:
            fewer = max(n for n in range(1, world_size) if rows % n == 0)
            advice = f"start {fewer} process{'es' * (fewer > 1)}"
        else:
            own = rows // world_size
            fitting = max(n for n in range(1, min(micro_batch_size, own + 1)) if own % n == 0)
            advice = f"--micro_batch_size can be {fitting}"
        nearest = max(1, round(config.total_batch_tokens / divisor)) * divisor
        raise LaunchError(
            f"--total_batch_tokens: expected a number divisible by sequence_length x "
            f"micro_batch_size x processes = {config.sequence_length} x {micro_batch_size} x "
            f"{world_size} = {divisor}, found {config.total_batch_tokens}; {advice}. In a new run, "
            f"--total_batch_tokens can be {nearest}"
        )


def _short_names(addresses: list[str]) -> list[str]:
    """The last part of each address, all numbered if that is not enough; fit to be published."""
    names = [
        address.rstrip("/").rpartition("/")[2]
        if is_remote(address)
        else Path(address).resolve().name
        for address in addresses
    ]
    if len({*names}) == len(names):
        return names
    return [f"{name}-{number}" for number, name in enumerate(names, start=1)]
