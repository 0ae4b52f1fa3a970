"""Pages about what was recorded: a run's report, model card, data card, loss curves.

In: the records in a directory. Out: Markdown and pictures, without local paths or secrets.
"""
