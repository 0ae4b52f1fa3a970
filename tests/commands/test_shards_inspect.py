"""`gpt2scratch shards inspect` describes data directories and token files of every format."""

from support.tiny_corpus import stream
from support.token_directories import DOCUMENTS, write_foreign
from transformers import AutoTokenizer

from modeling_gpt2scratch.data.tokens.tokenizer import byte_tokenizer


def test_inspect_describes_a_directory(ours, run):
    train, val = stream(ours, "train"), stream(ours, "val")
    n_bytes = sum(len(document.encode()) for document in DOCUMENTS)
    code, lines = run("inspect", ours)
    assert code == 0
    assert lines[0] == (
        f"{ours}: uint16 ids of the tokenizer bpe:270, 270 entries, <|endoftext|> is 269"
    )
    assert lines[1].split() == ["split", "tokens", "documents", "bytes/token", "shards"]
    ratio = f"{n_bytes / len(train):.3f}"
    assert lines[3].split() == ["train", str(len(train)), "6", ratio, str(-(-len(train) // 40))]
    assert lines[4].split()[:3] == ["val", str(len(val)), "2"]
    assert lines[5] == "dataset: documents.txt"


def test_inspect_describes_files_of_every_format(tmp_path, run, tokenizer_dir):
    for format in ("npy", "llm.c", "nanogpt"):
        write_foreign(tmp_path, format, [269, 116, 104, 269, 101], "train")
    code, lines = run("inspect", tmp_path)
    assert code == 0
    rows = [line.split()[1:] for line in lines[2:]]
    assert rows == [
        ["npy", "uint16", "5", "269", "unknown"],
        ["llm.c", "uint16", "5", "269", "unknown"],
        ["nanogpt", "uint16", "5", "269", "unknown"],
    ]
    path = tmp_path / "train.bin"
    code, lines = run("inspect", path, "--tokenizer", tokenizer_dir)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    text = tokenizer.decode([269, 116, 104, 269, 101])
    assert text.startswith("<|endoftext|>")
    assert lines[2].split() == [str(path), "nanogpt", "uint16", "5", "269", "2"]
    assert lines[4] == f"{path}: {text!r}"


def test_inspect_knows_the_end_of_text_of_a_shard_of_ours(ours, run):
    code, lines = run("inspect", ours / "val_000000.bin")
    n_documents = stream(ours, "val")[:40].count(269)
    assert lines[2].split()[1:3] == ["gpt2scratch", "uint16"]
    assert lines[2].split()[-1] == str(n_documents)


def test_inspect_describes_what_it_can_and_names_what_it_cannot(tmp_path, run, ours):
    write_foreign(tmp_path / "foreign", "npy", [269], "train")
    (tmp_path / "foreign" / "bad.npy").write_bytes(b"")
    code, lines = run("inspect", tmp_path / "none", tmp_path / "foreign", ours)
    assert code == 1
    assert lines[-2].startswith(
        f"gpt2scratch shards inspect: error: {tmp_path}/none: expected a token"
    )
    assert lines[-1].startswith(
        f"gpt2scratch shards inspect: error: {tmp_path}/foreign/bad.npy: expect"
    )
    assert any("edufineweb_train_000000.npy" in line for line in lines)
    assert any(line.startswith(f"{ours}: uint16 ids") for line in lines)


def test_inspect_refuses_to_read_a_file_with_another_tokenizer(run, ours, tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "bytes")
    path = ours / "val_000000.bin"
    code, lines = run("inspect", path, "--tokenizer", tmp_path / "bytes")
    assert code == 1
    assert lines[-1] == (
        f"gpt2scratch shards inspect: error: {path}: expected a vocabulary of 257 entries as in "
        f"the tokenizer {tmp_path}/bytes, found 270; name its own with --tokenizer"
    )


def test_inspect_goes_on_behind_a_file_with_ids_of_another_tokenizer(run, tokenizer_dir, tmp_path):
    for name, id_ in (("a", 116), ("b", 270), ("c", 117)):
        write_foreign(tmp_path / name, "npy", [269, id_], "train")
    code, lines = run("inspect", *(tmp_path / name for name in "abc"), "--tokenizer", tokenizer_dir)
    assert code == 1
    texts = [line for line in lines if "<|endoftext|>" in line and line.startswith(str(tmp_path))]
    assert [line[len(str(tmp_path)) + 1] for line in texts] == ["a", "c"]
    assert lines[-1].startswith(f"gpt2scratch shards inspect: error: {tmp_path}/b/")
    assert "expected ids from 0 to 269 as in the tokenizer" in lines[-1]
