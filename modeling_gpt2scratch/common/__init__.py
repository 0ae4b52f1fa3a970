"""What every wing needs: complete files, checksums, arguments, requests that are made again.

In: paths, dataclasses, callables. Out: files that are complete or absent, and one-line errors.
Knows nothing of tokens, models or runs.
"""
