"""The notebook for a T4: each of its commands is one that its program takes; none is run here."""

import ast
import re
import shlex

import nbformat
import pytest
from accelerate.commands.launch import launch_command_parser
from IPython.core.inputtransformer2 import TransformerManager
from support.paths import REPOSITORY

from modeling_gpt2scratch import GPT2ScratchConfig
from modeling_gpt2scratch.commands import sample
from modeling_gpt2scratch.commands.doctor import DoctorConfig
from modeling_gpt2scratch.common.command_line import parse_config
from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
from modeling_gpt2scratch.hardware.devices import flops_per_token, peak_flops
from modeling_gpt2scratch.hub.configuration import PublishConfig
from modeling_gpt2scratch.training.configuration import TrainConfig

NOTEBOOK = nbformat.read(REPOSITORY / "docs" / "notebooks" / "colab_t4.ipynb", as_version=4)
CODE = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"]
TEXT = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
# Lines that begin with an exclamation mark, and what continues them.
COMMANDS = [
    shlex.split(line.replace("{REPOSITORY}", "you/gpt2-stories"))
    for source in CODE
    for line in re.findall(r"^ *!(.*)$", source.replace("\\\n", " "), re.MULTILINE)
]
OF_OTHERS = [
    *("nvidia-smi -L", "git clone REPOSITORY_URL gpt2scratch", "pip install -q -e ."),
]


def parsed(words: list[str]):
    """What a program of ours makes of its arguments; exits as it would if it does not take them."""
    match words:
        case ["python", "prepare_data.py", *arguments]:
            return parse_config(PrepareConfig, description=None, argv=arguments)
        case ["accelerate", "launch", *arguments]:
            launch = launch_command_parser().parse_args(arguments)
            assert (REPOSITORY / launch.config_file).is_file()
            assert launch.training_script == "train_accelerate.py"
            return parse_config(TrainConfig, description=None, argv=launch.training_script_args)
        case ["gpt2scratch", "doctor", *arguments]:
            return parse_config(DoctorConfig, description=None, argv=arguments)
        case ["gpt2scratch", "sample", *arguments]:
            return sample._parse_arguments(arguments)
        case ["gpt2scratch", "publish", *arguments]:
            return parse_config(PublishConfig, description=None, argv=arguments)
    raise AssertionError(f"expected a command that this test can parse, found {words}")


@pytest.fixture
def commands(monkeypatch) -> list:
    """Our commands, parsed in the repository's directory, where the notebook goes."""
    monkeypatch.chdir(REPOSITORY)
    return [parsed(words) for words in COMMANDS if " ".join(words) not in OF_OTHERS]


def test_each_command_is_taken_by_its_own_parser(commands):
    assert [" ".join(words) for words in COMMANDS[:3]] == OF_OTHERS
    names = ["DoctorConfig", "PrepareConfig", "TrainConfig", "Namespace", "PublishConfig"]
    assert [type(command).__name__ for command in commands] == names


def test_what_one_command_writes_the_next_one_reads(commands):
    _, prepare, training, writing, publishing = commands
    assert training.data == "data/stories" and prepare.output_dir.endswith(training.data)
    assert training.output_dir.endswith(publishing.run) and writing.models == [publishing.run]
    assert f'Image("{publishing.run}/curves.png")' in "\n".join(CODE)
    # The tokens suffice for the training, with what is held out.
    n_tokens = training.max_steps * training.total_batch_tokens
    assert n_tokens < prepare.max_tokens * (1 - prepare.val_fraction) * 0.9


def test_the_training_is_that_of_the_recipe_for_a_t4_and_takes_minutes(commands):
    training = commands[2]
    assert (training.mixed_precision, training.compile) == ("fp16", "no")
    flops = flops_per_token(GPT2ScratchConfig(), training.sequence_length)
    n_tokens = training.max_steps * training.total_batch_tokens
    seconds = n_tokens * flops / (0.4 * peak_flops("Tesla T4", "fp16"))
    assert f"that takes {seconds / 60:.1f} minutes (computed, not run)" in TEXT
    assert f"{training.max_steps} steps of {training.total_batch_tokens:,} tokens" in TEXT


def test_the_cells_are_python_after_the_kernel_has_read_them():
    for source in CODE:
        ast.parse(TransformerManager().transform_cell(source))


def test_links_lead_from_the_notebook_to_pages():
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT)
    folder = REPOSITORY / "docs" / "notebooks"
    assert links and [link for link in links if not (folder / link).is_file()] == []
