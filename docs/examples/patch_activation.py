"""After which block does a model know its next token? An activation patched, with nnsight.

    pip install nnsight
    python docs/examples/patch_activation.py runs/quickstart "Returns the" "Raises an" \\
        --trust_remote_code

The state of the last token of the first prompt takes the place of that of the second prompt, after
each block in turn. The table shows how likely the first prompt's next token then is.
"""

import argparse

import torch
from nnsight import LanguageModel


@torch.no_grad()
def patched_logits(model: LanguageModel, clean: str, other: str) -> list[torch.Tensor]:
    """Logits (vocabulary) after `other`, patched with the state of `clean`, for each block."""
    rows = []
    for block in model.transformer.h:
        with model.trace(clean):
            state = block.output[:, -1, :].save()
        with model.trace(other):
            block.output[:, -1, :] = state
            logits = model.lm_head.output[0, -1].save()
        rows.append(logits)
    return rows


@torch.no_grad()
def main(directory: str, clean: str, other: str, trust_remote_code: bool) -> None:
    """Prints the table; `trust_remote_code` runs the code in the directory, as a run needs it."""
    model = LanguageModel(directory, trust_remote_code=trust_remote_code, dispatch=True)
    with model.trace(clean):
        best = model.lm_head.output[0, -1].argmax().save()
    print(f"the next token of {clean!r} is {model.tokenizer.decode(best)!r}; put into {other!r}:")
    for layer, logits in enumerate(patched_logits(model, clean, other), start=1):
        print(f"after block {layer}: probability {logits.softmax(-1)[best]:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("directory", "clean", "other"):
        parser.add_argument(name)
    parser.add_argument("--trust_remote_code", action="store_true")
    main(**vars(parser.parse_args()))
