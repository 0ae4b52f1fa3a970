"""Where this user's programs keep what can be made again."""

import os
from pathlib import Path


def user_cache() -> Path:
    """Our directory there, which need not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "gpt2scratch"
