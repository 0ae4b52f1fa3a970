"""The verbs of `gpt2scratch`, one file each.

In: the words after the verb. Out: lines and an exit code; other packages do the work. A verb reads
its arguments before it imports what it needs for them, so that `--help` is there at once.
"""
