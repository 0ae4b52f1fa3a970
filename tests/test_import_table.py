"""Who may import whom. The table is the project's design; a file that is not in it fails."""

import ast
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "modeling_gpt2scratch"

# File -> what it may import besides the standard library; names with a dot in front are siblings.
ALLOWED = {
    "__init__.py": {"transformers", ".configuration_gpt2scratch", ".modeling_gpt2scratch"},
    "configuration_gpt2scratch.py": {"huggingface_hub", "transformers"},
    "modeling_gpt2scratch.py": {
        *("torch", "transformers"),
        *(".configuration_gpt2scratch", ".loading_gpt2scratch", ".loss_gpt2scratch"),
    },
    "loading_gpt2scratch.py": {"transformers"},
    "loss_gpt2scratch.py": {"torch"},
    "atomic_files.py": set(),
    "command_line.py": {"transformers", "yaml"},
    "text_sources.py": {"datasets", "fsspec", "pyarrow", "tqdm"},
    "token_shards.py": {"numpy", ".atomic_files"},
    "split_writer.py": {"numpy", ".token_shards"},
    "tokenization.py": {"numpy", "tiktoken", "tokenizers", "transformers"},
    "shard_loader.py": {"numpy", "torch", ".token_shards"},
    "optimization.py": {"torch"},
    "processes.py": {"accelerate", "torch", "transformers"},
    "conversion.py": {
        *("safetensors", "transformers", ".atomic_files", ".checkpointing", ".command_line"),
        *(".configuration_gpt2scratch", ".foreign_checkpoints", ".modeling_gpt2scratch"),
        ".tokenization",
    },
    "foreign_checkpoints.py": {
        *("huggingface_hub", "numpy", "torch", "transformers"),
        *(".configuration_gpt2scratch", ".loading_gpt2scratch", ".modeling_gpt2scratch"),
    },
    "checkpointing.py": {"safetensors", "torch", ".atomic_files", ".tokenization"},
    "run_directory.py": {".atomic_files", ".checkpointing", ".token_shards", ".train_config"},
    "metrics.py": {"accelerate", ".atomic_files"},
    "validation.py": {"accelerate", "numpy", "torch", "transformers", ".shard_loader"},
    "train_config.py": {".atomic_files", ".command_line", ".token_shards"},
    "loss_plot.py": {"matplotlib", ".command_line", ".metrics"},
    "run_records.py": {
        *("huggingface_hub", ".metrics", ".run_directory"),
        *(".text_sources", ".token_shards", ".train_config"),
    },
    "model_card.py": {"huggingface_hub", "tabulate", ".run_records", ".text_sources"},
    "publishing.py": {
        *("huggingface_hub", "transformers", ".atomic_files", ".checkpointing", ".command_line"),
        *(".conversion", ".loss_plot", ".metrics", ".model_card", ".run_records"),
        *(".tokenization", ".train_config"),
    },
}
EVALUATE_ALLOWED = {
    *("datasets", "huggingface_hub", "numpy", "tabulate", "torch", "tqdm", "transformers"),
    *("compare", "lambada", "perplexity", "scoring"),
}


def imports_of(file: Path) -> set[str]:
    """Modules that a file imports anywhere, without the standard library."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


@pytest.mark.parametrize("file", sorted((REPOSITORY / PACKAGE).glob("*.py")), ids=lambda f: f.name)
def test_a_module_of_the_package_imports_only_what_the_table_allows(file):
    assert imports_of(file) <= ALLOWED[file.name]


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "evaluate").glob("*.py")), ids=lambda f: f.name
)
def test_evaluation_stands_alone(file):
    allowed = EVALUATE_ALLOWED | ({PACKAGE} if file.name == "compare.py" else set())
    assert imports_of(file) <= allowed


def test_preparing_data_knows_neither_the_model_nor_the_training():
    tree = ast.parse((REPOSITORY / "prepare_data.py").read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    used = {name.removeprefix(f"{PACKAGE}.") for name in modules if name.startswith(PACKAGE)}
    assert used == {
        *("atomic_files", "command_line", "split_writer"),
        *("text_sources", "token_shards", "tokenization"),
    }


def test_evaluate_is_no_package_and_shadows_no_library():
    names = {file.stem for file in (REPOSITORY / "evaluate").glob("*.py")}
    assert not names & {"__init__", "datasets", "tokenizers", "statistics", "types"}
    for file in REPOSITORY.rglob("*.py"):
        if ".venv" not in file.parts:
            assert "evaluate" not in imports_of(file), file


def test_only_relative_imports_connect_the_files_that_travel_with_a_checkpoint():
    for name in ("configuration_gpt2scratch.py", "modeling_gpt2scratch.py"):
        tree = ast.parse((REPOSITORY / PACKAGE / name).read_text(encoding="utf-8"))
        relative = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
        # transformers copies `from .file import name` and nothing else.
        assert all(node.level == 1 and node.module for node in relative)
        assert PACKAGE not in imports_of(REPOSITORY / PACKAGE / name)
