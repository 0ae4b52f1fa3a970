"""Publishing: a run, or a data directory, as commits on the Hugging Face Hub.

In: a directory that is complete. Out: a repository with a card that carries measured results.
"""
