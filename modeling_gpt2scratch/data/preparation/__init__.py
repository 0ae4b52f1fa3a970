"""From a configuration to a data directory; a killed preparation goes on where it was.

In: a `PrepareConfig`. Out: shards, tokenizer and manifest. As datatrove steps too.
"""
