"""Prompts typed on a terminal, one after the other, with a history that outlives the session."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from .text_generator import GenerationError, Sampling, TextGenerator, write_samples

INVITATION = "Type how a text begins, or nothing. Ctrl-C stops a text; exit or Ctrl-D ends."
PROMPT = "> "
END = "exit"
N_REMEMBERED = 1000  # lines


def converse(
    generators: Sequence[TextGenerator], sampling: Sampling, *, n: int, seed: int, history: Path
) -> None:
    """Reads prompts and writes on from each, until `exit` or the end of the input.

    Ctrl-C stops what is being written; at the prompt, it is passed on.

    Args:
        generators: all of them answer each prompt.
        sampling: how.
        n: texts for each prompt.
        seed: of the first text; each following one has the next, so that a prompt that is given
            again is continued in another way.
        history: file of the lines that were typed.
    """
    print(INVITATION)
    with _remembered_lines(history):
        while True:
            try:
                prompt = input(PROMPT)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                raise
            except UnicodeDecodeError as error:
                print(f"expected text in {error.encoding}, found {error.reason}; type it again")
                continue
            if prompt.strip() == END:
                return
            try:
                write_samples(generators, [prompt], sampling, n=n, seed=seed)
            except KeyboardInterrupt:
                print("stopped")
            except GenerationError as error:
                print(error)
            seed += n


@contextlib.contextmanager
def _remembered_lines(history: Path) -> Iterator[None]:
    """Within the block, `input` has arrow keys and the lines of earlier sessions."""
    try:
        import readline
    except ImportError:  # a Python that was built without it
        yield
        return
    readline.set_history_length(N_REMEMBERED)
    with contextlib.suppress(OSError):  # the first session
        readline.read_history_file(history)
    try:
        yield
    finally:
        try:
            history.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(history)
        except OSError as error:
            print(f"{history}: your prompts are not saved: {error.strerror}")
