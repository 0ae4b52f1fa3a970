"""From a configuration to a data directory, so that a killed preparation can go on.

In: a `PrepareConfig`. Out: shards, tokenizer and manifest. Also the same as datatrove steps.
"""
