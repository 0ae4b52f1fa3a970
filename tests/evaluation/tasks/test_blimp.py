"""BLiMP: places of the pairs, their order, ties, and accuracies by phenomenon."""

import io
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import evaluation as tiny
from support.paths import SHARED_DATA
from support.servers.fake_hub import serve

from modeling_gpt2scratch.evaluation.results.published_numbers import read_published
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.blimp import BlimpTask
from modeling_gpt2scratch.evaluation.tasks.samples import Selection

# As in the official files; two paradigms of argument structure have a name of their own there.
TERMS = {
    "adjunct_island": "island_effects",
    "animate_subject_passive": "s-selection",
    "causative": "argument_structure",
}
OFFICIAL = SHARED_DATA / "blimp"


def rows_of(paradigm, n_rows):
    return [
        {"sentence_good": f"The cat sat {i}.", "sentence_bad": f"The {paradigm} cat {i}."}
        | {"UID": paradigm, "linguistics_term": TERMS[paradigm], "pairID": str(i)}
        for i in range(n_rows)
    ]


FILES = {name: rows_of(name, n_rows) for name, n_rows in zip(TERMS, (3, 1, 2), strict=True)}


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def unpacked(tmp_path):
    """The directory of the files, two levels below the one that is searched."""
    directory = tmp_path / "unpacked" / "data"
    directory.mkdir(parents=True)
    for name, rows in FILES.items():
        (directory / f"{name}.jsonl").write_text(json_lines(rows))
    return directory


@pytest.fixture
def archive(tmp_path):
    """The official archive, the files in another order."""
    (tmp_path / "packed").mkdir()
    path = tmp_path / "packed" / "blimp.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("README.md", "BLiMP")
        for name in sorted(FILES, reverse=True):
            file.writestr(f"data/{name}.jsonl", json_lines(FILES[name]))
    return path


def test_the_paradigms_come_in_turn(unpacked):
    task = BlimpTask.load(Selection(data_dir=str(unpacked.parent)))
    assert task.source == str(unpacked)
    assert [pair.paradigm[:3] for pair in task.questions] == ["adj", "ani", "cau"] + [
        *("adj", "cau", "adj")
    ]
    first, second, *_ = task.questions
    assert first.answers == ("The cat sat 0.", "The adjunct_island cat 0.")
    assert [first.phenomenon, second.phenomenon] == ["island_effects", "argument_structure"]
    limited = BlimpTask.load(Selection(data_dir=str(unpacked), limit=4))
    assert limited.questions == task.questions[:4]
    assert limited.data_status == "4 of 67000 samples, unchecked"


def test_files_archive_and_data_set_of_the_same_pairs_have_one_checksum(
    unpacked, archive, tmp_path, monkeypatch
):
    expected = BlimpTask.load(Selection(place=str(unpacked))).sha256
    assert BlimpTask.load(Selection(data_dir=str(archive.parent))).sha256 == expected
    assert BlimpTask.load(Selection(place=str(archive))).sha256 == expected
    (tmp_path / "all.jsonl").write_text("".join(map(json_lines, FILES.values())))
    assert BlimpTask.load(Selection(place=str(tmp_path / "all.jsonl"))).sha256 == expected

    files = {}
    for name, rows in FILES.items():
        content = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), content)
        files[f"{name}/train/0000.parquet"] = content.getvalue()
    branches = {"refs/convert/parquet": files}
    card = {"README.md": b"A data set.\n"}
    with serve(BlimpTask.data.hub_name, card, revisions=branches) as hub:
        hub.use_here(monkeypatch, tmp_path)
        assert BlimpTask.load(Selection()).sha256 == expected


@pytest.fixture(scope="module")
def scorer():
    tokenizer = tiny.tiny_tokenizer()
    model = tiny.tiny_gpt2(tokenizer, n_positions=64)
    return CausalScorer(model, tokenizer, batch_tokens=512)


def test_a_pair_is_right_if_the_whole_sentence_is_likelier_and_ties_are_wrong(scorer):
    def row(good, bad, paradigm="causative"):
        row = {"sentence_good": good, "sentence_bad": bad, "UID": paradigm}
        return row | {"linguistics_term": TERMS[paradigm]}

    random = np.random.default_rng(0)
    words = ("the", "cat", "sat", "on", "mat", "dog", "end.")
    texts = [" ".join(random.choice(words, size=n)) for n in random.integers(2, 9, size=24)]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    rows = [row(*pair, paradigm=list(TERMS)[i % 3]) for i, pair in enumerate(pairs)]
    expected = []
    for pair in pairs:
        ids = [[scorer.tokenizer.bos_token_id, *scorer.tokenizer(f" {text}").input_ids]
               for text in pair]  # fmt: skip
        nats = [float(tiny.naive_nats(scorer.model, own).sum()) for own in ids]
        expected.append(float(nats[0] < nats[1]))
    rows.append(row("the cat sat", "the cat sat"))
    task = BlimpTask([BlimpTask.question("row", own) for own in rows])
    result = task.evaluate(scorer)
    assert 0 < np.mean(expected) < 1
    assert result.samples["acc"].tolist() == [*expected, 0.0]
    assert result.estimates["acc"].value == np.mean([*expected, 0.0])
    assert result.details["n_ties"] == 1
    assert result.details["acc_of_island_effects"] == np.mean(expected[::3])
    passive, causative = expected[1::3], [*expected[2::3], 0.0]
    details = result.details
    assert details["acc_of_argument_structure"] == pytest.approx(np.mean([*passive, *causative]))
    assert details["acc_of_argument_structure/causative"] == np.mean(causative)
    assert details["acc_of_argument_structure/animate_subject_passive"] == np.mean(passive)


def test_a_model_that_knows_nothing_has_no_pair_right():
    tokenizer = tiny.tiny_tokenizer()
    model = tiny.tiny_gpt2(tokenizer, n_positions=64)
    with torch.no_grad():
        model.transformer.wte.weight.zero_()  # and so all logits
    pair = {"sentence_good": "the cat sat", "sentence_bad": "the mat sat"}
    pair |= {"UID": "causative", "linguistics_term": "argument_structure"}
    task = BlimpTask([BlimpTask.question("row", pair)] * 5)
    result = task.evaluate(CausalScorer(model, tokenizer, batch_tokens=512))
    assert result.estimates["acc"].value == 0.0 and result.details["n_ties"] == 5


def test_what_holds_no_pairs_is_named(unpacked, archive, tmp_path):
    def problem(place):
        with pytest.raises((ValueError, OSError)) as caught:
            BlimpTask.load(Selection(place=str(place)))
        return str(caught.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert problem(empty) == f"{empty}: expected blimp.zip in it, found none"
    path = unpacked / "causative.jsonl"
    path.write_text(json_lines(FILES["causative"][:1]) + '{"sentence_good": "a"}\n')
    assert problem(unpacked).startswith(f"{path}, line 2: expected an object with a str `sente")
    for blank in ("", " "):
        path.write_text(json_lines([FILES["causative"][0] | {"sentence_bad": blank}]))
        expected = f"{path}, line 1: expected two sentences with text, found"
        assert problem(unpacked).startswith(expected)
    archive.write_bytes(archive.read_bytes()[:-30])
    assert problem(archive).startswith(f"{archive}: expected a zip archive: ")
    archive.unlink()
    assert problem(archive) == f"expected a file {archive}, found none"


@pytest.mark.slow
@pytest.mark.skipif(not OFFICIAL.exists(), reason="needs blimp in shared/data")
def test_the_official_archive_has_67_paradigms_and_the_published_accuracies():
    task = BlimpTask.load(Selection(place=str(OFFICIAL)))
    assert task.data_status == "official"
    pairs = task.questions
    assert len({pair.paradigm for pair in pairs[:67]}) == 67
    rows = [json.loads(line) for line in (OFFICIAL / "published_by_paradigm.jsonl").open()]
    terms = {row["UID"]: row["linguistics_term"] for row in rows}
    assert {pair.paradigm: pair.phenomenon for pair in pairs} == {
        name: term for name, term in terms.items() if name != "overall"
    }
    assert len({pair.phenomenon for pair in pairs}) == 12
    columns = {"5-gram": "ngram", "LSTM": "lstm", "Transformer-XL": "txl", "GPT-2 large": "gpt2"}
    (overall,) = [row for row in rows if row["linguistics_term"] == "overall"]
    numbers = {n.model: n.value for n in read_published()[0] if n.task == "blimp"}
    assert numbers == {name: round(overall[key], 3) for name, key in columns.items()}
