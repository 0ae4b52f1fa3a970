"""The corpora of the GPT-2 paper whose protocols are unpublished."""

import io
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import evaluation as tiny
from support.servers.fake_hub import serve

from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks import paper_corpora
from modeling_gpt2scratch.evaluation.tasks.paper_corpora import (
    TASKS,
    count_words,
    cut_parts,
    detokenize,
)
from modeling_gpt2scratch.evaluation.tasks.samples import Selection

PTB = " mr. <unk> is n't the company 's head \n he sold $ N million of it \n" * 150


@pytest.fixture(scope="module")
def scorer():
    tokenizer = tiny.tiny_tokenizer()
    return CausalScorer(tiny.tiny_gpt2(tokenizer), tokenizer, batch_tokens=512)


def write(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    return str(path)


def test_every_row_of_the_paper_says_that_its_protocol_is_unpublished():
    assert list(TASKS) == [
        *("wikitext2-tokens", "wikitext103-tokens", "ptb", "1bw", "enwik8", "text8"),
    ]
    assert all("unpublished" in task.protocol for task in TASKS.values())


def test_words_are_attached_as_in_print():
    text = " he is n't the firm 's head ( he sold $ N million ) , no . \n they 'll rise N % \n"
    assert detokenize(text) == (
        "he isn't the firm's head (he sold $N million), no.\nthey'll rise N%\n"
    )


def test_a_line_end_counts_as_a_word():
    assert count_words(" the cat \n sat \n") == 5


def test_a_stream_is_scored_in_a_hundred_parts_that_lose_nothing():
    pieces = [f"{i} " for i in range(1234)]
    parts = cut_parts(pieces)
    assert len(parts) == 100 and "".join(parts) == "".join(pieces)
    assert {len(part.split()) for part in parts} == {12, 13}
    assert cut_parts(["a ", "b "]) == ["a ", "b "]
    assert cut_parts([]) == []


def test_ptb_is_per_word_and_line_end(tmp_path, scorer):
    task = TASKS["ptb"].load(Selection(place=write(tmp_path, PTB.encode())))
    assert len(task.documents) == 100
    assert sum(document.n_words for document in task.documents) == 150 * (8 + 7 + 2)
    result = TASKS["ptb"](task.documents[:3], task.sha256).evaluate(scorer)
    nats = 0.0
    for document in task.documents[:3]:
        ids = [0, *scorer.tokenizer(document.text)["input_ids"]]
        for start in range(0, len(ids) - 1, 32):
            stop = min(start + 32, len(ids) - 1)
            row = ids[max(0, stop - 32) : stop + 1]
            nats += float(tiny.naive_nats(scorer.model, row)[start - stop :].sum())
    n_words = sum(document.n_words for document in task.documents[:3])
    assert result.estimates["word_perplexity"].value == pytest.approx(
        math.exp(nats / n_words), rel=1e-4
    )


@pytest.mark.parametrize("name", ["ptb", "1bw"])
def test_line_ends_of_windows_are_plain_ones(tmp_path, name):
    plain = TASKS[name].load(Selection(place=write(tmp_path, PTB.encode())))
    content = PTB.replace("\n", "\r\n").encode()
    assert TASKS[name].load(Selection(place=write(tmp_path, content))).documents == plain.documents


def test_where_bytes_count_line_ends_of_windows_are_two(tmp_path):
    content = "the cat \u00e9\r\nsat\r\n".encode() * 200
    task = TASKS["enwik8"].load(Selection(place=write(tmp_path, content)))
    assert sum(document.n_bytes for document in task.documents) == len(content)


def test_a_tokenizer_adds_nothing_to_a_document_but_its_beginning(tmp_path):
    tokenizer = tiny.eos_tokenizer()
    scorer = CausalScorer(tiny.tiny_gpt2(tokenizer, n_positions=64), tokenizer, batch_tokens=512)
    for name, metric in (("1bw", "word_perplexity"), ("text8", "bits_per_character")):
        task = TASKS[name].load(Selection(place=write(tmp_path, b"the cat sat\n"), limit=1))
        text = task.documents[0].text
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        nats = tiny.naive_nats(scorer.model, [tokenizer.bos_token_id, *ids]).sum()
        result = task.evaluate(scorer)
        assert result.details["n_target_tokens"] == len(ids)
        assert result.samples[metric].tolist() == pytest.approx([float(nats)], rel=1e-5)


def test_sentences_of_the_billion_words_stand_alone(tmp_path):
    source = write(tmp_path, b"The cat sat .\n\nIt 's a mat .\n")
    task = TASKS["1bw"].load(Selection(place=source))
    assert [(d.text, d.n_words) for d in task.documents] == [
        ("The cat sat.\n", 5),
        ("It's a mat.\n", 6),
    ]


def test_wikitext_tokens_are_pages_with_a_word_for_each_line_end(tmp_path):
    path = tmp_path / "wiki.test.tokens"
    path.write_text(" \n = A = \n \n <unk> sat \n = B = \n \n the mat \n", encoding="utf-8")
    task = TASKS["wikitext2-tokens"].load(Selection(place=str(path)))
    assert [document.text for document in task.documents] == [
        " = A =\n\n<unk> sat ",
        " = B =\n\nthe mat\n",
    ]
    # The blank line before the first page counts as the line end that the last page has too many.
    assert sum(document.n_words for document in task.documents) == 3 + 2 + 3 + 2 + 7


@pytest.mark.parametrize("name", ["wikitext2-tokens", "wikitext103-tokens"])
def test_wikitext_tokens_of_the_hub_are_those_of_the_file(tmp_path, monkeypatch, name):
    text = " \n = A = \n \n <unk> sat \n = = On it = = \n \n = B = \n \n the mat \n \n"
    path = tmp_path / "wiki.test.tokens"
    path.write_text(text, encoding="utf-8")
    # A row for each line, with its line feed; nothing at all for a blank line.
    lines = [line if line.strip() else "" for line in text.splitlines(keepends=True)]
    subset = TASKS[name].data.subset
    content = io.BytesIO()
    pq.write_table(pa.table({"text": lines}), content)
    card = "configs:\n- config_name: {0}\n  data_files:\n  - split: test\n    path: {0}/test-*\n"
    files = {
        "README.md": f"---\n{card.format(subset)}---\n".encode(),
        f"{subset}/test-00000-of-00001.parquet": content.getvalue(),
    }
    with serve("Salesforce/wikitext", files) as hub:
        hub.use_here(monkeypatch, tmp_path)
        of_hub = TASKS[name].load(Selection())
    of_file = TASKS[name].load(Selection(place=str(path)))
    assert len(of_file.documents) == 2
    assert (of_hub.documents, of_hub.sha256) == (of_file.documents, of_file.sha256)


def test_the_end_of_enwik8_is_its_test_set(tmp_path, scorer, monkeypatch):
    monkeypatch.setattr(paper_corpora, "TEST_BYTES", 498)
    content = b"<page>\n" * 100 + "é\n".encode() * 166 + b"\n"
    task = TASKS["enwik8"].load(Selection(place=write(tmp_path, content)))
    # The cut went through a letter, one byte of which is left out.
    assert sum(document.n_bytes for document in task.documents) == 497
    assert set("".join(document.text for document in task.documents)) == {"é", "\n"}
    monkeypatch.setattr(paper_corpora, "TEST_BYTES", 5_000_000)
    text8 = TASKS["text8"].load(Selection(place=write(tmp_path, b"the cat sat on " * 80)))
    assert len(text8.documents) == 100
    assert "".join(document.text for document in text8.documents) == "the cat sat on " * 80
    result = TASKS["text8"](text8.documents[:4], "").evaluate(scorer)
    assert list(result.estimates) == ["bits_per_character"]
    assert result.samples["bits_per_character"].sum() / math.log(2) / sum(
        document.n_bytes for document in text8.documents[:4]
    ) == pytest.approx(result.estimates["bits_per_character"].value)


def test_files_that_no_data_set_holds_come_from_the_data_directory(tmp_path):
    config = Selection(data_dir=str(tmp_path), limit=1)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "ptb.test.txt").write_text(PTB)
    task = TASKS["ptb"].load(config)
    assert len(task.documents) == 1
    assert task.data_status == "not the official file"
    assert [TASKS[name].samples for name in ("ptb", "enwik8", "text8")] == ["parts"] * 3
    (tmp_path / "ptb.test.txt").mkdir()  # which is no file
    (tmp_path / "a" / "ptb.test.txt").mkdir(parents=True)
    assert TASKS["ptb"].load(config) == task
    (tmp_path / "ptb.test.txt").rmdir()
    with pytest.raises(
        ValueError, match=r"expected ptb.test.txt in --data_dir or a file as --ptb_data"
    ):
        TASKS["ptb"].load(Selection())
    with pytest.raises(FileNotFoundError, match=r"expected text8 in it, found none"):
        TASKS["text8"].load(config)
    (tmp_path / "ptb.test.txt").write_text("")
    with pytest.raises(ValueError, match="expected text, found none"):
        TASKS["ptb"].load(config)
