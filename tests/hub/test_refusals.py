"""What publishing refuses before it reaches the Hub, and what the Hub refuses, in one line."""

import json

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from support.servers import fake_hub
from support.tiny_models import tiny_model, tiny_tokenizer

from modeling_gpt2scratch.checkpoints.checkpoint import save_model
from modeling_gpt2scratch.commands import publish
from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.hub.runs import upload

REPOSITORY = "someone/tiny"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with an empty repository, which this process uses and is logged in to."""
    with fake_hub.serve(REPOSITORY, {}, kind="models") as served:
        served.use_here(monkeypatch, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield served


@pytest.fixture
def run(tmp_path):
    """A finished run, as far as this command looks at it."""
    save_model(tiny_model(), tiny_tokenizer(), tmp_path / "run")
    return tmp_path / "run"


def publish_dry(run, out, *more) -> None:
    publish.main(["--run", str(run), "--repository", REPOSITORY, "--dry_run", str(out), *more])


@pytest.mark.parametrize("language", ["English", "EN", "en-US", "e", "en,de"])
def test_a_language_is_a_code(run, tmp_path, capsys, language):
    with pytest.raises(SystemExit) as stop:
        publish_dry(run, tmp_path / "out", "--language", language)
    assert stop.value.code == 2 and not (tmp_path / "out").exists()
    expected = "expected --language as a code of two or three letters, such as en, found "
    assert f"{expected}{language!r}" in capsys.readouterr().err


@pytest.mark.parametrize("language", ["en", "deu", "code", "multilingual"])
def test_a_code_stands_on_the_card(run, tmp_path, language):
    publish_dry(run, tmp_path / "out", "--language", language)
    assert f"\nlanguage: {language}\n" in (tmp_path / "out" / "README.md").read_text()


def test_what_has_no_picture_is_named_as_the_run_has_it(run, tmp_path, capsys):
    row = {"step": 5, "loss": None, "tokens_per_second": 900.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    publish_dry(run, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"without loss.png: {run / 'metrics.jsonl'} has no losses"


def test_who_wrote_at_the_same_moment_may_try_again(hub, run, monkeypatch):
    def refuse(self, *arguments, **options):
        response = httpx.Response(412, request=httpx.Request("POST", "http://hub"))
        raise HfHubHTTPError("a commit has happened since", response=response)

    monkeypatch.setattr(HfApi, "create_commit", refuse)
    with pytest.raises(SourceError) as error:
        upload(run, REPOSITORY, private=False)
    hint = "; somebody else wrote at the same moment; run the same command again"
    assert str(error.value).startswith(f"{REPOSITORY}: the Hub answered 412")
    assert str(error.value).endswith(hint)


def test_an_answer_that_is_no_json_is_not_the_hubs(hub, run, monkeypatch):
    def answer(self, *arguments, **options):
        return httpx.Response(200, text="<html>Log in to the network</html>").json()

    monkeypatch.setattr(HfApi, "create_repo", answer)
    with pytest.raises(SourceError) as error:
        upload(run, REPOSITORY, private=False)
    assert str(error.value) == (
        f"{REPOSITORY}: expected the Hub, found JSONDecodeError: Expecting value: line 1 column 1 "
        f"(char 0)"
    )
