"""From a configuration to a data directory, or to one line that says what is wrong."""

import itertools
import json
from pathlib import Path

import pytest
import tiktoken
from support.paths import SHARED_DATA
from support.prepared_data import documents_of, manifest_of, names_in
from support.tiny_corpus import fables, write_jsonl

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.common.output_directory import OutputError
from modeling_gpt2scratch.data.preparation import prepare as preparation
from modeling_gpt2scratch.data.preparation.prepare import prepare, tokenizer_files
from modeling_gpt2scratch.data.sources.dataset_argument import estimated_bytes, open_sources
from modeling_gpt2scratch.data.sources.local_files import read_documents
from modeling_gpt2scratch.data.tokens.tokenizer import train_tokenizer


def test_the_manifest_names_the_tokenizer_the_arguments_and_every_shard(tmp_path, prepared):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(100))
    flags = ("--val_fraction", "0.2", "--shard_tokens", "500", "--seed", "7")
    out = prepared(tmp_path / "out", dataset, *flags)
    manifest = manifest_of(out)
    assert (manifest["vocab_size"], manifest["end_of_text_id"]) == (300, 299)
    assert manifest["tokenizer"]["name"] == "bpe:300"
    assert len(bytes.fromhex(manifest["tokenizer"]["fingerprint"])) == 32
    named = {"dataset": str(dataset), "shard_tokens": 500, "seed": 7, "shuffle": True}
    assert named.items() <= manifest["arguments"].items()
    assert manifest["sources"] == [
        {
            "name": str(dataset),
            "subset": None,
            "revision": None,
            "weight": None,
            "files": 1,
            "bytes": dataset.stat().st_size,
            "version": None,
        }
    ]
    shards = {
        split: [shard["file"] for shard in entry["shards"]]
        for split, entry in manifest["splits"].items()
    }
    assert len(shards["train"]) > 1
    for split, files in shards.items():
        assert files == [f"{split}_{index:06d}.bin" for index in range(len(files))]
        sizes = [shard["n_tokens"] for shard in manifest["splits"][split]["shards"]]
        assert sizes[:-1] == [500] * (len(sizes) - 1)
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json"}
    assert set(names_in(out)) == {
        "manifest.json",
        *shards["train"],
        *shards["val"],
        *tokenizer_files,
    }
    assert names_in(tmp_path) == ["fables.jsonl", "out"]


def test_only_the_first_documents_are_read_when_a_limit_is_set(tmp_path, prepared):
    documents = fables(50)
    dataset = write_jsonl(tmp_path / "fables.jsonl", documents)
    flags = ("--val_fraction", "0", "--limit_documents", "20", "--no_shuffle")
    assert documents_of(prepared(tmp_path / "out", dataset, *flags), "train") == documents[:20]


def test_a_tokenizer_is_trained_on_the_training_documents_only(tmp_path, prepared):
    documents = fables(200)
    held_out = prepared(
        tmp_path / "all",
        write_jsonl(tmp_path / "all.jsonl", documents),
        *("--val_fraction", "0.3"),
    )
    train = documents_of(held_out, "train")
    alone = prepared(
        tmp_path / "train",
        write_jsonl(tmp_path / "train.jsonl", train),
        *("--val_fraction", "0"),
    )
    assert manifest_of(alone)["tokenizer"] == manifest_of(held_out)["tokenizer"]


def test_the_tokenizer_of_another_data_directory_can_be_used_again(tmp_path, prepared, run_script):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(100))
    first = prepared(tmp_path / "first", dataset, "--val_fraction", "0.2")
    flags = ("--val_fraction", "0.2", "--tokenizer", first)
    assert run_script(tmp_path / "second", dataset, *flags) == (0, [])
    second = manifest_of(tmp_path / "second")
    assert second["splits"] == manifest_of(first)["splits"]
    assert second["tokenizer"]["fingerprint"] == manifest_of(first)["tokenizer"]["fingerprint"]


@pytest.mark.gate
def test_real_web_pages_come_back_from_their_gpt2_tokens(tmp_path, run_script, monkeypatch):
    dataset = SHARED_DATA / "corpus" / "fineweb_sample.jsonl.zst"
    cache = SHARED_DATA / "tiktoken_cache"
    if not (dataset.is_file() and cache.is_dir()):
        pytest.skip(f"needs {dataset} and {cache}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    flags = ("--tokenizer", "gpt2", "--limit_documents", "200", "--val_fraction", "0.1")
    out = tmp_path / "out"
    assert run_script(out, dataset, *flags, "--shard_tokens", "50000", "--num_workers", "2") == (
        0,
        [],
    )

    documents = [text for _, text in itertools.islice(read_documents(dataset), 200)]
    decode = tiktoken.get_encoding("gpt2").decode
    train, val = documents_of(out, "train", decode), documents_of(out, "val", decode)
    assert set(train).isdisjoint(val)
    assert sorted(train + val) == sorted(documents)
    assert manifest_of(out)["vocab_size"] == 50257
    assert manifest_of(out)["end_of_text_id"] == 50256


def test_sources_keep_to_their_weights_until_one_ends(configure, tmp_path, capsys):
    many = write_jsonl(tmp_path / "many.jsonl", [f"many {text}" for text in fables(3000)])
    few = write_jsonl(tmp_path / "few.jsonl", [f"few {text}" for text in fables(300)])
    manifest = prepare(
        configure(dataset=f"{many}:0.75,{few}:0.25", val_fraction=0, shuffle_buffer_tokens=500)
    )
    texts = documents_of(tmp_path / "out", "train")
    share = sum(len(t) for t in texts if t.startswith("few")) / sum(map(len, texts))
    assert share == pytest.approx(0.25, abs=0.01)
    assert sum(t.startswith("few") for t in texts) > 290
    assert [source["weight"] for source in manifest.sources] == [0.75, 0.25]
    assert capsys.readouterr().err.splitlines() == [
        f"{few}: used up, which ends the mixture; the rest of the other sources is not read"
    ]


def test_sources_keep_to_their_weights_where_max_tokens_ends_them(configure, tmp_path):
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [name * 300] * 200) for name in "ab"]
    options = {"tokenizer": "bytes", "val_fraction": 0, "shuffle_buffer_tokens": 50_000_000}
    prepare(configure(dataset=f"{paths[0]}:0.3,{paths[1]}:0.7", max_tokens=30_000, **options))
    texts = documents_of(tmp_path / "out", "train")
    assert len(texts) == 100
    assert sum(text[0] == "a" for text in texts) == pytest.approx(30, abs=1)


@pytest.mark.parametrize("name", ["tokenizer.json", "merges.txt", "vocab.json"])
def test_data_of_a_tokenizer_that_changed_are_not_taken_for_made_before(configure, tmp_path, name):
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    tokenizer = train_tokenizer(fables(30), 300)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if name == "tokenizer.json":  # which is named itself
        tokenizer.backend_tokenizer.save(str(directory / name))
    else:
        (directory / "config.json").write_text('{"model_type": "gpt2"}')
        (directory / "vocab.json").write_text(json.dumps(state["vocab"]))
        (directory / "merges.txt").write_text("\n".join(map(" ".join, state["merges"])))
    named = directory / name if name == "tokenizer.json" else directory
    prepare(configure(tokenizer=str(named)))
    prepare(configure(tokenizer=str(named)))
    (directory / name).write_text((directory / name).read_text())
    with pytest.raises(OutputError, match="their input has changed since"):
        prepare(configure(tokenizer=str(named)))


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_a_folder_named_like_a_known_tokenizer_is_not_its_input(
    configure, tmp_path, monkeypatch, name
):
    (tmp_path / name).mkdir()
    (tmp_path / name / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert list(tokenizer_files(configure(tokenizer=name))) == []
    assert list(tokenizer_files(configure(tokenizer=f"./{name}"))) == [Path(name, "tokenizer.json")]


@pytest.mark.parametrize("weights", [("", ""), (":0.5", ":0.5")])
def test_sources_that_are_read_in_full_or_as_far_as_asked_say_nothing(
    configure, tmp_path, capsys, weights
):
    paths = [write_jsonl(tmp_path / f"{n}.jsonl", fables(n)) for n in (300, 30)]
    dataset = ",".join(f"{path}{weight}" for path, weight in zip(paths, weights, strict=True))
    limit = 100 if any(weights) else None  # of tokens, long before the end
    prepare(configure(dataset=dataset, val_fraction=0, max_tokens=limit))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("order", [("many", "none"), ("none", "many")])
def test_a_source_that_gives_nothing_has_no_share_of_a_mixture(configure, tmp_path, order):
    paths = {"many": write_jsonl(tmp_path / "many.jsonl", fables(300))}
    paths["none"] = write_jsonl(tmp_path / "none.jsonl", ["", "too short"])
    dataset = ",".join(f"{paths[name]}:0.5" for name in order)
    with pytest.raises(SourceError, match="none.jsonl: expected documents for its share of --data"):
        prepare(configure(dataset=dataset, val_fraction=0, min_characters=20))


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    configure, tmp_path, monkeypatch
):
    class Usage:
        free = 1000

    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(
        OSError, match=r"expected about \S+ GB of free space.* found 1e-06; .*ignore"
    ):
        prepare(configure())
    Usage.free = 2 * estimated_bytes(open_sources(configure().dataset))
    with pytest.raises(OSError, match="free space"):  # a byte makes a token of two bytes
        prepare(configure(tokenizer="bytes"))
    Usage.free = 1000
    assert list(tmp_path.iterdir()) == []
    prepare(configure(ignore_free_space=True))


GOOD = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in fables(30))


@pytest.mark.parametrize("tokenizer", ["trained", "given"])
@pytest.mark.parametrize(
    ("name", "content", "flags", "expected"),
    [
        ("a.jsonl", None, (), "{path}: expected a file or glob, found nothing there"),
        ("a.pdf", GOOD, (), "{path}: expected a file ending in .txt, .jsonl, .csv, .parquet"),
        ("a.jsonl", b"", (), "{path}: expected documents, found none"),
        ("a.txt", b" \n", (), "{path}: expected documents, found none"),
        ("a.jsonl", GOOD + b'{"text": "\xe9"}\n', (), "{path}:31: expected UTF-8, found byte 0xe9"),
        ("a.jsonl", GOOD + b"{oops\n", (), "{path}:31: expected one JSON object per line"),
        ("a.jsonl.gz", GOOD, (), "{path}: cannot be read: Not a gzipped file"),
        ("a.parquet", GOOD, (), "{path}: expected a parquet file, found "),
        (
            "a.jsonl",
            GOOD,
            ("--text_column", "story"),
            "{path}:1: expected text in column 'story', found columns ['text']; see --text_column",
        ),
        (
            "a.jsonl",
            GOOD,
            ("--val_fraction", "1e-9"),
            "{path}: expected more text than a window of 64 characters and a tail of "
            "--val_fraction 1e-09, found ",
        ),
        (
            "a.jsonl",
            GOOD,
            ("--val_fraction", "0.999999999"),
            "{path}: expected more text than a window of 64 characters and a tail of "
            "--val_fraction 0.999999999, found ",
        ),
    ],
    ids=[
        *("missing", "unknown kind", "empty", "blank", "not UTF-8", "not JSON", "not gzip"),
        *("not parquet", "no column", "empty val", "empty train"),
    ],
)
def test_bad_data_ends_in_one_line_and_leaves_nothing(
    tmp_path, run_script, saved_tokenizer, tokenizer, name, content, flags, expected
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    before = names_in(tmp_path)
    tokenizer = "bpe:300" if tokenizer == "trained" else saved_tokenizer
    defaults = ("--tokenizer", tokenizer, "--val_fraction", "0.3")
    code, (error,) = run_script(tmp_path / "out", path, *defaults, *flags)
    assert code == 1
    assert error.startswith("prepare_data.py: error: " + expected.format(path=path))
    assert names_in(tmp_path) == before


def test_an_unknown_tokenizer_ends_in_one_line_and_leaves_nothing(tmp_path, run_script):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(30))
    code, (error,) = run_script(tmp_path / "out", dataset, "--tokenizer", tmp_path / "none")
    assert code == 1
    assert error.startswith(
        f"prepare_data.py: error: {tmp_path / 'none'}: expected gpt2, bytes, bpe:N, or a dir"
    )
    assert names_in(tmp_path) == ["fables.jsonl"]


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path, prepared, run_script, monkeypatch
):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(100))
    write_shards = preparation.write_shards

    def write_while_it_grows(*arguments):
        write_shards(*arguments)
        with dataset.open("a") as file:
            file.write(json.dumps({"text": "the end of a copy"}) + "\n")

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_shards", write_while_it_grows)
        limits = ("--max_tokens", "1000000", "--limit_documents", "1000")  # not reached
        code, (error,) = run_script(tmp_path / "out", dataset, "--tokenizer", "bpe:300", *limits)
        assert code == 1 and "found that it has changed meanwhile" in error
        for number, limit in enumerate((("--max_tokens", "100"), ("--limit_documents", "5"))):
            arguments = (dataset, "--tokenizer", "bpe:300", "--val_fraction", "0", *limit)
            assert run_script(tmp_path / f"cut-{number}", *arguments)[0] == 0
    moved = tmp_path / "moved"
    with monkeypatch.context() as patch:
        patch.setattr(
            preparation, "write_shards", lambda *rest: write_shards(*rest) or dataset.rename(moved)
        )
        code, (error,) = run_script(
            tmp_path / "out", dataset, "--tokenizer", "bpe:300", "--overwrite"
        )
    assert code == 1 and "found that it has gone; put it back, or add --overwrite" in error
    moved.rename(dataset)
    out = prepared(tmp_path / "out", dataset, "--overwrite")
    assert sum(split["n_documents"] for split in manifest_of(out)["splits"].values()) == 103
