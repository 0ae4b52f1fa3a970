"""Tokenizers, and the worker processes that turn documents into token ids.

In: text. Out: numpy arrays of ids. Workers load numpy, tiktoken and tokenizers, nothing heavier.
"""
