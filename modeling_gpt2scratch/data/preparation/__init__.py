"""From a configuration to a data directory; a killed preparation resumes.

In: a `PrepareConfig`. Out: shards, tokenizer and manifest. As datatrove steps too.
"""
