"""The corpus that every machine has: docstrings of the standard library and of known packages."""

import ast
import hashlib
import platform
import sys
import sysconfig
import warnings
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from modeling_gpt2scratch.common.atomic_files import write_json_lines
from modeling_gpt2scratch.common.console import activity, progress_bar, tell
from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.common.threads import n_cores
from modeling_gpt2scratch.data.tokens.text import well_formed
from modeling_gpt2scratch.data.tokens.workers import start_workers

from .prose import RULES, prose_of

DOCSTRINGS = "docstrings"
# Fixed, so that the corpus depends on the pinned versions and not on what else is installed.
DOCUMENTED_PACKAGES = (
    "accelerate",
    "datasets",
    "fsspec",
    "huggingface_hub",
    "networkx",
    "numpy",
    "pandas",
    "sympy",
    "torch",
    "transformers",
)
UNDOCUMENTED_FOLDERS = {"_vendor", "idlelib", "lib2to3", "site-packages", "test", "tests"}
MIN_DOCSTRING_CHARACTERS = 100


@dataclass(frozen=True)
class DocstringFile:
    """The corpus as a file to be prepared, with the interface of those that are downloaded."""

    name: str = "docstrings.jsonl"
    n_bytes: int = 0  # it is not there yet

    @property
    def revision(self) -> str:
        """What decides the content: the rules for prose, and the versions of what is read."""
        versions = [f"{name} {_version_of(name)}" for name in DOCUMENTED_PACKAGES]
        return ", ".join([f"prose {RULES}", f"python {platform.python_version()}", *versions])

    def fetch(self, directory: Path) -> Path:
        """Writes the corpus to a file of `directory`, unless it is there."""
        # Another version of a package makes another file.
        digest = hashlib.sha256(self.revision.encode()).hexdigest()
        path = directory / f"{digest[:16]}-{self.name}"
        if not path.exists():
            directory.mkdir(parents=True, exist_ok=True)
            texts = docstrings(n_cores())
            write_json_lines(path, ({"text": text} for text in texts))
            n_bytes = sum(len(text.encode()) for text in texts)
            size = f"{len(texts):,} documents, {n_bytes / 1e6:.1f} MB of prose"
            tell(f"docstrings: {size}", file=sys.stderr)
        return path


def docstrings(num_workers: int) -> list[str]:
    """The prose of the standard library's and `DOCUMENTED_PACKAGES`' docstrings, in path order.

    They are read from the source files with `ast`; nothing is imported. Of each, `prose_of` keeps
    the sentences; fewer of them than `MIN_DOCSTRING_CHARACTERS`, and copies, do not count.
    """
    roots = [Path(sysconfig.get_path("stdlib")), *map(_folder_of, DOCUMENTED_PACKAGES)]
    with activity("listing source files"):
        files = [
            file
            for root in roots
            for file in sorted(root.rglob("*.py"))
            if UNDOCUMENTED_FOLDERS.isdisjoint(file.relative_to(root).parts)
        ]
    options = {"desc": "reading docstrings", "unit": " files"}
    found: dict[str, None] = {}  # in their order
    with (
        progress_bar(total=len(files), **options) as bar,
        start_workers(num_workers) as pool,
    ):
        parts = [files[start : start + 32] for start in range(0, len(files), 32)]
        # Not `map`, whose cancelled work does not go with workers that an error ends.
        futures = [pool.submit(_prose_of_files, part) for part in parts]
        for part, future in zip(parts, futures, strict=True):
            found |= dict.fromkeys(future.result())
            bar.update(len(part))
    return [text for text in found if len(text) >= MIN_DOCSTRING_CHARACTERS]


def docstrings_of(file: Path) -> list[str]:
    """Docstrings of one source file, in the order of `ast.walk`; none if it does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escape sequences
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(tree) if isinstance(node, documented))
    texts = (ast.get_docstring(node) for node in nodes)
    return [well_formed(text) for text in texts if text]


def _version_of(package: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise SourceError(
            f"{DOCSTRINGS}: expected the package {package}, found none; install it, or give "
            f"--dataset text of your own"
        ) from None


def _folder_of(package: str) -> Path:
    """Where a package lies, which may be another place than this environment's."""
    return Path(find_spec(package).submodule_search_locations[0])


def _prose_of_files(files: list[Path]) -> list[str]:
    """The prose of the docstrings of some source files, one after another."""
    return [prose_of(text) for file in files for text in docstrings_of(file)]
