"""Token shards on disk: the format and its manifest, writing, verifying, converting, merging.

In: token ids, or other programs' token files. Out: a data directory that its manifest describes.
"""
