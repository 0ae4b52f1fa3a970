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
    "document_encoder.py": {"numpy", "tiktoken", "tokenizers", ".token_shards"},
    "source_error.py": set(),
    "row_filters.py": {"yaml", ".source_error"},
    "row_readers.py": {"pyarrow", ".row_filters", ".source_error"},
    "text_files.py": {".row_filters", ".row_readers", ".source_error"},
    "docstrings.py": {"tqdm", ".atomic_files", ".row_readers", ".worker_pool"},
    "hub_retries.py": {"huggingface_hub", "tenacity", "tqdm", ".source_error"},
    "hub_files.py": {"datasets", "huggingface_hub", "tqdm", ".hub_retries", ".source_error"},
    "hub_stream.py": {
        *("datasets", ".hub_retries", ".row_filters", ".row_readers", ".source_error"),
    },
    "file_queue.py": set(),
    "text_sources.py": {
        *(".docstrings", ".hub_files", ".hub_stream", ".mixture", ".row_filters"),
        *(".row_readers", ".source_error", ".text_files"),
    },
    "document_stream.py": {
        *("numpy", ".file_queue", ".hub_files", ".hub_stream", ".text_files", ".text_sources"),
    },
    "prepare_config.py": {
        *(".atomic_files", ".command_line", ".docstrings", ".document_encoder", ".hub_files"),
        *(".mixture", ".preparation_progress", ".row_filters", ".shard_publishing"),
        *(".token_shards", ".tokenization"),
    },
    "preparation_progress.py": {"filelock", ".atomic_files"},
    # The stream only for its type: workers must not load it.
    "worker_pool.py": {".document_encoder", ".document_stream"},
    "block_writer.py": {
        *("numpy", "tqdm", ".document_encoder", ".document_stream", ".preparation_progress"),
        *(".split_writer", ".worker_pool"),
    },
    "preparation.py": {
        *("tqdm", "transformers", ".block_writer", ".document_encoder", ".document_stream"),
        *(".hub_files", ".preparation_progress", ".prepare_config", ".row_filters"),
        *(".source_error", ".text_sources", ".token_shards", ".tokenization", ".worker_pool"),
    },
    # The last is imported only if it runs as a program.
    "token_shards.py": {"numpy", ".atomic_files", ".shard_tools"},
    "shard_formats.py": {"numpy", ".token_shards"},
    "shard_verification.py": {
        *("numpy", "tqdm"),
        *(".shard_formats", ".token_shards", ".tokenization"),
    },
    "shard_conversion.py": {
        *("numpy", "tqdm", "transformers", ".atomic_files", ".shard_formats"),
        *(".split_writer", ".token_shards", ".tokenization"),
    },
    "part_manifests.py": {".atomic_files", ".shard_formats", ".token_shards", ".tokenization"},
    "shard_tools.py": {
        *("numpy", "tabulate", "transformers", ".command_line", ".part_manifests"),
        *(".shard_conversion", ".shard_formats", ".shard_verification"),
        *(".token_shards", ".tokenization"),
    },
    # datatrove is an optional extra: nothing imports this file.
    "datatrove_steps.py": {
        *("datatrove", "numpy", ".document_encoder", ".part_manifests"),
        *(".split_writer", ".token_shards", ".tokenization"),
    },
    "split_writer.py": {"numpy", ".token_shards"},
    "tokenization.py": {"tiktoken", "tokenizers", "transformers", ".document_encoder"},
    "mixture.py": set(),
    "window_order.py": {"numpy"},
    "shard_loader.py": {"numpy", "torch", ".shard_store", ".token_shards", ".window_order"},
    "trainer_dataset.py": {"numpy", "torch", ".shard_loader"},
    "prefetcher.py": {"torch", ".shard_loader", ".token_shards"},
    "remote_files.py": {"aiohttp", "fsspec", "tenacity", ".token_shards"},
    "shard_cache.py": {"filelock"},
    "shard_store.py": {
        *("numpy", ".atomic_files", ".remote_files", ".shard_cache", ".token_shards"),
    },
    "training_data.py": {
        *("huggingface_hub", "transformers", ".mixture", ".processes", ".shard_cache"),
        *(".shard_loader", ".shard_store", ".token_shards", ".tokenization", ".train_config"),
    },
    "schedules.py": set(),
    "newton_schulz.py": {"torch"},
    "matrix_sharing.py": {"torch", ".newton_schulz"},
    "muon.py": {"torch", ".matrix_sharing", ".newton_schulz"},
    "optimization.py": {"torch", ".muon", ".zero_state"},
    # deepspeed is an optional extra: only functions that work on its models import it.
    "zero_state.py": {"accelerate", "deepspeed", "torch"},
    "roll_call.py": {"torch"},
    "agreement.py": {"accelerate", "torch", ".roll_call"},
    "processes.py": {"accelerate", "torch", "transformers", ".roll_call"},
    "conversion.py": {
        *("safetensors", "transformers", ".atomic_files", ".checkpointing", ".command_line"),
        *(".configuration_gpt2scratch", ".foreign_checkpoints", ".modeling_gpt2scratch"),
        ".tokenization",
    },
    "foreign_checkpoints.py": {
        *("huggingface_hub", "numpy", "torch", "transformers"),
        *(".configuration_gpt2scratch", ".loading_gpt2scratch", ".modeling_gpt2scratch"),
    },
    "checksums.py": set(),
    "sliced_tensors.py": {"safetensors", "torch"},
    "checkpoint_retention.py": set(),
    "checkpointing.py": {
        *("safetensors", "torch", "transformers", ".atomic_files", ".checkpoint_retention"),
        *(".checksums", ".sliced_tensors", ".tokenization", ".zero_state"),
    },
    "checkpoint_snapshot.py": {
        *("safetensors", "torch", "transformers", ".atomic_files", ".checkpoint_retention"),
        *(".checkpointing", ".checksums", ".sliced_tensors", ".zero_state"),
    },
    "checkpoint_writer.py": {
        *("torch", "transformers", ".atomic_files", ".checkpoint_retention"),
        *(".checkpoint_snapshot", ".checkpointing", ".checksums", ".zero_state"),
    },
    "run_directory.py": {
        *("accelerate", "filelock", ".atomic_files", ".checkpointing", ".processes"),
        *(".train_config", ".training_progress"),
    },
    "guard_rails.py": set(),
    "training_progress.py": {".guard_rails", ".train_config"},
    "step_outcomes.py": {"accelerate", "torch"},
    "preflight.py": {"accelerate", "numpy", "torch", ".processes", ".shard_loader"},
    "training_run.py": {
        *("accelerate", "torch", "transformers", ".activation_checkpointing", ".agreement"),
        *(".checkpoint_writer", ".checkpointing", ".compilation", ".devices", ".metrics"),
        *(".micro_batch", ".model_making", ".modeling_gpt2scratch", ".optimization"),
        *(".processes", ".run_directory", ".shard_loader", ".trackers", ".train_config"),
        *(".training_data", ".training_progress", ".zero_state"),
    },
    "run_banner.py": {
        *("accelerate", "tabulate", "torch", ".optimization", ".train_config", ".training_run"),
    },
    "metrics.py": {"accelerate", ".atomic_files"},
    "trackers.py": {"accelerate", "wandb", ".metrics", ".processes", ".train_config"},
    "activation_checkpointing.py": {"transformers"},
    "devices.py": {"torch", ".configuration_gpt2scratch", ".processes"},
    "compilation.py": {"torch", ".processes"},
    "micro_batch.py": {
        *("accelerate", "psutil", "torch", ".modeling_gpt2scratch", ".processes"),
    },
    "profiling.py": {"accelerate", "torch", ".train_config"},
    "run_measurements.py": {
        *("torch", ".compilation", ".devices", ".guard_rails", ".metrics", ".processes"),
        *(".step_outcomes", ".training_run"),
    },
    "validation.py": {
        *("accelerate", "numpy", "torch", "transformers", ".shard_loader", ".training_run"),
    },
    "train_checks.py": {".atomic_files", ".command_line", ".mixture"},
    "train_config.py": {".command_line", ".initial_weights", ".train_checks"},
    "initial_weights.py": {
        *("torch", "transformers", ".configuration_gpt2scratch", ".modeling_gpt2scratch"),
        *(".token_shards", ".tokenization"),
    },
    "model_making.py": {
        *("transformers", ".configuration_gpt2scratch", ".initial_weights"),
        *(".modeling_gpt2scratch", ".token_shards", ".train_config"),
    },
    "loss_plot.py": {"matplotlib", ".command_line", ".metrics"},
    "run_records.py": {
        *("huggingface_hub", ".metrics", ".run_directory"),
        *(".docstrings", ".row_readers", ".token_shards", ".train_config"),
    },
    "run_report.py": {
        *("safetensors", "tabulate", ".atomic_files", ".checkpointing", ".command_line"),
        *(".loss_plot", ".metrics", ".model_card", ".run_records", ".train_config"),
    },
    "model_card.py": {
        *("huggingface_hub", "tabulate", ".docstrings", ".eval_results", ".run_records"),
    },
    "eval_results.py": {"huggingface_hub", "yaml"},
    "data_card.py": {
        *("huggingface_hub", "tabulate"),
        *(".docstrings", ".hub_files", ".run_records", ".token_shards"),
    },
    "shard_publishing.py": {
        *("huggingface_hub", ".atomic_files", ".command_line", ".data_card", ".hub_retries"),
        *(".source_error", ".token_shards"),
    },
    "doctor.py": {"tabulate", ".", ".command_line", ".machine_checks"},
    "machine_checks.py": {"packaging", "psutil", "torch", ".atomic_files"},
    "network_checks.py": {
        *("huggingface_hub", ".document_encoder", ".machine_checks", ".tokenization"),
    },
    "all_reduce.py": {"torch"},
    "publishing.py": {
        *("huggingface_hub", "transformers", ".atomic_files", ".checkpointing", ".command_line"),
        *(".conversion", ".eval_results", ".loss_plot", ".metrics", ".model_card"),
        *(".run_records", ".tokenization", ".train_config"),
    },
}
EVALUATE_ALLOWED = {
    *("accelerate", "datasets", "huggingface_hub", "numpy", "tabulate", "torch", "tqdm"),
    *("transformers", "compare", "hellaswag", "lambada", "perplexity", "sample_files", "scoring"),
    *("arc_easy", "charts", "differences", "evaluation", "in_training", "json_files", "piqa"),
    *("matplotlib", "measurements", "model_files", "paired_tests", "process_group"),
    *("published_numbers", "result_cache", "results_file", "results_table", "task_names"),
    *("documents", "greedy_words", "local_text", "multiple_choice", "paper_corpora", "wikitext"),
    *("batching", "cbt", "cbt_files", "encoding", "model_loading", "row_scorer", "shared_prefix"),
    *("answered_result", "causal_model", "code_files", "comparison_report", "sample_logs"),
    "token_scores",
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
    assert used == {"command_line", "preparation", "prepare_config", "shard_publishing"}


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
