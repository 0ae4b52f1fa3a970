"""A small data set of the Hub, as bytes."""

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
from support.servers import fake_hub
from support.servers.fake_hub_handler import LFS_ENDINGS

from modeling_gpt2scratch.data.sources.hub_files import HubFile

REPOSITORY = "aesop/fables"


# How FineWeb's data set card describes its subsets, and one more.
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
- config_name: sample-100BT
  data_files:
  - split: train
    path: sample/100BT/*
- config_name: held-out
  data_files:
  - split: test
    path: test/*
---
# Fables
"""


def parquet(*texts: str) -> bytes:
    """A parquet file with one column of documents."""
    file = io.BytesIO()
    pq.write_table(pa.table({"text": list(texts)}), file)
    return file.getvalue()


FILES = {
    "README.md": CARD.encode(),
    "data/2024/000.parquet": parquet("a wolf", "a lamb"),
    "sample/10BT/000.parquet": parquet("a crow"),
    "sample/10BT/001.parquet": parquet("a fox"),
    "sample/100BT/000.parquet": parquet("a stork"),
    "test/000.parquet": parquet("a frog"),
}


def hub_file(name: str, content: bytes, revision: str = fake_hub.COMMIT) -> HubFile:
    """A file as `list_files` describes it."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    sha256 = hashlib.sha256(content).hexdigest()
    is_large = name.endswith(LFS_ENDINGS)
    return HubFile(name, len(content), REPOSITORY, revision, sha256 if is_large else None, blob)
