"""`gpt2scratch serve`: a real client of OpenAI's at a real port, and how the two processes end."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from support.processes import PATIENCE
from support.terminal import terminal
from support.tiny_models import tiny_stock_model, tiny_tokenizer

from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.commands import serve
from modeling_gpt2scratch.common.user_cache import user_cache

COMMAND = [sys.executable, "-m", "modeling_gpt2scratch", "serve"]
ADDRESS = r"answers at (http://\S+) \(Ctrl-C ends it\)\s+(curl .*?\}')\s"
PROMPT = "the cat sat on"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A model of ours."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    tiny_stock_model().save_pretrained(directory)
    GPT2ScratchForCausalLM.from_pretrained(directory).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def environment(tmp_path):
    """Of a user whose cache is empty and who has no network."""
    return os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def message(capsys, monkeypatch, tmp_path):
    """What the command says when it cannot serve, and its exit code."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # or it would choose for the tests after it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def message(*words):
        with pytest.raises(SystemExit) as ending:
            serve.main([str(word) for word in words])
        code = ending.value.code
        return (1, code) if isinstance(code, str) else (code, capsys.readouterr().err.strip())

    return message


def test_without_the_extra_one_line_says_what_to_install(message, monkeypatch, run_dir):
    find = serve.importlib.util.find_spec
    absent = ("uvicorn", "openai")
    monkeypatch.setattr(
        serve.importlib.util, "find_spec", lambda name: None if name in absent else find(name)
    )
    assert message(run_dir) == (
        1,
        "gpt2scratch serve: error: expected fastapi, uvicorn, openai, pydantic, found no uvicorn, "
        'openai; pip install -e ".[serve]"',
    )


def test_a_port_that_is_taken_is_refused_before_any_work(message):
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = message("none", "--port", port)
    assert code == 1
    assert line == (
        f"gpt2scratch serve: error: expected to listen on 127.0.0.1, port {port}, found Address "
        f"already in use; choose another --host or --port"
    )
    assert message("none", "--port", "70000") == (
        2,
        "gpt2scratch serve: error: argument --port: expected a whole number from 0 to 65535, "
        "found '70000'",
    )


def test_a_model_that_cannot_be_served_is_one_line(message, tmp_path):
    pytest.importorskip("uvicorn")
    tiny_stock_model().save_pretrained(tmp_path / "stock")
    code, line = message(tmp_path / "stock", "--port", 0)
    assert (code, line.count("\n")) == (1, 0)
    assert line.startswith(f"gpt2scratch serve: error: {tmp_path}/stock")
    assert line.endswith(": expected a gpt2scratch model, found gpt2")


def test_a_cache_that_cannot_be_used_is_named_or_passed_over(
    message, monkeypatch, run_dir, tmp_path
):
    pytest.importorskip("uvicorn")
    (tmp_path / "cache").touch()
    code, line = message(run_dir, "--port", 0)
    assert (code, line.count("\n")) == (1, 0)
    assert line.endswith(f"found a file: {tmp_path}/cache; choose another XDG_CACHE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "gpt2scratch"


def greedy(run_dir, n_new: int) -> tuple[str, int]:
    """What `generate` gives after the prompt, and the number of tokens of the prompt."""
    tokenizer = tiny_tokenizer()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    model = GPT2ScratchForCausalLM.from_pretrained(run_dir)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=n_new)[0]
    n_prompt = inputs["input_ids"].shape[1]
    return tokenizer.decode(ids[n_prompt:], skip_special_tokens=True), n_prompt


def check_options(client, request: dict, text: str) -> None:
    """What the page `talk-to-a-model.md` says of OpenAI's options: some have no effect."""
    import openai

    ignored = {"n": 2, "echo": True, "logprobs": 1, "presence_penalty": 1, "best_of": 2}
    (choice,) = client.completions.create(**request, **ignored, max_tokens=30).choices
    assert choice.text == text
    with pytest.raises(openai.BadRequestError):
        client.completions.create(**request | {"prompt": [PROMPT]})
    with pytest.raises(openai.UnprocessableEntityError):
        client.completions.create(**request, extra_body={"top_k": 3})
    for unfit in ({"temperature": "hot"}, {"extra_body": {"generation_config": "x"}}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(**request | unfit)
        detail = refused.value.response.json()["detail"]
        assert detail.startswith("expected a request as OpenAI's API describes it, found ")
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=[])
    with pytest.raises(openai.BadRequestError):
        client.completions.create(**request | {"prompt": "a" * 1_000_000})
    halved = {"model": "tiny", "prompt": "a \ud800", "max_tokens": 1}
    client.post("/completions", content=json.dumps(halved), cast_to=object)
    stop = text[1:3]  # of the random text, these are letters
    (choice,) = client.completions.create(**request, max_tokens=30, stop=[stop]).choices
    assert stop in choice.text and text.startswith(choice.text) and choice.text != text


@pytest.mark.gate
def test_openais_client_gets_what_generate_gives_until_ctrl_c_ends_both(run_dir, environment):
    openai = pytest.importorskip("openai")
    with terminal([*COMMAND, str(run_dir), "--port", "0"], env=environment) as session:
        assert session.wait_for(ADDRESS), session.output
        url, curl = re.search(ADDRESS, session.output).groups()
        (server,) = psutil.Process(session.pid).children()
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny"]

        request = {"model": "tiny", "prompt": PROMPT, "temperature": 0}
        text, n_prompt = greedy(run_dir, 30)
        answer = client.completions.create(**request, max_tokens=30)
        assert answer.choices[0].text == text
        assert (answer.usage.prompt_tokens, answer.choices[0].finish_reason) == (n_prompt, "length")
        parts = list(client.completions.create(**request, max_tokens=30, stream=True))
        assert "".join(part.choices[0].text for part in parts) == text
        assert len(parts) > 20

        # A client that names no number of tokens gets what fits the model.
        answer = client.completions.create(**request)
        assert answer.choices[0].text == greedy(run_dir, 49 - n_prompt)[0]
        assert answer.choices[0].finish_reason == "length"
        *_, last = client.completions.create(**request, stream=True)
        assert last.choices[0].finish_reason == "length"
        too_long = request | {"prompt": PROMPT * 30}
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(**too_long)
        assert "a prompt of at most 48 tokens, found " in refused.value.response.json()["detail"]
        with pytest.raises(openai.BadRequestError):
            client.completions.create(**too_long, stream=True)
        answer = client.completions.create(**request | {"prompt": ""}, max_tokens=3)
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1, 3)
        empty = [{"role": "user", "content": ""}]
        answer = client.chat.completions.create(model="tiny", messages=empty, max_tokens=3)
        assert answer.usage.prompt_tokens == 1
        check_options(client, request, text)
        chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": PROMPT}]
        answer = client.chat.completions.create(
            model="tiny", messages=chat, temperature=0, max_tokens=30
        )
        assert answer.choices[0].message.content == text
        texts = {
            client.completions.create(**request | {"temperature": 1}, seed=seed).choices[0].text
            for seed in (1, 2, 3, 1)
        }
        assert len(texts) == 3

        shown = subprocess.run(shlex.split(curl), capture_output=True, text=True, check=True)
        assert json.loads(shown.stdout)["usage"]["completion_tokens"] > 0

        session.press_ctrl_c()
        assert session.wait() == 130
        assert not server.is_running()
    assert session.output.removeprefix("^C").split("\r\x1b[K")[-1] == (
        "gpt2scratch serve: interrupted\r\n"
    )


@pytest.mark.gate
def test_the_server_does_not_outlive_a_command_that_is_killed(run_dir, environment):
    pytest.importorskip("uvicorn")
    with terminal([*COMMAND, str(run_dir), "--port", "0"], env=environment) as session:
        assert session.wait_for(ADDRESS), session.output
        (server,) = psutil.Process(session.pid).children()
        os.kill(session.pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
