"""Several sources in one argument: names keep their colons, weights sum to one."""

import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modeling_gpt2scratch.data.sources.mixture import parse_mixture


def parse(text):
    return parse_mixture(text, flag="--data")


def test_weights_follow_the_last_colon_of_each_name():
    assert parse("a:0.7,b:0.3") == [("a", 0.7), ("b", 0.3)]
    assert parse(" a:.7 , b:3e-1 ") == [("a", 0.7), ("b", 0.3)]
    assert parse("a : 0.7, b : 0.3") == [("a", 0.7), ("b", 0.3)]


def test_sources_without_weights_have_none():
    assert parse("a") == [("a", None)]
    assert parse("a,b") == [("a", None), ("b", None)]


@pytest.mark.parametrize(
    "name",
    [
        *("hf://datasets/user/name@main/folder", "https://host:8080/x", "s3://bucket/x"),
        *("http://localhost:8000", r"C:\data", "data/2024:final"),
    ],
)
def test_addresses_keep_their_colons(name):
    assert parse(name) == [(name, None)]
    assert parse(f"{name}:0.25,b:0.75") == [(name, 0.25), ("b", 0.75)]


@given(counts=st.lists(st.integers(2, 1000), min_size=1, max_size=8))
def test_shares_of_any_whole_sum_to_one(counts):
    weights = [count / sum(counts) for count in counts]
    text = ",".join(f"source{number}:{weight!r}" for number, weight in enumerate(weights))
    assert [weight for _, weight in parse(text)] == weights


@given(weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=8))
def test_the_shares_that_a_refusal_proposes_are_accepted(weights):
    assume(abs(math.fsum(weights) - 1) > 0.001)
    with pytest.raises(ValueError) as caught:
        parse(",".join(f"s{number}:{weight}" for number, weight in enumerate(weights)))
    (proposal,) = re.findall(r"write (\S+) for", str(caught.value))
    assert len(parse(proposal)) == len(weights)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:0.7,b:0.2", "that sum to 1, found a sum of 0.9; write a:0.7777778,b:0.2222222 for"),
        ("a:7,b:3", "found a sum of 10; write a:0.7,b:0.3 for the same shares"),
        ("a:0.70001,b:0.3", "found a sum of 1.00001"),
        ("a:0.7,b", "weights for all sources of --data or for none, found none for b"),
        ("a:1,b:0", "weights of at least 0.0001 in --data, found 0 for b"),
        ("a:0.99999,b:0.00001", "found 1e-05 for b; leave it out or give it a share"),
        ("a:1.5,b:-0.5", "weights of at least 0.0001 in --data, found -0.5 for b"),
        ("a:nan,b:0.5", "weights of at least 0.0001 in --data, found nan for a"),
        ("a:inf,b:0.5", "weights of at least 0.0001 in --data, found inf for a"),
        ("a,b,a", "each source of --data once, found a 2 times"),
        ("", "expected --data as NAME or NAME:WEIGHT,NAME:WEIGHT, found ''"),
        ("a,,b", "found 'a,,b'"),
        (":0.5,b:0.5", "found ':0.5,b:0.5'"),
    ],
)
def test_what_is_no_mixture_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_that_is_there_is_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "2026-05-01T12:30", "c:0.5"):
        (tmp_path / name).mkdir()
        assert parse(name) == [(name, None)]


def test_a_path_in_two_spellings_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    for other in ("./a", "a/", str(tmp_path / "a"), "link"):
        for text in (f"a,{other}", f"a:0.5,{other}:0.5"):
            with pytest.raises(ValueError, match="expected each source of --data once, found a 2"):
                parse(text)
