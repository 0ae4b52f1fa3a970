"""The verbs of `gpt2scratch`, one file each.

In: the words after the verb. Out: an exit code; the work itself is done by the wings.
"""
