"""Every way to generate, against transformers' GPT-2 with the same weights or plain greedy."""

import re
from threading import Thread

import pytest
import torch
from support.processes import PATIENCE
from support.tiny_models import (
    END_OF_TEXT,
    TOKENS,
    random_ids,
    tiny_model,
    tiny_stock_model,
    tiny_tokenizer,
    tiny_twins,
)
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    StaticCache,
    TextIteratorStreamer,
    pipeline,
)

from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.loading_gpt2scratch import PIPELINE_NEW_TOKENS

GREEDY = {"max_new_tokens": 20, "do_sample": False}
WAYS = {
    "greedy": {},
    "greedy without a cache": {"use_cache": False},
    "greedy with penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "sampling": {"do_sample": True},
    "top k and top p": {"do_sample": True, "top_k": 9, "top_p": 0.8, "temperature": 2.0},
    "min p": {"do_sample": True, "min_p": 0.1, "top_k": 0},
    "beam search": {"num_beams": 4, "num_return_sequences": 3},
    "beam sampling": {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "static cache and beams": {"cache_implementation": "static", "num_beams": 3},
    "several samples each": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.fixture
def twins(tmp_path):
    """Our model and transformers' with the same weights."""
    return tiny_twins(tmp_path / "stock")


@pytest.fixture
def model(twins):
    return twins[0]


def generate(model, input_ids: Tensor, **options):
    """What `generate` returns for unpadded prompts; random choices begin at the same seed."""
    torch.manual_seed(3)
    return model.generate(input_ids, attention_mask=torch.ones_like(input_ids), **GREEDY | options)


def count_forward_passes(model, monkeypatch) -> list[int]:
    """A list that grows by the number of tokens read at each forward pass."""
    widths, forward = [], model.transformer.forward

    def count(*args, input_ids, **kwargs):
        widths.append(input_ids.shape[1])
        return forward(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model.transformer, "forward", count)
    return widths


@pytest.mark.parametrize("way", WAYS)
def test_tokens_and_scores_are_those_of_transformers(twins, way):
    options = WAYS[way] | {"return_dict_in_generate": True, "output_scores": True}
    found, expected = (generate(twin, random_ids(2, 6), **options) for twin in twins)
    assert torch.equal(found.sequences, expected.sequences)
    assert found.sequences[:, 6:].unique().numel() > 5  # no model that repeats itself
    assert len(found.scores) == len(expected.scores) == found.sequences.shape[1] - 6
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=1e-4)
    if "num_beams" in options:
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)
        assert torch.equal(found.beam_indices, expected.beam_indices)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("way", ["greedy", "beam search", "static cache"])
def test_left_padded_prompts_generate_what_they_generate_alone(twins, way, attention):
    model, theirs = twins
    model.set_attn_implementation(attention)
    prompts = [random_ids(1, 4, seed=4), random_ids(1, 9, seed=5)]
    padded = torch.full((2, 9), END_OF_TEXT)
    padded[0, 5:], padded[1] = prompts[0], prompts[1]
    mask = torch.ones_like(padded)
    mask[0, :5] = 0
    options = WAYS[way] | {"num_return_sequences": 1, "min_new_tokens": 20}
    together = model.generate(padded, attention_mask=mask, **GREEDY | options)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row[9:], generate(theirs, prompt, **options)[0, prompt.shape[1] :])


def test_prompt_lookup_gives_the_greedy_tokens_in_fewer_passes(model, monkeypatch):
    prompt = random_ids(1, 4).repeat(1, 3)
    expected = generate(model, prompt)
    widths = count_forward_passes(model, monkeypatch)
    found = generate(model, prompt, prompt_lookup_num_tokens=3, max_matching_ngram_size=2)
    assert torch.equal(found, expected)
    assert max(widths[1:]) == 4 and len(widths) < 20


def test_an_assistant_of_one_layer_gives_the_greedy_tokens_in_fewer_passes(model, monkeypatch):
    assistant = tiny_model(n_layer=1)
    # Its block is our first one, and our second one is nearly nothing, so they often agree.
    for parameter in model.transformer.h[1].parameters():
        parameter.data.mul_(0.3)
    missing, _ = assistant.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    expected = generate(model, random_ids(1, 6))
    widths = count_forward_passes(model, monkeypatch)
    assert torch.equal(generate(model, random_ids(1, 6), assistant_model=assistant), expected)
    assert max(widths[1:]) > 1 and len(widths) < 20


@pytest.mark.parametrize("chunks", [[1] * 20, [7, 1, 1, 5, 6]], ids=["single", "in chunks"])
@pytest.mark.parametrize("make_cache", [DynamicCache, StaticCache])
def test_tokens_read_stepwise_give_the_logits_of_one_pass(twins, make_cache, chunks):
    model, theirs = twins
    ids = random_ids(2, 20)
    options = {"max_cache_len": 24} if make_cache is StaticCache else {}
    cache = make_cache(config=model.config, **options)
    with torch.no_grad():
        steps = [model(part, past_key_values=cache).logits for part in ids.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(steps, 1), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    assert cache.get_seq_length() == 20


def test_padded_rows_read_stepwise_need_only_the_attention_mask(model):
    ids, padding = random_ids(2, 12), torch.tensor([[5], [0]])
    mask = (torch.arange(12) >= padding).long()  # 5 tokens of padding left of the first row
    cache, steps = DynamicCache(config=model.config), []
    with torch.no_grad():
        for end in range(6, 13):
            part = ids[:, :6] if end == 6 else ids[:, end - 1 : end]
            options = {"attention_mask": mask[:, :end], "past_key_values": cache}
            steps.append(model(part, **options).logits)
        found = torch.cat(steps, dim=1)
        torch.testing.assert_close(found[:1, 5:], model(ids[:1, 5:]).logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[1:], model(ids[1:]).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3), (2, 10), (1, 9), (9,), (2, 3, 9)])
@pytest.mark.parametrize("with_positions", [False, True])
def test_a_mask_of_another_shape_than_all_tokens_is_refused(model, shape, with_positions):
    cache = DynamicCache(config=model.config)
    model(random_ids(2, 6), past_key_values=cache)
    positions = {"position_ids": torch.arange(6, 9)} if with_positions else {}
    expected = re.escape("(2, 9), 6 columns for the cache and 3 for new tokens")
    with pytest.raises(ValueError, match=f"attention_mask: .*{expected}.*{re.escape(str(shape))}"):
        model(
            random_ids(2, 3), past_key_values=cache, attention_mask=torch.ones(shape), **positions
        )


def test_a_mask_may_cover_all_places_of_a_static_cache(twins):
    ids, mask = random_ids(2, 8), torch.zeros(2, 20).long()
    mask[0, 1:8] = mask[1, :8] = 1  # one token of padding
    positions, logits = (mask[:, :8].cumsum(-1) - 1).clamp(min=0), []
    for twin in twins:
        cache = StaticCache(config=twin.config, max_cache_len=20)
        for new in (slice(0, 6), slice(6, 8)):
            options = {"attention_mask": mask, "position_ids": positions[:, new]}
            found = twin(ids[:, new], past_key_values=cache, **options).logits
        logits.append(found)
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_generation_goes_on_from_a_returned_cache(model, monkeypatch):
    first = generate(model, random_ids(1, 6), max_new_tokens=5, return_dict_in_generate=True)
    prompt = torch.cat([first.sequences, random_ids(1, 3, seed=6)], dim=1)
    expected = generate(model, prompt)
    widths = count_forward_passes(model, monkeypatch)
    assert torch.equal(generate(model, prompt, past_key_values=first.past_key_values), expected)
    assert widths[0] == 4  # the last generated token was never read, and three are new


def test_embeddings_generate_what_their_tokens_do(model):
    prompt = random_ids(2, 6)
    embeds = model.get_input_embeddings()(prompt)
    found = model.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(prompt), **GREEDY)
    assert torch.equal(found, generate(model, prompt)[:, 6:])


def test_continuous_batching_gives_the_greedy_tokens(model):
    prompts = [random_ids(n_tokens, seed=n_tokens).tolist() for n_tokens in (3, 11, 6)]
    found = model.generate_batch(
        prompts,
        generation_config=GenerationConfig(**GREEDY | TOKENS, pad_token_id=END_OF_TEXT),
        # The default takes nine tenths of the memory for the cache.
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64),
    )
    for prompt, output in zip(prompts, found.values(), strict=True):
        expected = generate(model, torch.tensor([prompt]))[0, len(prompt) :]
        assert output.generated_tokens == expected.tolist()


def test_a_batch_with_a_prompt_too_long_is_refused_before_it_fails_the_others(model):
    prompts = [[1] * 5, [1] * 40]
    with pytest.raises(ValueError, match="a prompt of 40 tokens and max_new_tokens=30"):
        model.generate_batch(prompts, generation_config=GenerationConfig(max_new_tokens=30))


def test_an_assistant_with_fewer_positions_ends_with_them(model):
    assistant = tiny_model(n_layer=1, n_positions=12)
    found = generate(model, random_ids(1, 6), assistant_model=assistant)
    assert torch.equal(found, generate(model, random_ids(1, 6)))
    prompt = random_ids(1, 20)
    found = generate(model, prompt, assistant_model=assistant)
    assert torch.equal(found, generate(model, prompt))


def test_any_token_of_a_list_ends_the_text(model):
    tokens = generate(model, random_ids(1, 6))[0, 6:].tolist()
    stop = tokens[7]
    n_expected = tokens.index(stop) + 1
    found = generate(model, random_ids(1, 6), eos_token_id=[END_OF_TEXT, stop])
    assert found[0, 6:].tolist() == tokens[:n_expected]


def test_a_string_ends_the_text_as_in_transformers(twins):
    tokenizer = tiny_tokenizer()
    text = tokenizer.decode(generate(twins[0], random_ids(1, 6))[0, 6:])
    options = {"stop_strings": [text[5:8]], "tokenizer": tokenizer}
    ours, theirs = (generate(twin, random_ids(1, 6), **options) for twin in twins)
    assert torch.equal(ours, theirs) and 6 < ours.shape[1] < 26


def test_the_saved_generation_config_is_used_after_reload(model, tmp_path):
    settings = {"do_sample": True, "top_k": 9, "max_new_tokens": 7, "min_new_tokens": 7}
    prompt = {"inputs": random_ids(1, 6), "attention_mask": torch.ones(1, 6)}
    model.generation_config.update(**settings)
    model.save_pretrained(tmp_path / "saved")
    loaded = GPT2ScratchForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert loaded.generation_config.to_diff_dict().items() >= settings.items()
    texts = []
    for twin in (loaded, tiny_stock_model()):
        torch.manual_seed(3)
        texts.append(twin.generate(**prompt, **settings if twin is not loaded else {}))
    assert torch.equal(*texts) and texts[0].shape == (1, 13)


def test_a_stream_is_the_text_in_pieces(model):
    tokenizer = tiny_tokenizer()
    prompt = tokenizer("the cat sat on", return_tensors="pt")
    # A stream breaks at spaces, so only words that begin with one may come.
    entries = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    others = [index for index, entry in enumerate(entries) if not entry.startswith("Ġ")]
    options = prompt | GREEDY | {"suppress_tokens": others}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=PATIENCE)
    thread = Thread(target=model.generate, kwargs=options | {"streamer": streamer})
    thread.start()
    pieces = [piece for piece in streamer if piece]
    thread.join()
    new_tokens = model.generate(**options)[0, prompt["input_ids"].shape[1] :]
    assert "".join(pieces) == tokenizer.decode(new_tokens)
    assert len(pieces) > 3


def test_a_batched_pipeline_writes_what_generate_does(model):
    tokenizer = tiny_tokenizer()
    options = {"batch_size": 2, "device": "cpu"}
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, **options)
    prompts = ["the cat", "on the mat and the dog"]
    written = write(prompts, **GREEDY)
    for prompt, (result,) in zip(prompts, written, strict=True):
        alone = model.generate(**tokenizer(prompt, return_tensors="pt"), **GREEDY)
        assert result["generated_text"] == tokenizer.decode(alone[0], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_pipeline_without_arguments_fills_the_positions_of_a_small_model(batch_size):
    model, tokenizer = tiny_model(n_positions=256), tiny_tokenizer()
    model.generation_config.pad_token_id = END_OF_TEXT
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    assert write._default_generation_config.max_new_tokens == PIPELINE_NEW_TOKENS
    prompts = ["the cat", "on the mat and the dog"]
    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    options = {"min_length": 257, "return_tensors": True, "batch_size": batch_size}
    for row, (written,) in zip(rows, write(prompts, **options), strict=True):
        tokens = written["generated_token_ids"]
        n_padding = max(map(len, rows)) - len(row) if batch_size == 2 else 0
        assert len(tokens) == 257
        assert tokens[n_padding:][: len(row)] == row
    assert write("the cat")[0]["generated_text"].startswith("the cat")


def test_a_pipeline_is_told_what_does_not_fit_only_if_it_was_asked_for(model):
    tokenizer = tiny_tokenizer()
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    prompt = "the cat sat on the mat"
    n_prompt = len(tokenizer(prompt)["input_ids"])
    ids = write(prompt, return_tensors=True, min_length=49)[0]["generated_token_ids"]
    assert len(ids) == 49  # 48 positions, and a token that needs none
    with pytest.raises(ValueError, match=r"n_positions=48 \+ 1, found a prompt of"):
        write(prompt, max_new_tokens=50 - n_prompt)
    with pytest.raises(ValueError, match="max_length"):
        write("the cat sat " * 40)


@pytest.mark.parametrize("way", ["greedy", "beam search", "assisted", "static cache"])
def test_text_beyond_n_positions_is_refused_before_it_is_made(model, monkeypatch, way):
    options = {"assistant_model": model} if way == "assisted" else WAYS[way]
    widths = count_forward_passes(model, monkeypatch)
    with pytest.raises(ValueError, match=r"n_positions=48 \+ 1, found a prompt of 40 tokens"):
        generate(model, random_ids(1, 40), **options, max_new_tokens=10)
    assert not widths


def test_text_beyond_n_positions_is_refused_after_a_cache_too(model):
    ids = random_ids(1, 43)
    for n_new in (6, 7):
        cache = model(ids[:, :40], use_cache=True).past_key_values
        options = {"past_key_values": cache, "attention_mask": torch.ones(1, 43)}
        options |= {"max_new_tokens": n_new, "min_new_tokens": n_new}
        if n_new == 7:
            found = "found a prompt of 43 tokens, padding included, and max_length=50"
            # transformers 5.17 finds it later.
            if "_mask_length" not in GenerationConfig.__annotations__:
                found = "position_ids: expected 0 to 47, found 48"
            with pytest.raises(ValueError, match=found):
                model.generate(ids[:, 40:], **options)
            continue
        found = model.generate(ids[:, 40:], **options)
        expected = generate(model, ids, max_new_tokens=6, min_new_tokens=6)
        assert torch.equal(found[:, 3:], expected[:, 43:])


@pytest.mark.parametrize("way", ["greedy", "beam search", "assisted", "static cache"])
def test_text_may_fill_every_position_and_one_more_token(twins, way):
    model, theirs = twins
    options = {"assistant_model": model} if way == "assisted" else WAYS[way]
    length = {"min_new_tokens": 9, "max_new_tokens": 9}
    found = generate(model, random_ids(1, 40), **options, **length)
    reference = {} if way == "assisted" else options
    assert torch.equal(found, generate(theirs, random_ids(1, 40), **reference, **length))
    assert found.shape[1] == 49


def test_a_prompt_of_n_positions_gives_one_token(twins):
    found, expected = (generate(twin, random_ids(2, 48), max_new_tokens=1) for twin in twins)
    assert torch.equal(found, expected) and found.shape == (2, 49)
    with pytest.raises(ValueError, match="n_positions=48"):
        generate(twins[0], random_ids(2, 49), max_new_tokens=1)


@pytest.mark.filterwarnings("error:.is_gradient_checkpointing:FutureWarning")
def test_a_model_that_trains_without_a_cache_does_not_generate_with_one():
    model, prompt = tiny_model(), random_ids(1, 6)
    expected = generate(model, prompt)
    model.gradient_checkpointing_enable()
    assert torch.equal(generate(model.eval(), prompt), expected)
    model.train()
    with pytest.raises(ValueError, match="expected a model in evaluation mode, found one that"):
        generate(model, prompt)
    assert torch.equal(generate(model, prompt, use_cache=False), expected)


@pytest.mark.parametrize("n_prompt", [40, 45, 46, 47])
def test_prompt_lookup_fills_all_positions_and_no_more(n_prompt):
    model = tiny_model(n_positions=48)
    prompt = random_ids(1, 4).repeat(1, 12)[:, :n_prompt]
    options = {"max_new_tokens": 49 - n_prompt, "min_new_tokens": 49 - n_prompt}
    expected = generate(model, prompt, **options)
    lookup = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2}
    assert torch.equal(generate(model, prompt, **options, **lookup), expected)
    assert expected.shape == (1, 49)


def test_a_draft_that_exits_early_gives_the_greedy_tokens(model):
    prompt = random_ids(1, 6)
    assert torch.equal(generate(model, prompt, assistant_early_exit=1), generate(model, prompt))


@pytest.mark.parametrize("options", [{"max_new_tokens": 10}, {"max_new_tokens": None}])
def test_embeddings_count_as_a_prompt(options):
    model = tiny_model(n_positions=32)
    embeds = model.get_input_embeddings()(random_ids(1, 28))
    with pytest.raises(ValueError, match="n_positions=32 \\+ 1, found 28 embeddings and"):
        model.generate(inputs_embeds=embeds, **options)
    assert model.generate(inputs_embeds=embeds, max_new_tokens=5, min_new_tokens=5).shape[1] == 5
