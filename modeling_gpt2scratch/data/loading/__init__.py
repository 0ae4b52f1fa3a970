"""From shards to batches: local and remote stores, cache, window order, prefetching.

In: a data directory or its address. Out: `input_ids` and shifted targets for each process.
"""
