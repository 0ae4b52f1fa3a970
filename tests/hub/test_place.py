"""The repository that prepared data are to go to, asked for before the work."""

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from support.servers import fake_hub

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.hub.datasets import require_place

REPOSITORY = "aesop/fable-tokens"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with an empty repository, which this process uses and is logged in to."""
    with fake_hub.serve(REPOSITORY, {}) as served:
        served.use_here(monkeypatch, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield served


@pytest.mark.parametrize("status", [401, 403])
def test_a_place_that_is_somebody_elses_is_refused_before_the_work(hub, monkeypatch, status):
    def refuse(self, repository, *, repo_type, write):
        assert (repository, repo_type, write) == (REPOSITORY, "dataset", True)
        response = httpx.Response(status, request=httpx.Request("GET", "http://hub"))
        raise HfHubHTTPError("no right", response=response)

    require_place(REPOSITORY, private=False)
    monkeypatch.setattr(HfApi, "auth_check", refuse)
    with pytest.raises(SourceError, match=f"{REPOSITORY}: the Hub answered {status}"):
        require_place(REPOSITORY, private=False)


def test_a_token_that_no_header_takes_is_one_line_before_the_work(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_tökén")
    with pytest.raises(SourceError, match="expected a token of letters and digits"):
        require_place(REPOSITORY, private=False)
