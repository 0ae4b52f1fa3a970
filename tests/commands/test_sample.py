"""`gpt2scratch sample`: where prompts come from, what a mistake says, and Ctrl-C on a terminal."""

import io
import os
import re
import shutil
import subprocess
import sys

import pytest
from support.paths import REPOSITORY
from support.terminal import terminal
from support.tiny_models import CORPUS, END_OF_TEXT, tiny_stock_model, tiny_tokenizer

from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.commands.sample import main
from modeling_gpt2scratch.generation.conversation import converse
from modeling_gpt2scratch.generation.text_generator import Sampling, load_generator

COMMAND = [sys.executable, "-m", "modeling_gpt2scratch", "sample"]
INVITATION = "Type how a text begins, or nothing. Ctrl-C stops a text; exit or Ctrl-D ends."
ENDLESS = ("--max_new_tokens", "1000000000")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A model of ours that writes words and ends of lines, and no end of the text."""
    directory = tmp_path_factory.mktemp("run")
    tokenizer = tiny_tokenizer()
    written = {*tokenizer("\n".join(CORPUS))["input_ids"]}
    tiny_stock_model().save_pretrained(directory)
    model = GPT2ScratchForCausalLM.from_pretrained(directory)
    others = [token for token in range(END_OF_TEXT + 1) if token not in written]
    model.generation_config.update(eos_token_id=None, suppress_tokens=others)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture
def sample(capsys, monkeypatch):
    """Runs the command; returns its exit code, and what it printed."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # or it would choose for the tests after it

    def sample(*words, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as ending:
            code = ending.code
        captured = capsys.readouterr()
        if isinstance(code, str):  # what Python prints before it exits with 1
            return 1, captured.out, code + "\n"
        return code, captured.out, captured.err

    return sample


def text_of(capsys, run_dir, prompt, *, seed=0, **changes) -> str:
    """What a generator prints with the command's defaults."""
    values = {"temperature": 0.8, "top_k": 50, "top_p": 1.0, "max_new_tokens": 200} | changes
    generator = load_generator(run_dir, trust_remote_code=False)
    capsys.readouterr()
    generator.write(prompt, Sampling(**values), seed=seed)
    return capsys.readouterr().out


def test_a_prompt_alone_gives_a_text_alone(sample, capsys, run_dir):
    expected = (0, text_of(capsys, run_dir, "the cat"), "")
    assert sample(run_dir, "--prompt", "the cat") == expected
    assert sample(f"{run_dir}/", "--prompt", "the cat") == expected


def test_every_argument_has_its_effect(sample, capsys, run_dir):
    flags = ["--temperature", 0.5, "--top_k", 3, "--top_p", 0.9, "--max-new-tokens", 9]
    found = sample(run_dir, "--prompt", "the cat", "--seed", 5, *flags)
    changes = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "max_new_tokens": 9}
    assert found == (0, text_of(capsys, run_dir, "the cat", seed=5, **changes), "")
    _, output, _ = sample(run_dir, "--prompt", "the cat", "--seed", 5, "--num_samples", 2, *flags)
    texts = [text_of(capsys, run_dir, "the cat", seed=seed, **changes) for seed in (5, 6)]
    assert texts[0] != texts[1]
    assert output == f"=== sample 1 of 2 ===\n{texts[0]}=== sample 2 of 2 ===\n{texts[1]}"


def test_prompts_come_from_flags_and_from_the_lines_of_a_file(sample, capsys, run_dir, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffthe dog\r\n\n on the mat \n".encode())
    few = ["--max_new_tokens", 5]
    from_file = sample(run_dir, "--prompt", "a", "b", "--prompt", "", "--prompts_file", file, *few)
    prompts = ["a", "b", "", "the dog", " on the mat "]
    expected = "".join(
        f"=== prompt {number} of 5 ===\n{text_of(capsys, run_dir, prompt, max_new_tokens=5)}"
        for number, prompt in enumerate(prompts, start=1)
    )
    assert from_file == (0, expected, "")
    piped = sample(run_dir, "--prompts_file", "-", *few, stdin="a\nb\n")
    assert piped == sample(run_dir, "--prompt", "a", "b", *few)


def test_models_stand_side_by_side_with_the_same_prompt_and_seed(sample, capsys, run_dir, tmp_path):
    other = tmp_path / "other"
    tiny_stock_model(n_layer=1).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    code, output, _ = sample(run_dir, other, "--prompt", "the", "--seed", 2)
    assert code == 0
    assert output == "".join(
        f"=== {name} ===\n{text_of(capsys, name, 'the', seed=2)}" for name in (run_dir, str(other))
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --prompt, --prompts_file or a terminal, found none"),
        (["--top_k", "x"], "argument --top_k: expected a whole number of at least 0, found 'x'"),
        (["--top_p", "1.5"], "argument --top_p: expected a number from 0 to 1, found '1.5'"),
        (
            ["--temperature", "nan"],
            "argument --temperature: expected a number of at least 0, found 'nan'",
        ),
        (
            ["--num_samples", "0"],
            "argument --num_samples: expected a whole number of at least 1, found '0'",
        ),
    ],
)
def test_a_mistake_is_one_line_and_code_2(sample, flags, message):
    assert sample("none", *flags) == (2, "", f"gpt2scratch sample: error: {message}\n")


def test_what_cannot_be_read_is_one_line_and_code_1(sample, run_dir, tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    (tmp_path / "empty").write_bytes(b"\n\n")
    for file, found in (
        ("none", "expected to read or write it, found No such file or directory"),
        ("latin", "expected text in UTF-8, found 'utf-8' codec can't decode byte 0xe9"),
        ("empty", "expected one prompt per line, found none"),
    ):
        code, output, error = sample(run_dir, "--prompts_file", tmp_path / file)
        assert (code, output, error.count("\n")) == (1, "", 1)
        assert error.startswith("gpt2scratch sample: error: ")
        assert found in error and str(tmp_path / file) in error
    code, output, error = sample(f"{run_dir}s", "--prompt", "a")
    assert (code, output) == (1, "")
    assert error == (
        f"gpt2scratch sample: error: {run_dir}s: expected a model directory, found none; "
        f"did you mean {run_dir}?\n"
    )


def test_an_unfinished_run_is_said_to_write_with_a_checkpoint(sample, run_dir, tmp_path):
    checkpoint = shutil.copytree(run_dir, tmp_path / "checkpoint-7")
    (checkpoint / "training_state.json").write_text("{}")
    _, _, error = sample(tmp_path, "--prompt", "a", "--max_new_tokens", 1)
    assert error == f"{tmp_path}: the run has not finished; using {tmp_path}/checkpoint-7\n"


@pytest.fixture
def cache(tmp_path):
    """The environment of a user whose cache is empty, and this cache."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TERM": "dumb"}
    return environment, tmp_path / "cache" / "gpt2scratch"


@pytest.mark.gate
def test_prompts_are_typed_stopped_remembered_and_left_with_one_line(run_dir, cache, capsys):
    environment, directory = cache
    with terminal([*COMMAND, run_dir, *ENDLESS], env=environment) as session:
        assert session.wait_for(f"{INVITATION}\r\n> $")
        for prompt in ("the cat sat", "on the mat"):
            session.type(f"{prompt}\n")
            assert session.wait_for(rf"\n{prompt}\S* \S")
            session.press_ctrl_c()
            assert session.wait_for("stopped\r\n> $")
        session.go_on_for(5)  # a program that does not end after Ctrl-C would be ended by now
        session.press_ctrl_c()
        assert session.wait() == 130
    # Some terminals show the keys themselves.
    assert session.output.lstrip("^C\r\n") == "gpt2scratch sample: interrupted\r\n"

    with terminal([*COMMAND, run_dir, "--max_new_tokens", "9"], env=environment) as session:
        assert session.wait_for("> $")
        session.type("\x1b[A\x1b[A\n")  # two lines up
        expected = text_of(capsys, run_dir, "the cat sat", max_new_tokens=9).splitlines()[-1]
        assert session.wait_for(rf"{re.escape(expected[-4:])}\r\n> $")
        session.type("exit\n")
        assert session.wait() == 0
    lines = (directory / "sample_history").read_text().splitlines()
    assert lines == ["the cat sat", "on the mat", "the cat sat", "exit"]


def test_a_line_that_is_no_text_leaves_the_session_open(monkeypatch, capsys, tmp_path):
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8")
    lines = iter([stdin.readline, lambda: "exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines)())
    sampling = Sampling(temperature=0, top_k=0, top_p=1, max_new_tokens=1)
    converse([], sampling, n=1, seed=0, history=tmp_path / "history")
    found = "expected text in utf-8, found invalid start byte; type it again"
    assert capsys.readouterr().out.splitlines() == [INVITATION, found]


@pytest.mark.gate
def test_ctrl_c_ends_a_text_that_was_asked_for_by_flags(run_dir, cache):
    with terminal([*COMMAND, run_dir, *ENDLESS, "--prompt", "the"], env=cache[0]) as session:
        assert session.wait_for(r"\rthe\S* \S")
        session.press_ctrl_c()
        assert session.wait() == 130
    assert session.output.splitlines()[-1].endswith("gpt2scratch sample: interrupted")
    assert "Traceback" not in session.output


@pytest.mark.gate
def test_a_reader_that_has_enough_ends_the_command_without_a_word(run_dir):
    command = [*COMMAND, run_dir, *ENDLESS, "--prompt", "the"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, **pipes) as process:
        assert process.stdout.read1(3) == b"the"
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 1)
