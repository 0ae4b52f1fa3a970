"""Our models for other programs, and theirs as ours: stock gpt2, nanoGPT, build-nanogpt, llm.c.

In: a checkpoint of one layout. Out: the same weights in the other, complete or absent.
"""
