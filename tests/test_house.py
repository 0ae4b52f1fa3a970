"""The house: who may import whom, what is loaded where, and how large a file may become."""

import ast
import functools
import graphlib
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import REPOSITORY

PACKAGE = "modeling_gpt2scratch"
MODEL_FILES = ("configuration", "modeling", "loading", "loss")  # each with _gpt2scratch behind it
# The floors from below, and what each may import from outside the standard library. A module
# imports its own floor and those below.
FLOORS = {
    "": "huggingface_hub torch transformers",  # the model files, side by side
    "common": "filelock huggingface_hub psutil tenacity tqdm yaml",
    "distributed": "accelerate deepspeed torch tqdm transformers",
    "data.tokens": "numpy tiktoken tokenizers transformers",
    "data.shards": "numpy tqdm transformers",
    "data.sources": "backports compression datasets huggingface_hub numpy pyarrow tqdm yaml",
    "data.preparation": "datatrove filelock numpy tqdm transformers",
    "data.loading": "aiohttp filelock fsspec numpy tenacity torch tqdm",
    "checkpoints": "accelerate huggingface_hub safetensors torch tqdm transformers",
    "optim": "torch",
    "hardware": "accelerate psutil torch transformers",
    "evaluation.scoring": "accelerate huggingface_hub numpy torch tqdm transformers",
    "evaluation.tasks": "datasets numpy transformers",
    "evaluation.results": "accelerate itables matplotlib numpy tabulate torch transformers",
    "evaluation": "accelerate torch tqdm transformers",
    "generation": "torch transformers",
    "tracking": "accelerate wandb",
    "training": "accelerate filelock huggingface_hub numpy tabulate torch tqdm transformers",
    "interchange": "fastapi huggingface_hub numpy safetensors torch transformers",
    "reports": "huggingface_hub matplotlib plotly safetensors tabulate yaml",
    "hub": "huggingface_hub transformers",
    "doctor": "huggingface_hub packaging psutil torch",
    "api": "",
    "commands": "accelerate matplotlib numpy psutil tabulate torch tqdm transformers",
    "__main__": "",
}
HEAVY = {"datasets", "huggingface_hub", "pandas", "pyarrow", "torch", "transformers"}
# What importing a module must not load, in a fresh process. Each worker of the preparation imports
# its script once more.
UNLOADED = {
    "": HEAVY,
    "__main__": HEAVY,
    "api": HEAVY,
    "data.shards": HEAVY,
    "data.shards.manifest": HEAVY,
    "data.shards.writer": HEAVY,
    "data.sources.docstrings": HEAVY,
    "data.sources.local_files": HEAVY - {"pyarrow"},
    "reports.model_card": {"torch"},
}
MAX_MODULES, MAX_LINES, MAX_FUNCTION_LINES, MAX_README_LINES = 16, 400, 60, 200

SCRIPT_FOLDERS = ("benchmarks", "evaluate", "launch", "recipes")
SCRIPTS = sorted(
    [*REPOSITORY.glob("*.py")]
    + [file for folder in SCRIPT_FOLDERS for file in (REPOSITORY / folder).rglob("*.py")]
)
MODULES = {
    ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((REPOSITORY / PACKAGE).rglob("*.py"))
}
FILES = [*MODULES.values(), *SCRIPTS, *sorted((REPOSITORY / "tests").rglob("*.py"))]


def name_of(file: Path) -> str:
    return str(file.relative_to(REPOSITORY))


@functools.cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports_of(file: Path) -> Iterator[str]:
    """What a file imports anywhere, for types only as well; modules of ours by whole names."""
    folder = file.relative_to(REPOSITORY).parent.parts
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield next(
                    n for n in (f"{module}.{alias.name}", module) if n in MODULES or n == module
                )


def floor_of(module: str) -> str:
    """The wing that a module is in, or the floor of what stands at the top."""
    inside = module.removeprefix(PACKAGE).removeprefix(".")
    floors = [floor for floor in FLOORS if inside == floor or inside.startswith(f"{floor}.")]
    assert floors or "." not in inside, f"{module}: give its wing a floor"
    return max(floors, key=len, default="")


def test_imports_go_down_or_stay_on_their_floor():
    order = list(FLOORS)
    up = [
        f"{module} -> {imported}"
        for module, file in MODULES.items()
        for imported in imports_of(file)
        if imported in MODULES and order.index(floor_of(imported)) > order.index(floor_of(module))
    ]
    assert not up, up


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: {*imports_of(file)} & {*MODULES} for module, file in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises, with the circle


def test_a_wing_imports_from_outside_what_its_floor_allows():
    foreign = [
        f"{module} -> {imported}"
        for module, file in MODULES.items()
        for imported in {name.split(".")[0] for name in imports_of(file)} - {PACKAGE}
        if imported not in sys.stdlib_module_names
        and imported not in FLOORS[floor_of(module)].split()
    ]
    assert not foreign, foreign


def loaded_by(module: str) -> set[str]:
    """The libraries that a fresh process has loaded after an import."""
    program = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(finished.stdout.split()) - set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", UNLOADED, ids=lambda module: module or "package")
def test_importing_loads_no_large_library(module):
    loaded = loaded_by(f"{PACKAGE}.{module}".rstrip("."))
    assert PACKAGE in loaded and not loaded & UNLOADED[module]


def test_a_worker_that_prepares_data_loads_numpy_tiktoken_and_tokenizers():
    loaded = loaded_by(f"{PACKAGE}.data.tokens.workers, prepare_data")
    public = {name for name in loaded if not name.startswith("_")}
    assert public == {PACKAGE, "prepare_data", "numpy", "tiktoken", "tiktoken_ext", "tokenizers"}


def test_only_relative_imports_connect_the_files_that_travel_with_a_checkpoint():
    siblings = {f"{PACKAGE}.{name}_gpt2scratch" for name in MODEL_FILES}
    for module in siblings:
        for node in ast.walk(tree_of(MODULES[module])):
            if isinstance(node, ast.ImportFrom) and node.level:
                # transformers copies `from .file import name` and nothing else.
                assert node.level == 1 and f"{PACKAGE}.{node.module}" in siblings
            elif isinstance(node, ast.Import | ast.ImportFrom):
                assert PACKAGE not in ast.unparse(node)


def test_the_folder_of_compare_is_no_package_and_shadows_no_library():
    names = {file.stem for file in (REPOSITORY / "evaluate").glob("*.py")}
    assert not names & {"__init__", "datasets", "tokenizers", "statistics", "types"}
    for file in FILES:
        assert all(name.split(".")[0] != "evaluate" for name in imports_of(file)), file


def test_whoever_loads_a_model_or_a_tokenizer_says_whether_its_code_may_run():
    silent = [
        f"{name_of(file)}:{node.lineno}"
        for file in [*MODULES.values(), *SCRIPTS]
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "from_pretrained"
        and ast.unparse(node.func.value) != "super()"  # passes on what it is given
        and not any(keyword.arg == "trust_remote_code" for keyword in node.keywords)
    ]
    assert not silent, silent


def test_whoever_loads_any_model_says_that_no_compiled_code_of_the_hub_may_run():
    silent = [
        f"{name_of(file)}:{node.lineno}"
        for file in [*MODULES.values(), *SCRIPTS]
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Call)
        and re.match(r"AutoModel\w*\.from_pretrained\b", ast.unparse(node.func))
        and not any(keyword.arg == "use_kernels" for keyword in node.keywords)
    ]
    assert not silent, silent


def test_no_folder_has_too_many_modules():
    folders = {file.parent for file in FILES}
    sizes = {
        name_of(folder): sum(file.name != "__init__.py" for file in folder.glob("*.py"))
        for folder in folders
    }
    assert not {name: size for name, size in sizes.items() if size > MAX_MODULES}


def test_no_file_is_too_long_and_no_function_either():
    too_long = {
        name_of(file): n_lines
        for file in FILES
        if (n_lines := len(file.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    for file in FILES:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n_lines = node.end_lineno - node.lineno + 1
                if n_lines > MAX_FUNCTION_LINES:
                    too_long[f"{name_of(file)}:{node.lineno} {node.name}"] = n_lines
    readme = REPOSITORY / "README.md"
    if (n_lines := len(readme.read_text(encoding="utf-8").splitlines())) > MAX_README_LINES:
        too_long["README.md"] = n_lines
    assert not too_long, too_long


def test_what_others_call_comes_before_what_only_its_own_file_calls():
    """Among definitions without other statements between them, which may need what is above."""
    out_of_order = []
    for module, file in MODULES.items():
        for is_run, nodes in itertools.groupby(
            tree_of(file).body,
            key=lambda node: isinstance(
                node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ),
        ):
            names = [node.name for node in nodes] if is_run else []
            is_private = [name.startswith("_") and not name.startswith("__") for name in names]
            if is_private != sorted(is_private):
                out_of_order.append(module)
    assert not out_of_order
