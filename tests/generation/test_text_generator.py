"""Models that write on from a prompt: what `generate` gives, as it comes, on and on."""

import copy
import sys

import pytest
import torch
from support.tiny_models import CORPUS, END_OF_TEXT, SIZES, TOKENS, tiny_stock_model, tiny_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.generation.text_generator import (
    GenerationError,
    Sampling,
    TextGenerator,
    load_generator,
    write_samples,
)

PROMPT = "the cat sat"
N_POSITIONS = SIZES["n_positions"]
GREEDY = Sampling(temperature=0, top_k=0, top_p=1, max_new_tokens=20)
CHOSEN = Sampling(temperature=0.7, top_k=9, top_p=0.9, max_new_tokens=20)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def directories(tmp_path_factory, tokenizer):
    """A model of ours, transformers' own with the same weights, and one of another kind."""
    stock = tiny_stock_model()
    torch.manual_seed(4)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": SIZES["vocab_size"], "intermediate_size": 64}
    positions = {"max_position_embeddings": N_POSITIONS, "initializer_range": 0.3}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, **positions, **TOKENS))
    made = {name: tmp_path_factory.mktemp(name) for name in ("ours", "stock", "llama")}
    stock.save_pretrained(made["stock"])
    llama.save_pretrained(made["llama"])
    GPT2ScratchForCausalLM.from_pretrained(made["stock"]).save_pretrained(made["ours"])
    for directory in made.values():
        tokenizer.save_pretrained(directory)
    return made


@pytest.fixture
def generator(directories):
    return load_generator(str(directories["ours"]), trust_remote_code=False)


@pytest.fixture
def written(capsys):
    """What a generator prints for a prompt, without the end of the line."""

    def written(generator, prompt, sampling, seed=0):
        generator.write(prompt, sampling, seed=seed)
        text = capsys.readouterr().out
        assert text.endswith("\n")
        return text[:-1]

    return written


def model_of(directory):
    return AutoModelForCausalLM.from_pretrained(directory).eval()


@pytest.mark.parametrize("kind", ["ours", "stock", "llama"])
def test_the_text_is_what_generate_gives(directories, tokenizer, written, kind):
    model = model_of(directories[kind])
    generator = load_generator(str(directories[kind]), trust_remote_code=False)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    for sampling, options in (
        (GREEDY, {"do_sample": False}),
        (CHOSEN, {"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.9}),
    ):
        torch.manual_seed(3)
        expected = model.generate(**inputs, **options, max_new_tokens=20)
        text = tokenizer.decode(expected[0], skip_special_tokens=True)
        assert written(generator, PROMPT, sampling, seed=3) == text
        assert text.startswith(PROMPT) and len(text) > len(PROMPT)


@pytest.mark.parametrize(
    "setting",
    [
        {"return_dict_in_generate": True},
        {"num_beams": 4, "num_return_sequences": 3},
        {"stop_strings": ["zzz"]},
    ],
)
def test_a_models_own_way_to_generate_does_not_keep_it_from_writing(
    directories, tokenizer, written, setting
):
    plain, other = (model_of(directories["ours"]) for _ in range(2))
    other.generation_config.update(**setting)
    texts = [
        written(TextGenerator("x", m, tokenizer), PROMPT, GREEDY, seed=3) for m in (plain, other)
    ]
    assert texts[0] == texts[1]


def test_a_stop_string_ends_the_text_also_where_the_positions_are_full(
    directories, tokenizer, written
):
    model = model_of(directories["ours"])
    model.generation_config.eos_token_id = None
    inputs = tokenizer(PROMPT, return_tensors="pt")
    (ids,) = model.generate(**inputs, do_sample=False, max_new_tokens=20)
    n_prompt = inputs["input_ids"].shape[1]
    texts = {n: tokenizer.decode(ids[:n]) for n in range(n_prompt + 1, len(ids))}
    n_full, expected = next((n, text) for n, text in texts.items() if text.endswith("sat"))
    model.generation_config.stop_strings = ["sat"]
    generator = TextGenerator("x", model, tokenizer)
    generator._max_tokens = n_full  # so that the window is full with the string's last token
    assert written(generator, PROMPT, GREEDY) == expected


def test_the_same_seed_gives_the_same_text_whatever_was_written_before(generator, written):
    first = written(generator, PROMPT, CHOSEN, seed=5)
    assert written(generator, PROMPT, CHOSEN, seed=6) != first
    assert written(generator, PROMPT, CHOSEN, seed=5) == first


@pytest.mark.parametrize("kind", ["ours", "stock"])
@pytest.mark.parametrize(("n_prompt", "n_new"), [(3, 120), (40, 30), (60, 10), (60, 200), (48, 1)])
def test_when_the_positions_are_full_the_oldest_tokens_are_forgotten(
    directories, tokenizer, written, kind, n_prompt, n_new
):
    prompt = tokenizer.decode(tokenizer(" ".join(CORPUS))["input_ids"][:n_prompt])
    ids = tokenizer(prompt)["input_ids"]
    assert len(ids) == n_prompt
    model = model_of(directories[kind])
    model.generation_config.eos_token_id = None  # so that all tokens are written
    sampling = Sampling(temperature=0, top_k=0, top_p=1, max_new_tokens=n_new)
    text = written(TextGenerator("model", model, tokenizer), prompt, sampling)

    # Token by token, without a cache. The last token needs no position.
    first = max(0, n_prompt - (N_POSITIONS + 1 - min(n_new, 24))) if n_prompt > N_POSITIONS else 0
    shown, ids = ids[first:], ids[first:]
    for n_left in range(n_new, 0, -1):
        if len(ids) > N_POSITIONS:
            ids = ids[-(N_POSITIONS + 1 - min(n_left, 24)) :]
        with torch.no_grad():
            ids = [*ids, model(torch.tensor([ids])).logits[0, -1].argmax().item()]
        shown.append(ids[-1])
    assert text == tokenizer.decode(shown, skip_special_tokens=True)


def test_a_prompt_that_is_too_long_is_said_to_be_cut(generator, capsys):
    generator.write(" ".join(CORPUS), GREEDY, seed=0)
    n_tokens = len(tiny_tokenizer()(" ".join(CORPUS))["input_ids"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"{generator.name}: the prompt has {n_tokens} tokens, the model 48 positions; "
        f"only the last 29 are taken"
    )


def test_an_empty_prompt_is_the_beginning_of_a_document(directories, tokenizer, generator, written):
    start = torch.tensor([[END_OF_TEXT]])
    expected = model_of(directories["ours"]).generate(start, do_sample=False, max_new_tokens=20)
    assert written(generator, "", GREEDY) == tokenizer.decode(expected[0], skip_special_tokens=True)


def test_the_text_ends_with_the_end_of_text(directories, tokenizer, written):
    model = model_of(directories["ours"])
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=20)[0]
    n_prompt = inputs["input_ids"].shape[1]
    end = ids[n_prompt + 5]
    n_until_end = ids[n_prompt:].tolist().index(end.item())
    model.generation_config.eos_token_id = [end.item(), END_OF_TEXT]
    text = written(TextGenerator("model", model, tokenizer), PROMPT, GREEDY)
    assert text == tokenizer.decode(ids[: n_prompt + n_until_end + 1])


def test_half_a_character_in_a_prompt_is_replaced(generator, written):
    assert written(generator, "the cat \udcff", GREEDY).startswith(
        "the cat \N{REPLACEMENT CHARACTER}"
    )


def test_words_appear_while_the_model_is_still_writing(directories, tokenizer, monkeypatch):
    model = model_of(directories["ours"])
    n_tokens, seen = 0, []

    def count(*_):
        nonlocal n_tokens
        n_tokens += 1

    model.register_forward_hook(count)
    print_now = sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda text: seen.append(n_tokens) or print_now(text))
    TextGenerator("model", model, tokenizer).write(PROMPT, CHOSEN, seed=1)
    assert n_tokens == 20 and len({*seen} - {0, n_tokens}) >= 2


def test_what_would_move_the_cursor_of_a_terminal_is_not_shown_there(
    generator, written, monkeypatch
):
    prompt = "the\x1b[2J\tcat\x9b\nsat\r"
    assert written(generator, prompt, GREEDY).startswith(prompt)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert written(generator, prompt, GREEDY).startswith("the\ufffd[2J\tcat\ufffd\nsat\ufffd")


@pytest.mark.parametrize("sampling", [GREEDY, CHOSEN], ids=["greedy", "chosen"])
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_model_without_probabilities_is_one_line(directories, tokenizer, sampling, number):
    model = model_of(directories["ours"])
    model.transformer.h[1].ln_2.weight.data.fill_(float(number))
    damage = r"expected finite weights, found nan or infinity in transformer\.h\.1\.ln_2\.weight$"
    with pytest.raises(GenerationError, match=f"^model: cannot write: {damage}"):
        TextGenerator("model", model, tokenizer).write(PROMPT, sampling, seed=0)


def test_a_token_that_the_model_has_no_embedding_for_is_one_line(directories, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([f"<{number}>" for number in range(100)])
    with pytest.raises(
        GenerationError, match=r"^model: cannot write: IndexError: index out of range"
    ):
        TextGenerator("model", model_of(directories["stock"]), tokenizer).write(
            "<99>", CHOSEN, seed=0
        )


def test_a_prompt_that_the_tokenizer_has_no_tokens_for_is_one_line(directories):
    words = WordLevel({letter: number for number, letter in enumerate("abc")}, unk_token="<?>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    with pytest.raises(GenerationError, match=r"^model: cannot write: Exception: WordLevel error"):
        TextGenerator("model", model_of(directories["ours"]), tokenizer).write(
            "Hello", CHOSEN, seed=0
        )


def test_a_model_that_lacks_a_tensor_does_not_write(tmp_path, tokenizer):
    model = tiny_stock_model()
    weights = model.state_dict()
    del weights["transformer.h.1.ln_1.bias"]
    model.save_pretrained(tmp_path, state_dict=weights)
    tokenizer.save_pretrained(tmp_path)
    expected = "expected all tensors of GPT2LMHeadModel, found no transformer.h.1.ln_1.bias"
    with pytest.raises(GenerationError, match=f"^{tmp_path}: {expected}$"):
        load_generator(str(tmp_path), trust_remote_code=False)


def test_an_unfinished_run_writes_with_its_newest_checkpoint(directories, tmp_path, written):
    for step in (4, 12, 8):
        checkpoint = tmp_path / f"checkpoint-{step}"
        source = directories["llama" if step == 12 else "ours"]
        checkpoint.mkdir()
        for file in source.iterdir():
            (checkpoint / file.name).symlink_to(file)
        (checkpoint / "training_state.json").write_text("{}")
    generator = load_generator(str(tmp_path), trust_remote_code=False)
    assert generator.name == str(tmp_path / "checkpoint-12")
    expected = load_generator(str(directories["llama"]), trust_remote_code=False)
    assert written(generator, PROMPT, CHOSEN) == written(expected, PROMPT, CHOSEN)


def test_samples_stand_under_headings_that_tell_them_apart(directories, capsys, written):
    generators = [
        load_generator(str(directories[kind]), trust_remote_code=False) for kind in directories
    ]
    write_samples(generators[:1], [PROMPT], CHOSEN, n=1, seed=7)
    assert capsys.readouterr().out == f"{written(generators[0], PROMPT, CHOSEN, seed=7)}\n"
    write_samples(generators[::2], [PROMPT, "on"], CHOSEN, n=2, seed=7)
    output = capsys.readouterr().out
    lines = [
        line
        for number, prompt in enumerate([PROMPT, "on"], start=1)
        for generator in generators[::2]
        for sample in range(2)
        for line in (
            f"=== {generator.name}, prompt {number} of 2, sample {sample + 1} of 2 ===",
            written(generator, prompt, CHOSEN, seed=7 + sample),
        )
    ]
    assert output == "\n".join(lines) + "\n"
