"""Documents as the files of every format that can be read."""

import csv
import functools
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq

from modeling_gpt2scratch.data.sources.decompression import zstd

DOCUMENTS = ["The ant stored grain.", "Größe: 5 µm\nzwei Zeilen", "狐と葡萄 🍇", 'a "quoted", word']


def compressed_zst(content):
    """A zstd frame with a checksum, as the `zstd` program makes it; pyarrow's have none."""
    return zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})


# Without a time, or two processes that collect the tests would see two files.
COMPRESS = {
    "": bytes,
    ".gz": functools.partial(gzip.compress, mtime=0),
    ".xz": lzma.compress,
    ".zst": compressed_zst,
}


def jsonl(documents, column="text"):
    """One JSON object per document, as bytes."""
    return "".join(json.dumps({"id": 1, column: text}) + "\n" for text in documents).encode()


def csv_table(documents, column="text"):
    """The documents as the second column of a CSV file, as bytes."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["id", column], *([1, text] for text in documents)])
    return file.getvalue().encode()


def parquet_table(values, column="text", **arrow):
    """The values as the second column of a parquet file, as bytes."""
    sink = io.BytesIO()
    array = pa.array(values, **arrow)
    pq.write_table(pa.table({"id": list(range(len(array))), column: array}), sink)
    return sink.getvalue()


def written(path, content):
    """The path, now with this content."""
    path.write_bytes(content)
    return path
