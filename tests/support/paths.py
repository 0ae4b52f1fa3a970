"""Where the repository and the shared data are."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
TIKTOKEN_CACHE = SHARED_DATA / "tiktoken_cache"
