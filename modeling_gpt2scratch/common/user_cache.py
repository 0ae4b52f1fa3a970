"""Where this user's programs keep what can be made again."""

import os
from pathlib import Path


def user_cache() -> Path:
    """Our directory there, which need not exist yet."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification has a relative path ignored.
    return (root if root.is_absolute() else Path.home() / ".cache") / "gpt2scratch"
