"""A causal language model of transformers that writes on from a prompt, as fast as it can be read.

What it writes does not end with the model's positions: when they are full, the oldest tokens are
forgotten. As long as they are not, it writes what `generate` gives.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from transformers.generation.stopping_criteria import StopStringCriteria

from modeling_gpt2scratch.checkpoints.checkpoint import find_model
from modeling_gpt2scratch.checkpoints.weight_files import not_finite
from modeling_gpt2scratch.common.console import tell
from modeling_gpt2scratch.common.errors import MendableError, in_words, printable
from modeling_gpt2scratch.data.tokens.text import well_formed
from modeling_gpt2scratch.distributed.device import available_device
from modeling_gpt2scratch.evaluation.scoring.encoding import context_length, prefix_token
from modeling_gpt2scratch.evaluation.scoring.models import load_model

# What a model's generation_config.json may say otherwise, and a stream cannot show.
ONE_TEXT = {"num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": False}
ONE_TEXT |= {"penalty_alpha": None}  # a search that is no part of transformers any more


class GenerationError(MendableError, ValueError):
    """A model that cannot be loaded or cannot write; the message names it."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and how many."""

    temperature: float  # 0 takes the likeliest token
    top_k: int  # likeliest tokens to choose from, 0 for all
    top_p: float  # share of the probability to choose from, from 0 to 1
    max_new_tokens: int

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `generate`."""
        if self.temperature == 0:
            return {"do_sample": False}
        chosen = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return {"do_sample": True} | chosen


class TextGenerator:
    """A model with its tokenizer.

    Args:
        name: of the model, for people.
        model: any causal LM of transformers.
    """

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.name = name
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._n_positions = context_length(model.config, tokenizer)
        self._max_tokens = self._n_positions + 1  # the last one needs no position itself
        ends = model.generation_config.eos_token_id
        stop_strings = model.generation_config.stop_strings
        self._for_stop_strings = {"tokenizer": tokenizer} if stop_strings else {}
        self._stops = StopStringCriteria(tokenizer, stop_strings) if stop_strings else None
        self._ends = set(ends if isinstance(ends, list) else [ends]) - {None}

    def write(self, prompt: str, sampling: Sampling, *, seed: int) -> None:
        """Prints the prompt, what follows, and the end of a line; the same for the same seed.

        Args:
            prompt: empty for the beginning of a document.
            sampling: how to go on.

        Raises:
            GenerationError: without a token to begin with, or if the model gives no probabilities.
        """
        stream = _Stream(self._tokenizer)
        try:
            input_ids = self._encode(prompt, sampling.max_new_tokens)
            torch.manual_seed(seed)
            stream.show(input_ids)
            self._continue(input_ids, sampling, stream)
        except Exception as error:  # torch and tokenizers have no classes of their own
            raise GenerationError(f"{self.name}: cannot write: {in_words(error)}") from error
        finally:
            stream.finish()

    def _encode(self, prompt: str, n_new: int) -> Tensor:
        """Ids of a prompt, its last ones if there are too many: (1, T)."""
        ids = self._tokenizer(well_formed(prompt))["input_ids"] or [prefix_token(self._tokenizer)]
        input_ids = self._fitting(torch.tensor([ids], device=self._model.device), n_new)
        if input_ids.shape[1] < len(ids):
            tell(
                f"{self.name}: the prompt has {len(ids):,} tokens, the model "
                f"{self._n_positions:,} positions; only the last {input_ids.shape[1]:,} are taken",
                file=sys.stderr,
            )
        return input_ids

    def _fitting(self, input_ids: Tensor, n_new: int) -> Tensor:
        """The ids, or if they are too many, the last of them, with room for new ones."""
        if input_ids.shape[1] < self._max_tokens:
            return input_ids
        n_kept = self._max_tokens - min(n_new, self._max_tokens // 2)
        return input_ids[:, -n_kept:]

    def _continue(self, input_ids: Tensor, sampling: Sampling, stream: TextStreamer) -> None:
        """Writes into the stream what follows (1, T) ids."""
        n_left = sampling.max_new_tokens
        while n_left:
            input_ids = self._fitting(input_ids, n_left)
            n_given = input_ids.shape[1]
            n_new = min(n_left, self._max_tokens - n_given)
            output_ids = self._model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=n_new,
                streamer=stream,
                logits_processor=[self._require_numbers],
                **self._for_stop_strings | ONE_TEXT | sampling.arguments,
            )
            if output_ids.shape[1] < n_given + n_new or output_ids[0, -1].item() in self._ends:
                return
            if self._stops and self._stops(output_ids, None).any():
                return
            n_left -= n_new
            input_ids = output_ids

    def _require_numbers(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        """The logits of the next token, (1, vocabulary), which must be numbers.

        Raises:
            GenerationError: naming the weights, if they are the reason. `generate` itself would
                take the first token of the vocabulary, or call it the fault of its probabilities.
        """
        if (logits < math.inf).all():  # nan is not, and -inf is a token that cannot come
            return logits
        if damaged := not_finite(self._model):
            raise GenerationError(f"expected finite weights, found nan or infinity in {damaged}")
        dtype = self._model.dtype
        found = f"nan or infinity; is {dtype} too narrow?"
        raise GenerationError(f"expected finite logits, found {found}")


def load_generator(name: str, *, trust_remote_code: bool) -> TextGenerator:
    """The model of a run, of a checkpoint or of the Hub, on the accelerator if there is one.

    Of a run that is not finished, it is the newest checkpoint.

    Raises:
        GenerationError: if it cannot be loaded whole.
    """
    place = str(find_model(Path(name))) if Path(name).is_dir() else name
    try:
        model, tokenizer = load_model(place, dtype="auto", trust_remote_code=trust_remote_code)
        return TextGenerator(place, model.to(available_device()), tokenizer)
    except Exception as error:  # transformers passes on whatever its readers raise
        raise GenerationError(f"{name}: {in_words(error)}") from error


def write_samples(
    generators: Sequence[TextGenerator],
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    n: int,
    seed: int,
) -> None:
    """Prints `n` texts for each prompt by each generator, under headings that tell them apart.

    Args:
        generators: all have the same prompts and seeds.
        sampling: how.
        n: texts for each prompt.
        seed: of the first of them; the others have the next ones.
    """
    for number, prompt in enumerate(prompts, start=1):
        for generator in generators:
            for sample in range(n):
                parts = [generator.name] if len(generators) > 1 else []
                parts += [f"prompt {number} of {len(prompts)}"] if len(prompts) > 1 else []
                parts += [f"sample {sample + 1} of {n}"] if n > 1 else []
                if parts:
                    print(f"=== {', '.join(parts)} ===", flush=True)
                generator.write(prompt, sampling, seed=seed + sample)


class _Stream(TextStreamer):
    """Prints words as they are complete, over several calls of `generate`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._is_terminal = sys.stdout.isatty()

    def show(self, input_ids: Tensor) -> None:
        """Prints the prompt itself: (1, T)."""
        self.next_tokens_are_prompt = False
        self.put(input_ids)
        self.next_tokens_are_prompt = True

    def end(self) -> None:
        """One call is over; the next one has its prompt from what was printed."""
        self.next_tokens_are_prompt = True

    def finish(self) -> None:
        """Prints what is left, and the end of the line."""
        super().end()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = printable(text) if self._is_terminal else text  # a model of bytes may write any
        super().on_finalized_text(text, stream_end=stream_end)
