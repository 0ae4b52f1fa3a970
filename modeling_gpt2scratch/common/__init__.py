"""What every package needs: complete files, checksums, arguments, retries.

In: paths, dataclasses, callables. Out: files that are complete or absent, and one-line errors.
Nothing here depends on tokens, models or runs.
"""
