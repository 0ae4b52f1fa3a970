"""Addresses without their secrets, in every text that may hold some."""

import dataclasses
import sys
from urllib.parse import unquote, urlsplit

import pytest

from modeling_gpt2scratch.common import addresses
from modeling_gpt2scratch.common.addresses import (
    leads_nowhere,
    redact_fields,
    redacted,
    split_revision,
    store_credentials,
    take_arguments,
    with_credentials,
)
from modeling_gpt2scratch.common.command_line import argument, parse_config
from modeling_gpt2scratch.common.errors import named, one_line
from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
from modeling_gpt2scratch.evaluation.configuration import CompareConfig
from modeling_gpt2scratch.training.configuration import TrainConfig


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(addresses, "_secrets", {})


@pytest.mark.parametrize(
    ("text", "expected", "known"),
    [
        (
            "https://user:password@host:8000/data/",
            "https://host:8000/data/",
            {"https://host:8000/data": ("https://user:password@host:8000/data", "")},
        ),
        ("http://token@host", "http://host", {"http://host": ("http://token@host", "")}),
        (
            "--x=http://u:p@[::1]:8/",
            "--x=http://[::1]:8/",
            {"http://[::1]:8": ("http://u:p@[::1]:8", "")},
        ),
        ("sftp://me:pw@host/d", "sftp://host/d", {"sftp://host/d": ("sftp://me:pw@host/d", "")}),
        (
            "simplecache::https://u:p@host/d",
            "simplecache::https://host/d",
            {"simplecache::https://host/d": ("simplecache::https://u:p@host/d", "")},
        ),
        (
            "https://host/data?sv=2024&sig=a%2Bb",
            "https://host/data",
            {"https://host/data": ("https://host/data", "?sv=2024&sig=a%2Bb")},
        ),
        (
            "https://host/d#token=abc",
            "https://host/d",
            {"https://host/d": ("https://host/d", "#token=abc")},
        ),
        # Several with their shares.
        (
            "https://u:p@host:80/a:0.7,hf://datasets/me/b@main:0.2,data/c:0.1",
            "https://host:80/a:0.7,hf://datasets/me/b@main:0.2,data/c:0.1",
            {"https://host:80/a": ("https://u:p@host:80/a", "")},
        ),
        (
            "https://host/a?sig=x:0.7,https://host/b?sig=y:0.3",
            "https://host/a:0.7,https://host/b:0.3",
            {
                "https://host/a": ("https://host/a", "?sig=x"),
                "https://host/b": ("https://host/b", "?sig=y"),
            },
        ),
        (
            "http://u:p@host:0.5,x:0.5",
            "http://host:0.5,x:0.5",
            {"http://host": ("http://u:p@host", "")},
        ),
        # A comma that should have been escaped.
        (
            "https://host/a?sv=1,2&sig=abc,data/b",
            "https://host/a,data/b",
            {"https://host/a": ("https://host/a", "?sv=1,2&sig=abc")},
        ),
    ],
)
def test_secrets_leave_a_text_and_come_back_for_its_client(text, expected, known):
    for _ in range(2):  # what was read without them does not make them forgotten
        assert store_credentials(text) == redacted(text) == store_credentials(expected) == expected
        assert {address: with_credentials(address) for address in known} == known


def test_an_address_with_a_space_before_its_query_is_refused_without_a_word_of_it():
    with pytest.raises(ValueError, match="writes a space as %20, found one with a space$"):
        store_credentials("https://host/my data?sig=hunter2")
    for text in ("https://host/a:0.7, https://host/b:0.3", "see https://host/a b? c", "a b?c=d"):
        assert store_credentials(text) == text
    assert "hunter2" not in store_credentials("https://h/a:0.7, https://h/b?sig=hunter2:0.3")


@pytest.mark.parametrize(
    "password", ["p@ss", "p/ss", "p#ss", "p?ss", "p,ss", "my pass", "pass:word"]
)
def test_a_password_may_hold_what_should_have_been_escaped(password):
    assert store_credentials(f"https://me:{password}@host/d") == "https://host/d"
    address, _ = with_credentials("https://host/d")
    assert unquote(urlsplit(address).password) == password and urlsplit(address).hostname == "host"


@pytest.mark.parametrize(
    "text",
    [
        "https://me:p@ss/key@host/d",
        "https://me:12/34@host/x",
        "s3://KEY:1e/def@bucket/p",
        "data/a:0.5,https://me:p@host/data@v1:0.5",
    ],
)
def test_a_password_whose_end_nobody_knows_is_refused_and_not_shown(text):
    with pytest.raises(ValueError, match="writes @ as %40") as error:
        store_credentials(text)
    for secret in ("p@", "ss/", "key@", "12", "34", "1e", "def@", "me:"):
        assert secret not in str(error.value) + redacted(text)
    assert not addresses._secrets


@pytest.mark.parametrize(
    "text",
    [
        *("data/docstrings", "C:\\me@work\\data", "a:0.7,b:0.3", "s3://bucket/data", "gpt2"),
        *("hf://datasets/user/name@revision/folder", "http://127.0.0.1:8000/data:0.7,x:0.3"),
        *("abfs://container@account.dfs.core.windows.net/d", "sftp://me@host/data", "me@host"),
        "https://host: expected the file of me@host, found none",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text):
    assert store_credentials(text) == text
    assert not addresses._secrets and with_credentials(text) == (text, "")


def test_a_librarys_message_is_printed_without_secrets():
    error = OSError("GET https://u:pass@host/x?sig=abc failed,\nsee http://tok@other/y")
    assert named(error) == "OSError: GET https://host/x failed, see http://other/y"
    assert one_line(ValueError("x" * 20_000)).endswith("x ...")
    # A path that was an address.
    assert redacted("https:/u:pass@host/x: no such file") == "https:/host/x: no such file"


def test_long_texts_are_read_in_no_time():
    for text in ("x" * 100_000, "https://a:b" * 10_000, "https://a?" + ",b=" * 10_000):
        assert len(redacted(text)) <= len(text)  # that would take hours if it were searched twice


@dataclasses.dataclass(frozen=True)
class Config:
    """Arguments of a test."""

    data: str = argument("an address")
    more: list[str] = argument("some", default_factory=list)
    where: str = argument("a condition", default="")
    steps: int = argument("a number", default=1)

    def __post_init__(self):
        redact_fields(self, but=("where",))
        if self.data.endswith("bad"):
            raise ValueError(f"expected another, found {self.data}")


def test_a_configuration_never_holds_them():
    config = Config("https://u:pw@h/d", ["a", "https://h/b?sig=x"], "url == https://h/?id=1")
    assert dataclasses.asdict(config) == {
        "data": "https://h/d",
        "more": ["a", "https://h/b"],
        "where": "url == https://h/?id=1",
        "steps": 1,
    }
    assert with_credentials("https://h/d")[0] == "https://u:pw@h/d"


@pytest.mark.parametrize(
    "argv",
    [
        ["--data", "https://u:hunter2@h/bad"],
        ["--data", "https://u:hunter2@h/d", "--steps", "https://u:hunter2@h"],
        ["--data", "https://h/d", "https://u:hunter2@h"],
        ["--dato=https://h?sig=hunter2"],
        ["https://u:hunter2@h/recipe.yaml"],
    ],
)
def test_no_complaint_about_arguments_shows_them(argv, capsys):
    with pytest.raises(SystemExit):
        parse_config(Config, description=None, argv=argv)
    shown = capsys.readouterr()
    assert "hunter2" not in shown.err + shown.out
    assert len(shown.err.splitlines()) == 1


def test_trackers_that_record_the_command_line_find_none(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", "https://u:pw@h/d", "--steps=3"])
    assert take_arguments(None) == ["--data", "https://u:pw@h/d", "--steps=3"]
    assert sys.argv == ["train.py", "--data", "https://h/d", "--steps=3"]


def test_a_revision_belongs_to_a_repository_and_not_to_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "odd@name"):
        (tmp_path / name).mkdir()
    assert split_revision("me/model@step-1") == ("me/model", "step-1")
    address = "https://me:hf_password@huggingface.co/me/model"
    for whole in ("me/model", "odd@name", "./odd@name", str(tmp_path / "odd@name"), "run", "@", ""):
        assert split_revision(whole) == (whole, "main")
    assert split_revision(address) == (address, "main")  # so that messages leave the password out
    for name in ("run@step-1", "./run@step-1", f"{tmp_path}/run@step-1"):
        with pytest.raises(ValueError, match="before @step-1, found the directory .*run; name a"):
            split_revision(name)


def test_a_token_in_a_header_is_not_printed():
    found = redacted("Illegal header value b'Bearer hf_SEC\\x0bRET'; next try")
    assert found == "Illegal header value b'Bearer ...'; next try"


def test_every_command_refuses_a_directory_with_a_revision(tmp_path):
    place = f"{tmp_path}@step-1"
    for make in (
        lambda: CompareConfig(models=[place], tasks=["val"], val_data="d"),
        lambda: TrainConfig(data="d", output_dir="new", init_from=place),
        lambda: PrepareConfig(dataset="d", output_dir="new", tokenizer=place),
    ):
        with pytest.raises(ValueError, match="expected a repository of the Hub before @step-1"):
            make()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[(name, False) for name in ("gpt2", "me/model", "me/model@refs/pr/1", ".", "/")],
        *[(name, True) for name in ("/no/such", "./no", "../no", "~/no", "a/b/c", "/no@main")],
    ],
)
def test_a_path_to_nothing_is_told_from_a_name_of_the_hub(name, expected):
    assert leads_nowhere(name) == expected
