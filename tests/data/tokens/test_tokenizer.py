"""Tokenizers give the ids that they should, here and in a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.odd_texts import CORPUS, END_OF_TEXT, TRICKY, VOCAB_SIZE, encoded, real_text
from support.paths import SHARED_DATA
from support.servers import fake_hub
from tokenizers import Tokenizer, models, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from modeling_gpt2scratch.data.tokens.names import (
    KNOWN_NAMES_WITH_TEXT,
    TokenizerError,
    trained_vocab_size,
)
from modeling_gpt2scratch.data.tokens.tokenizer import (
    fingerprint,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
    vocabulary_of,
)

# GPT-2's own


@pytest.mark.parametrize("text", TRICKY)
def test_gpt2_gives_the_ids_of_tiktoken(gpt2, openai, text):
    ids = gpt2(text)["input_ids"]
    assert ids == openai.encode(text)
    assert gpt2.decode(ids) == text


def test_gpt2_gives_the_ids_of_tiktoken_on_real_text(gpt2, openai):
    text = real_text()
    assert gpt2(text)["input_ids"] == openai.encode_ordinary(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text())
@example(text="".join(map(chr, range(0x250))))
def test_gpt2_gives_the_ids_of_tiktoken_on_any_text(gpt2, openai, text):
    ids = gpt2(text, split_special_tokens=True)["input_ids"]
    assert ids == openai.encode_ordinary(text)
    assert gpt2.decode(ids) == text


def test_gpt2_has_50257_entries_and_the_last_is_end_of_text(gpt2):
    assert len(gpt2) == 50257
    assert (gpt2.eos_token, gpt2.eos_token_id) == (END_OF_TEXT, 50256)
    assert gpt2(f"a{END_OF_TEXT}b")["input_ids"] == [64, 50256, 65]
    assert gpt2.model_max_length == 1024


def test_gpt2_without_its_files_says_where_they_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    # A proxy where nobody listens stands for a machine without a network.
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    with pytest.raises(TokenizerError, match="set TIKTOKEN_CACHE_DIR to a copy") as caught:
        load_tokenizer("gpt2")
    assert len(str(caught.value).splitlines()) == 1


def test_gpt2_with_damaged_files_is_refused(tmp_path, monkeypatch, gpt2_files):
    for file in (SHARED_DATA / "tiktoken_cache").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:-1])
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    with pytest.raises(TokenizerError, match="gpt2: expected tiktoken's vocab.bpe"):
        load_tokenizer("gpt2")


# A tokenizer that is trained


@pytest.mark.parametrize("vocab_size", [257, 258, VOCAB_SIZE])
def test_a_trained_tokenizer_has_as_many_entries_as_asked_and_the_last_is_end_of_text(vocab_size):
    tokenizer = train_tokenizer(CORPUS, vocab_size)
    assert len(tokenizer) == vocab_size
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == (END_OF_TEXT, vocab_size - 1)
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))


def test_little_text_gives_fewer_entries_than_asked():
    # 256 bytes, "a" + "b", and the end of text.
    tokenizer = train_tokenizer(["ab ab"], 1000)
    assert len(tokenizer) < 1000
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert len(tokenizer("ab")["input_ids"]) == 1


def test_a_tokenizer_trained_on_nothing_knows_the_bytes():
    tokenizer = train_tokenizer([], 1000)
    assert len(tokenizer) == 257
    assert len(tokenizer("狐")["input_ids"]) == 3


def test_training_joins_what_stands_together_often(trained):
    assert [trained.decode([token]) for token in trained("the cat")["input_ids"]] == [
        "the",
        " cat",
    ]


def test_training_takes_a_text_without_spaces_in_pieces():
    n_entries = 257 + 9  # x twice, four times and so on, up to 512 times
    assert len(train_tokenizer(["x" * 400_000], n_entries)) == n_entries


def test_training_is_the_same_every_time_and_different_for_other_text(trained):
    assert fingerprint(train_tokenizer(CORPUS, VOCAB_SIZE)) == fingerprint(trained)
    assert fingerprint(train_tokenizer(CORPUS[:1], VOCAB_SIZE)) != fingerprint(trained)
    assert fingerprint(train_tokenizer(CORPUS, VOCAB_SIZE - 1)) != fingerprint(trained)


@settings(max_examples=200, deadline=None)
@given(text=st.text())
@example(text=END_OF_TEXT)
@example(text="".join(TRICKY))
def test_a_trained_tokenizer_gives_back_any_text(trained, text):
    (ids,) = encoded("bpe:290", trained, [text])
    assert trained.decode(ids[1:]) == text


@pytest.mark.slow
def test_a_saved_tokenizer_is_the_same_in_a_fresh_process(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    program = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "from modeling_gpt2scratch.data.tokens.tokenizer import fingerprint, train_tokenizer\n"
        "directory, corpus, vocab_size = json.load(sys.stdin)\n"
        "loaded = AutoTokenizer.from_pretrained(directory)\n"
        "ids = loaded(corpus[0])['input_ids']\n"
        "retrained = fingerprint(train_tokenizer(corpus, vocab_size))\n"
        "print(json.dumps([fingerprint(loaded), retrained, loaded.eos_token_id, ids]))\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([str(tmp_path), CORPUS, VOCAB_SIZE]),
        env=os.environ | {"RAYON_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, retrained, end_of_text_id, ids = json.loads(finished.stdout)
    assert loaded == retrained == fingerprint(trained)
    assert end_of_text_id == VOCAB_SIZE - 1
    assert ids == trained(CORPUS[0])["input_ids"]


# Tokenizers from elsewhere


def test_a_tokenizer_with_another_kind_of_model_has_a_fingerprint(tmp_path):
    model = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    model.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint(load_tokenizer(str(tmp_path))) == fingerprint(tokenizer)


def test_a_file_of_the_tokenizers_library_alone_is_a_tokenizer(trained, tmp_path):
    alone = str(written_alone(tmp_path, json.loads(trained.backend_tokenizer.to_str())))
    tokenizer = load_tokenizer(alone)
    assert tokenizer.eos_token == END_OF_TEXT
    save_tokenizer(tokenizer, tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    assert vocabulary_of(again) == vocabulary_of(tokenizer) == vocabulary_of(load_tokenizer(alone))
    assert again("the cat").input_ids == trained("the cat").input_ids


CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "GPTNeoXTokenizerFast", "Qwen2Tokenizer", None)


def with_own_rules(directory: Path, trained, class_name: str | None) -> Path:
    """A tokenizer that makes letters small and parts digits, as one of a class that does not."""
    content = json.loads(trained.backend_tokenizer.to_str())
    steps = [{"type": "NFKC"}, {"type": "Lowercase"}]
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    digits = {"type": "Digits", "individual_digits": True}
    steps = [digits, content["pre_tokenizer"]]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    place = written_alone(directory, content)
    (place / "config.json").write_text('{"model_type": "gpt2"}')
    if class_name:
        settings = {"tokenizer_class": class_name, "eos_token": END_OF_TEXT, "model_max_length": 64}
        (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return place


@pytest.mark.parametrize("class_name", CLASSES)
def test_a_tokenizer_keeps_the_rules_in_its_file(trained, tmp_path, class_name):
    place = with_own_rules(tmp_path, trained, class_name)
    own = Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer = load_tokenizer(str(place))
    save_tokenizer(tokenizer, tmp_path / "saved")
    text = "The CAT sat １２ 345"
    for found in (tokenizer, load_tokenizer(str(tmp_path / "saved"))):
        assert found(text).input_ids == own.encode(text).ids != trained(text).input_ids
        assert vocabulary_of(found) == vocabulary_of(trained)
        assert found.model_max_length == (64 if class_name else found.model_max_length)


def test_a_tokenizer_of_the_hub_keeps_the_rules_in_its_file(trained, tmp_path, monkeypatch):
    place = with_own_rules(tmp_path, trained, "GPT2Tokenizer")
    own = Tokenizer.from_file(str(place / "tokenizer.json"))
    files = {path.name: path.read_bytes() for path in place.iterdir()}
    with fake_hub.serve("aesop/tokenizer", files, kind="models") as hub:
        hub.use_here(monkeypatch, tmp_path / "home")
        tokenizer = load_tokenizer("aesop/tokenizer")
    assert tokenizer("The CAT 12").input_ids == own.encode("The CAT 12").ids
    assert vocabulary_of(tokenizer) == vocabulary_of(trained)


def test_tokenizers_whose_rules_are_those_of_their_class_stay_of_it(trained, tmp_path, gpt2):
    for name, tokenizer in (("gpt2", gpt2), ("bytes", load_tokenizer("bytes")), ("bpe", trained)):
        save_tokenizer(tokenizer, tmp_path / name)
        loaded = load_tokenizer(str(tmp_path / name))
        assert type(loaded) is type(tokenizer)
        assert loaded.special_tokens_map == tokenizer.special_tokens_map
        assert vocabulary_of(loaded) == vocabulary_of(tokenizer)
        assert loaded.clean_up_tokenization_spaces == tokenizer.clean_up_tokenization_spaces
        assert loaded("A cat, 12").input_ids == tokenizer("A cat, 12").input_ids
        saved = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert saved["tokenizer_class"] == "GPT2Tokenizer"


def test_gpt2_as_openai_published_it_has_its_special_tokens(trained, tmp_path):
    content = json.loads(trained.backend_tokenizer.to_str())
    content["model"] |= {"unk_token": ""}  # none, as transformers spells it otherwise
    content["decoder"] |= {"add_prefix_space": False, "trim_offsets": False}
    content["pre_tokenizer"] |= {"trim_offsets": False}
    place = written_alone(tmp_path, content)
    (place / "config.json").write_text('{"model_type": "gpt2"}')
    (place / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    tokenizer = load_tokenizer(str(place))
    assert tokenizer.special_tokens_map == trained.special_tokens_map
    assert type(tokenizer) is type(trained)


def test_a_slow_tokenizer_is_refused_though_it_has_an_end_of_text(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    message = "expected a fast tokenizer, found the slow ByT5Tokenizer; name one that has a tok"
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(str(tmp_path))


def test_the_file_of_a_tokenizer_can_be_named_itself(trained, tmp_path):
    content = json.loads(trained.backend_tokenizer.to_str())
    path = written_alone(tmp_path, content) / "tokenizer.json"
    assert vocabulary_of(load_tokenizer(str(path))) == vocabulary_of(trained)
    content["model"]["vocab"]["a"] = 2**31
    path.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=rf"{path}: expected ids below 4,.*, found {2**31}"):
        load_tokenizer(str(path))
    path.write_text("{")
    with pytest.raises(TokenizerError, match=f"{path}: expected a JSON object, found "):
        load_tokenizer(str(path))


def test_a_tokenizer_without_an_end_of_text_is_refused(trained, tmp_path):
    # There its text is an entry like any other.
    content = json.loads(trained.backend_tokenizer.to_str()) | {"added_tokens": []}
    with pytest.raises(TokenizerError, match="expected an end-of-sequence token or the special"):
        load_tokenizer(str(written_alone(tmp_path, content)))


def written_alone(directory: Path, content: dict) -> Path:
    """A directory with nothing but a `tokenizer.json`."""
    place = directory / "alone"
    place.mkdir()
    (place / "tokenizer.json").write_text(json.dumps(content))
    return place


def test_ids_that_would_fill_the_memory_are_refused_in_one_line(trained, tmp_path):
    # Its 21 KB took 8.6 GB and two minutes: the library writes a table up to the highest id.
    trained.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"][next(iter(content["model"]["vocab"]))] = 2**31
    path.write_text(json.dumps(content))
    message = rf"{tmp_path}: expected ids below 4,194,304, found {2**31} in tokenizer\.json; "
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("gpt-2", "; did you mean gpt2?"),
        ("GPT2", "; did you mean gpt2?"),
        ("byte", "; did you mean bytes?"),
        ("BPE:500", "; did you mean bpe:N?"),
        ("cl100k_base", ""),
        ("gpt2-medium", ""),
    ],
)
def test_the_name_that_was_perhaps_meant_is_said(monkeypatch, name, end):
    def nothing(*arguments, **options):
        raise OSError("not here")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", nothing)
    monkeypatch.setattr("modeling_gpt2scratch.common.hub_requests._is_reachable", lambda: True)
    with pytest.raises(TokenizerError) as error:
        load_tokenizer(name, known=KNOWN_NAMES_WITH_TEXT)
    assert str(error.value).endswith(f"found OSError: not here{end}")


def test_a_tokenizer_that_parts_words_at_random_is_refused(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["dropout"] = 0.3
    path.write_text(json.dumps(content))
    for name in (tmp_path, path):
        with pytest.raises(TokenizerError, match=r"same ids each time, found dropout 0\.3; set it"):
            load_tokenizer(str(name))
    path.write_text(json.dumps(content | {"model": content["model"] | {"dropout": 0.0}}))
    assert load_tokenizer(str(tmp_path))("text").input_ids == trained("text").input_ids


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty", None), ("broken", "{"), ("hollow", "{}"), ("other", '{"added_tokens": []}')],
)
def test_a_directory_without_a_tokenizer_is_refused_by_name(tmp_path, name, content):
    directory = tmp_path / name
    directory.mkdir()
    if content is not None:
        (directory / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(str(directory))
    message = str(caught.value)
    expected = {
        "empty": f"{directory}: expected gpt2, bytes, or a directory or Hub repository",
        "broken": f"{directory}/tokenizer.json: expected a JSON object, found ",
    }
    other = f"{directory}/tokenizer.json: expected a tokenizer, found "
    assert message.startswith(expected.get(name, other))
    assert len(message.splitlines()) == 1


def test_a_directory_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(str(tmp_path / "none"))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'none'}: expected gpt2, bytes, or a directory")
    assert message.endswith("found no directory of that name; look for a wrong letter")
    assert len(message.splitlines()) == 1


# Names


@pytest.mark.parametrize(
    ("name", "size"),
    [("bpe:257", 257), ("bpe:4096", 4096), ("gpt2", None), ("someone/bpe:10", None), ("", None)],
)
def test_only_the_name_of_a_trained_tokenizer_holds_its_size(name, size):
    assert trained_vocab_size(name) == size


@pytest.mark.parametrize(
    "name", ["bpe:abc", "bpe:10", "bpe:256", "bpe:", "bpe:-300", "bpe:3e3", "bpe: 300", "bpe:²⁵⁷"]
)
def test_a_size_that_does_not_hold_the_bytes_is_refused(name):
    with pytest.raises(TokenizerError) as caught:
        trained_vocab_size(name)
    size = name.removeprefix("bpe:")
    assert str(caught.value) == f"{name}: expected bpe:N with N from 257 to 65536, found {size!r}"


def test_a_size_that_shards_cannot_hold_is_refused():
    # Ids are written as uint16, and training so many entries would take its time first.
    assert trained_vocab_size("bpe:65536") == 65536
    with pytest.raises(TokenizerError, match="found '65537'"):
        trained_vocab_size("bpe:65537")


def test_several_chat_templates_are_saved_in_files_alone(tmp_path):
    tokenizer = train_tokenizer(["text"], 257)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    save_tokenizer(tokenizer, tmp_path / "saved")
    assert all(path.is_file() for path in (tmp_path / "saved").iterdir())
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved", trust_remote_code=False)
    assert loaded.chat_template == tokenizer.chat_template
