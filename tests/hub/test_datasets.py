"""Prepared data pushed to a Hub, cut off, gone on with, and read back from there."""

import dataclasses
import functools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard, snapshot_download
from support.servers import fake_hub
from support.tiny_corpus import fables

from modeling_gpt2scratch.commands import shards
from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.common.retries import Retries
from modeling_gpt2scratch.data.shards.directory import open_shard
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.shards.writer import SplitWriter
from modeling_gpt2scratch.data.tokens.tokenizer import fingerprint, train_tokenizer
from modeling_gpt2scratch.hub import datasets
from modeling_gpt2scratch.hub.datasets import push_data, require_place
from modeling_gpt2scratch.reports.data_card import public_manifest, size_category

REPOSITORY = "aesop/fable-tokens"
TOKEN = "hf_secret"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
IMPATIENT = Retries(first_wait_seconds=0, longest_wait_seconds=0, give_up_after_seconds=0)
PATIENT = Retries(first_wait_seconds=0, longest_wait_seconds=0, give_up_after_seconds=30)


@functools.cache
def tokenizer_of_300():
    return train_tokenizer(fables(20), 300)


def tokens_of(seed: int = 0, n_tokens: int = 45) -> np.ndarray:
    """Three documents, whose end-of-text id is 299."""
    tokens = np.random.default_rng(seed).integers(0, 299, n_tokens)
    tokens[[0, 2, 4]] = 299
    return tokens


def write_data(directory: Path, *, seed: int = 0, n_tokens: int = 45) -> Manifest:
    """A data directory with shards of ten tokens: five for training and one to validate."""
    directory.mkdir()
    tokens = tokens_of(seed, n_tokens)
    splits = {}
    for name, part in (("train", tokens), ("val", tokens[:7])):
        writer = SplitWriter(directory, name, shard_tokens=10, vocab_size=300)
        writer.add(part, n_bytes=4 * len(part), n_documents=3)
        splits[name] = writer.close()
    tokenizer_of_300().save_pretrained(directory)
    (directory / "notes.txt").write_text("not for the Hub")
    manifest = Manifest(
        vocab_size=300,
        end_of_text_id=299,
        tokenizer={
            "name": str(directory / "my-tokenizer"),
            "fingerprint": fingerprint(tokenizer_of_300()),
        },
        splits=splits,
        arguments={
            "output_dir": str(directory),
            "dataset": f"HuggingFaceFW/fineweb-edu:0.7,{directory}/fables.jsonl:0.3",
            "subset": "sample-10BT",
            "where": ["language == en", "score >= 1/2"],
            "seed": seed,
            "val_fraction": 0.01,
        },
    )
    manifest.save(directory)
    return manifest


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with an empty repository, which this process uses and is logged in to."""
    with fake_hub.serve(REPOSITORY, {}) as served:
        served.use_here(monkeypatch, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(datasets, "SHARDS_PER_COMMIT", 2)
        yield served


@pytest.fixture
def data(tmp_path):
    """A prepared data directory."""
    write_data(tmp_path / "data")
    return tmp_path / "data"


def shards_in(names) -> set[str]:
    return {name for name in names if name.endswith(".bin")}


def test_a_published_directory_reads_back_as_it_was(hub, data, tmp_path):
    assert push_data(data, REPOSITORY) == f"{hub.address}/datasets/{REPOSITORY}"
    copy = Path(snapshot_download(REPOSITORY, repo_type="dataset", endpoint=hub.address))
    manifest, original = Manifest.load(copy), Manifest.load(data)
    assert manifest.splits == original.splits
    for split in manifest.splits.values():
        for entry in split.shards:
            read = [open_shard(place / entry.file, entry, vocab_size=300) for place in (copy, data)]
            np.testing.assert_array_equal(*read)
    for name in TOKENIZER_FILES:
        assert (copy / name).read_bytes() == (data / name).read_bytes()
    assert {path.name for path in copy.iterdir()} == {
        *(f"train_{i:06d}.bin" for i in range(5)),
        *("val_000000.bin", "manifest.json", *TOKENIZER_FILES, "README.md"),
    }


def test_shards_go_first_and_the_manifest_last(hub, data):
    push_data(data, REPOSITORY)
    *of_shards, last = hub.commits
    assert [commit["added"] for commit in of_shards] == [
        ["train_000000.bin", "train_000001.bin"],
        ["train_000002.bin", "train_000003.bin"],
        ["train_000004.bin", "val_000000.bin"],
    ]
    assert sorted(last["added"]) == ["README.md", "manifest.json", *TOKENIZER_FILES]


@pytest.mark.parametrize("n_commits", [0, 1, 3])
def test_a_push_that_is_cut_off_has_no_manifest_and_goes_on_where_it_was(
    hub, data, monkeypatch, n_commits
):
    commit = datasets._commit

    def commit_or_die(*arguments):
        if len(hub.commits) == n_commits:
            raise KeyboardInterrupt
        commit(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(datasets, "_commit", commit_or_die)
        push_data(data, REPOSITORY)
    assert len(hub.files) == 2 * n_commits
    assert shards_in(hub.files) == set(hub.files)
    hub.requests.clear()
    push_data(data, REPOSITORY)
    assert "manifest.json" in hub.files
    assert len(hub.commits) == 4  # no shard went twice
    n_uploads = len([line for line in hub.requests if line.startswith("PUT")])
    assert n_uploads == 6 - 2 * n_commits


@pytest.mark.parametrize("answer", [429, 500, 503, "drop"])
@pytest.mark.parametrize(
    "request_",
    [
        "POST .*/create",
        "GET .*/tree",
        "POST .*/preupload",
        "POST .*/batch",
        "PUT",
        "POST .*/commit",
    ],
)
def test_a_push_survives_a_hub_that_fails_for_a_while(hub, data, request_, answer):
    hub.fail(request_, answer, times=3)
    push_data(data, REPOSITORY, retries=PATIENT)
    assert hub.went_wrong
    original = {path.name: path.read_bytes() for path in data.glob("*.bin")}
    assert {name: hub.files[name] for name in shards_in(hub.files)} == original
    assert "manifest.json" in hub.files


def test_a_hub_that_stays_down_ends_in_one_line_without_a_manifest(hub, data):
    hub.fail("POST .*/commit", 500, times=float("inf"))
    with pytest.raises(SourceError) as caught:
        push_data(data, REPOSITORY, retries=IMPATIENT)
    assert str(caught.value) == (
        f"{REPOSITORY}: the Hub answered 500 Internal Server Error, 1 time; run the same command "
        f"again when the Hub can be reached"
    )
    assert hub.files == {}


def test_other_data_replaces_what_was_there_and_is_never_mixed_with_its_manifest(
    hub, data, tmp_path
):
    push_data(data, REPOSITORY)
    owners = ("notes.md", "weights.bin", "old/train_000000.bin", "their_train.npy", "val.bin")
    hub.files |= dict.fromkeys(owners, b"the owner's")
    hub.files["chat_template.jinja"] = b"earlier"
    n_before = len(hub.commits)
    write_data(tmp_path / "other", seed=1, n_tokens=25)
    push_data(tmp_path / "other", REPOSITORY)
    first = hub.commits[n_before]
    assert first == {
        "added": ["train_000000.bin", "train_000001.bin"],
        "deleted": [
            *("manifest.json", "train_000003.bin", "train_000004.bin", "chat_template.jinja"),
        ],
    }
    found = shards_in(hub.files.keys() - owners)
    assert found == shards_in(path.name for path in (tmp_path / "other").iterdir())
    assert all(hub.files[name] == b"the owner's" for name in owners)


@pytest.mark.parametrize("manifest", [None, b'{"name": "a web page"}'])
def test_a_repository_without_a_data_set_keeps_its_files(hub, data, manifest):
    owners = ("train.bin", "val.npy", "vocab.json", "merges.txt")
    hub.files |= dict.fromkeys(owners, b"the owner's")
    if manifest is not None:
        hub.files["manifest.json"] = manifest
    push_data(data, REPOSITORY)
    assert all(hub.files[name] == b"the owner's" for name in owners)
    assert b"fingerprint" in hub.files["manifest.json"]


def test_the_same_data_pushed_again_sends_no_shard(hub, data):
    push_data(data, REPOSITORY)
    hub.requests.clear()
    push_data(data, REPOSITORY)
    assert not [line for line in hub.requests if line.startswith("PUT")]
    assert "manifest.json" in hub.files


def test_no_published_file_holds_the_token_or_a_path_of_this_machine(hub, data, tmp_path):
    push_data(data, REPOSITORY)
    for name, content in hub.files.items():
        for private in (TOKEN, str(tmp_path)):
            assert private.encode() not in content, (name, private)


def test_of_a_local_name_only_the_last_part_is_published(data):
    manifest = public_manifest(Manifest.load(data))
    assert manifest.tokenizer == {
        "name": "my-tokenizer",
        "fingerprint": fingerprint(tokenizer_of_300()),
    }
    assert manifest.arguments == {
        "dataset": "HuggingFaceFW/fineweb-edu:0.7,fables.jsonl:0.3",
        "subset": "sample-10BT",
        "where": ["language == en", "score >= 1/2"],
        "seed": 0,
        "val_fraction": 0.01,
    }


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("/home/me/x.jsonl", "x.jsonl"),
        ("C:\\Users\\me\\x.jsonl", "x.jsonl"),
        ("/home/me/*.parquet", "*.parquet"),
        ("/home/me/a b.txt:0.5,me/b:0.5", "a b.txt:0.5,me/b:0.5"),
        ("fineweb-edu-10B", "fineweb-edu-10B"),
    ],
)
def test_paths_of_every_system_are_cut(data, dataset, expected):
    manifest = dataclasses.replace(Manifest.load(data), arguments={"dataset": dataset})
    assert public_manifest(manifest).arguments == {"dataset": expected}


def test_the_card_says_what_the_manifest_records(hub, data, tmp_path):
    push_data(data, REPOSITORY, license="odc-by")
    (tmp_path / "README.md").write_bytes(hub.files["README.md"])
    card = DatasetCard.load(tmp_path / "README.md")
    assert card.data.license == "odc-by"
    assert card.data.source_datasets == ["HuggingFaceFW/fineweb-edu"]
    assert card.data.size_categories == ["n<1K"]
    assert re.search(r"\| train +\| 3 +\| 45 +\| 180 +\| 5 +\|", card.text)
    link = "[HuggingFaceFW/fineweb-edu](https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu)"
    assert f"52 tokens of {link} and `fables.jsonl`, as shards" in card.text
    assert f"train_accelerate.py --data hf://datasets/{REPOSITORY}" in card.text
    for name, value in (("seed", "0"), ("val_fraction", "0.01"), ("subset", "sample-10BT")):
        assert re.search(rf"\| `{name}` +\| {value} +\|", card.text)


def test_the_code_on_the_card_reads_the_first_tokens(hub, data, capsys):
    push_data(data, REPOSITORY)
    code = re.search(r"```python\n(.*?)```", hub.files["README.md"].decode(), re.DOTALL)[1]
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out == f"10 {tokens_of()[:10]}\n"


@pytest.mark.parametrize(
    ("n_rows", "name"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (9_672_101, "1M<n<10M"),
        (10**9, "1B<n<10B"),
        (10**15, "n>1T"),
    ],
)
def test_a_size_category_is_the_power_of_ten(n_rows, name):
    assert size_category(n_rows) == name


# What is refused


def refusal(*options: str) -> str:
    """The message the command ends with."""
    with pytest.raises(SystemExit) as caught:
        shards.main(["publish", *options, "--repository", REPOSITORY])
    message = str(caught.value)
    assert message.startswith("gpt2scratch shards publish: error: ")
    assert "\n" not in message
    return message.removeprefix("gpt2scratch shards publish: error: ")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (
            "",
            "expected a login at the Hub, found none; log in with `hf auth login` or set HF_TOKEN",
        ),
        (
            "hf_status_403",
            f"{REPOSITORY}: the Hub answered 403 No push for this token.; this login may not write "
            f"there; use a token with write access to the repository",
        ),
        (
            "hf_status_401",
            f"{REPOSITORY}: the Hub answered 401 No push for this token.; the login is not valid; "
            f"run `hf auth login`",
        ),
    ],
    ids=["no login", "no right", "no valid login"],
)
def test_a_push_without_the_right_to_it_is_one_line(hub, data, monkeypatch, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    assert refusal("--data", str(data)) == message
    with pytest.raises(SourceError, match=re.escape(message)):
        require_place(REPOSITORY, private=False)  # hours earlier, in prepare_data.py
    assert hub.files == {}


def test_a_directory_that_is_no_data_set_is_one_line(hub, tmp_path):
    message = refusal("--data", str(tmp_path / "none"))
    assert message.startswith(f"{tmp_path}/none: expected a directory with manifest.json")


def test_a_public_repository_is_not_taken_for_a_private_one(hub, data):
    message = refusal("--data", str(data), "--private")
    assert message.startswith(f"{REPOSITORY}: expected a private repository, found a public one")
    assert hub.files == {}


def test_a_shard_that_is_not_what_the_manifest_says_is_not_published(hub, data):
    with open(data / "train_000004.bin", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    with pytest.raises(ShardError, match="train_000004.bin: expected sha256 .* prepare the data"):
        push_data(data, REPOSITORY)
    (data / "train_000004.bin").unlink()
    with pytest.raises(ShardError, match="train_000004.bin: expected a token file, found"):
        push_data(data, REPOSITORY)
    assert "manifest.json" not in hub.files


def test_a_link_beside_the_shards_does_not_lead_to_the_hub(hub, data, tmp_path):
    (tmp_path / "token").write_text("a token")
    (data / "chat_template.jinja").symlink_to(tmp_path / "token")
    with pytest.raises(ShardError, match="chat_template.jinja: expected a file to publish"):
        push_data(data, REPOSITORY)
    assert hub.files == {}


def test_a_data_set_in_the_cache_of_the_hub_is_links_and_can_be_published(hub, data, tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "commit", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in data.iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(blobs / file.name)
    push_data(snapshot, REPOSITORY)
    assert hub.files["tokenizer.json"] == (data / "tokenizer.json").read_bytes()


def test_a_dry_run_writes_card_and_manifest_and_asks_nobody(hub, data, tmp_path, capsys):
    target = tmp_path / "dry"
    options = ["publish", "--data", str(data), "--repository", REPOSITORY]
    options += ["--dry_run", str(target)]
    with pytest.raises(SystemExit, match="^0$"):
        shards.main(options)
    assert {path.name for path in target.iterdir()} == {
        *("README.md", "manifest.json", *TOKENIZER_FILES),
    }
    assert capsys.readouterr().out == (
        f"written, not uploaded: {target}; 6 shards would go with it\n"
    )
    assert hub.requests == []
    with pytest.raises(SystemExit, match="^2$"):
        shards.main([*options[:-1], str(tmp_path / "other"), "--license", "MIT License"])
    assert "the Hub names it, such as mit, found 'MIT License'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="^2$"):  # it is no longer new
        shards.main(options)
