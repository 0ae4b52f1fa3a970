"""Text that a tokenizer would leave out is refused, and what only looks so is not."""

import pytest
from support import evaluation as tiny
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from modeling_gpt2scratch.data.tokens.lost_text import (
    drops_characters,
    refuse_lost_text,
    replaces_characters,
    unknown_token,
)
from modeling_gpt2scratch.data.tokens.tokenizer import byte_tokenizer
from modeling_gpt2scratch.evaluation.scoring.encoding import encode_pairs, encode_texts
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.blimp import BlimpTask, MinimalPair
from modeling_gpt2scratch.evaluation.tasks.cbt import TASKS as CLOZE_TASKS
from modeling_gpt2scratch.evaluation.tasks.cbt_questions import ClozeQuestion
from modeling_gpt2scratch.evaluation.tasks.documents import Document
from modeling_gpt2scratch.evaluation.tasks.lambada import TASKS as LAMBADA_TASKS
from modeling_gpt2scratch.evaluation.tasks.lambada import GenerateTask
from modeling_gpt2scratch.evaluation.tasks.local_text import LocalTextTask
from modeling_gpt2scratch.evaluation.tasks.multiple_choice import Question
from modeling_gpt2scratch.evaluation.tasks.piqa import PiqaTask
from modeling_gpt2scratch.evaluation.tasks.task import result_of
from modeling_gpt2scratch.evaluation.tasks.wikitext import StrideTask, WikitextTask

LETTERS = "abcdefghijklmnopqrstuvwxyz .\n"


def bpe_of(characters, normalizer=None, pre_tokenizer=None, **options):
    """A tokenizer whose tokens are these characters, and the end of a text."""
    vocabulary = {name: index for index, name in enumerate(["<end>", *characters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], **options))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def tasks_of(text):
    """A task of each kind that asks for a text."""
    pair = MinimalPair("", ("the cat", text), 0, paradigm="p", phenomenon="q")
    cloze = ClozeQuestion((text,) * 20, "a XXXXX sat.", ("cat",) * 10, 0)
    return [
        WikitextTask([Document(text, 2, 9)], ""),
        LocalTextTask([Document(text, 2, 9)], ""),
        StrideTask(text, "", None),
        *(kind([f"in the year {text}"]) for kind in LAMBADA_TASKS.values()),
        PiqaTask([Question("which cat", ("a", text), 0)]),
        BlimpTask([pair]),
        *(CLOZE_TASKS[f"cbt-cn{protocol}"]([cloze]) for protocol in ("", ":predecessor")),
    ]


def test_characters_that_make_no_token_are_refused_in_every_task():
    tokenizer = bpe_of(LETTERS)
    scorer = CausalScorer(tiny.tiny_gpt2(tokenizer, n_positions=512), tokenizer, batch_tokens=600)
    for task in tasks_of("a 1990"):
        with pytest.raises(ValueError) as caught:
            task.evaluate(scorer)
        assert str(caught.value) == (
            "expected a tokenizer that knows the text, found that it leaves out '0', '1', '9'; "
            "measure the model on text of its own alphabet"
        )
    for task in tasks_of("a cat"):
        task.evaluate(scorer)


@pytest.mark.parametrize("kind", ["WordLevel", "Unigram", "BPE"])
def test_scored_tokens_that_are_the_unknown_token_are_counted(kind):
    vocabulary = {name: index for index, name in enumerate(["<unk>", "<end>", *LETTERS])}
    if kind == "Unigram":
        model = models.Unigram([(name, -1.0) for name in vocabulary], unk_id=0)
    else:
        options = {} if kind == "WordLevel" else {"merges": []}
        model = getattr(models, kind)(vocabulary, unk_token="<unk>", **options)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    scorer = CausalScorer(tiny.tiny_gpt2(tokenizer, n_positions=512), tokenizer, batch_tokens=600)
    tasks = tasks_of("a 1é90")
    found = [result_of(task, scorer).details.get("n_unknown", 0) for task in tasks]
    assert found[:3] == [4, 4, 4]
    # A text that the model writes is compared as text, and here the candidates of CBT are known.
    without = (GenerateTask, CLOZE_TASKS["cbt-cn"])
    assert [n == 0 for n in found] == [isinstance(task, without) for task in tasks]
    for task in tasks_of("a cat"):
        assert "n_unknown" not in result_of(task, scorer).details


def test_the_end_of_a_text_by_the_name_of_an_unknown_token_is_none():
    assert unknown_token(tiny.tiny_tokenizer()) is None
    assert unknown_token(GPT2TokenizerFast(vocab={"<|endoftext|>": 0, "a": 1}, merges=[])) is None


def test_the_first_of_many_characters_are_named():
    with pytest.raises(ValueError, match="'0', '1', '2', '3', '4' and 5 more; measure"):
        encode_texts(bpe_of(LETTERS), ["0123456789"])


@pytest.mark.parametrize(
    "tokenizer",
    [
        *(tiny.tiny_tokenizer(), byte_tokenizer(), tiny.sentencepiece_tokenizer()),
        bpe_of([*LETTERS, "<unk>"], unk_token="<unk>"),
        bpe_of([*LETTERS, *(f"<0x{byte:02X}>" for byte in range(256))], byte_fallback=True),
    ],
    ids=["bytes with merges", "bytes", "sentencepiece", "unknown token", "byte fallback"],
)
def test_tokenizers_that_drop_nothing_take_any_text(tokenizer):
    refuse_lost_text(tokenizer, ["Ünknown 日本 🙂 \x00 1990\t\n<end>"])
    assert not drops_characters(tokenizer)
    model = tokenizer.backend_tokenizer.model
    assert replaces_characters(tokenizer) == (
        model.unk_token is not None and not model.byte_fallback
    )


@pytest.mark.parametrize("text", ["A Cat", "a câfé", "<end>a cat", "a <mark> cat"])
def test_what_a_normalizer_takes_away_and_names_of_tokens_are_no_loss(text):
    folded = [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    tokenizer = bpe_of(LETTERS, normalizers.Sequence(folded))
    tokenizer.add_tokens(["<mark>"])
    refuse_lost_text(tokenizer, [text])
    assert list(encode_pairs(tokenizer, [(text, " sat")]))


def test_the_name_of_a_special_token_is_text_where_it_is_spelled():
    with pytest.raises(ValueError, match="leaves out '<', '>'"):
        refuse_lost_text(bpe_of(LETTERS), ["<end>a cat"], split_special_tokens=True)


def test_spaces_that_part_words_and_ends_of_words_are_no_loss():
    parts = pre_tokenizers.WhitespaceSplit()
    tokenizer = bpe_of(["a", "b</w>"], None, parts, end_of_word_suffix="</w>")
    refuse_lost_text(tokenizer, ["ab ab"])
    with pytest.raises(ValueError, match="leaves out 'c'"):
        refuse_lost_text(tokenizer, ["ab abc"])


def test_a_letter_may_have_a_token_in_one_place_of_a_word_and_none_in_another():
    parts = pre_tokenizers.WhitespaceSplit()
    ends = bpe_of(["a", "q", "a</w>"], None, parts, end_of_word_suffix="</w>")
    refuse_lost_text(ends, ["qa"])
    with pytest.raises(ValueError, match="leaves out 'aq'"):
        refuse_lost_text(ends, ["aq"])
    within = bpe_of(["a", "q", "##a"], None, parts, continuing_subword_prefix="##")
    refuse_lost_text(within, ["qa"])
    with pytest.raises(ValueError, match="leaves out 'aq'"):
        refuse_lost_text(within, ["aq a"])


def test_added_tokens_are_found_where_the_tokenizer_finds_them():
    tokenizer = bpe_of(LETTERS, normalizers.Lowercase())
    tokenizer.add_tokens(["<s", "<st>", AddedToken("xyz!", normalized=True)])
    refuse_lost_text(tokenizer, ["a <st> b", "a XYZ! b"])
    with pytest.raises(ValueError, match="leaves out '!'"):
        refuse_lost_text(tokenizer, ["a xyz b!"])


def test_a_word_may_be_a_token_without_its_letters():
    tokenizer = bpe_of(["hello", "a", " "], None, pre_tokenizers.Whitespace(), ignore_merges=True)
    refuse_lost_text(tokenizer, ["hello a"])
    with pytest.raises(ValueError, match="leaves out 'e', 'h', 'l', 'o', 't'"):
        refuse_lost_text(tokenizer, ["hello hotel a"])


def test_bytes_of_which_some_are_missing_are_no_whole_alphabet():
    letters = [byte for byte in pre_tokenizers.ByteLevel.alphabet() if byte != "Ã"]
    tokenizer = bpe_of(letters, None, pre_tokenizers.ByteLevel(add_prefix_space=True))
    refuse_lost_text(tokenizer, ["the cat 日"])
    with pytest.raises(ValueError, match="leaves out 'é'"):
        refuse_lost_text(tokenizer, ["the café"])
