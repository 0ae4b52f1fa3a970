"""From text to batches: `tokens`, `shards`, `sources`, `preparation`, `loading`.

In: documents. Out: a directory of shards with a manifest, and from it batches of token ids.
Each stage hands over to the next through files.
"""
