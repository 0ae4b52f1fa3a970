"""Text from any causal language model of transformers.

In: prompts. Out: text that appears as it is written, on a terminal or in a pipe.
"""
