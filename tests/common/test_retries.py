"""The core of all retries: how long is waited, what is said, and what passes unchanged."""

import errno
import sys
from types import SimpleNamespace

import pytest
import tenacity

from modeling_gpt2scratch.common.retries import (
    Retries,
    TemporaryFailure,
    asked_wait,
    is_temporary,
    retrying,
    status_of,
)


class AiohttpError(Exception):
    """Status and headers as aiohttp's errors have them."""

    status = 503
    headers = {"Retry-After": "7"}


class HttpxError(Exception):
    """The same as the errors of requests, httpx and huggingface_hub have them."""

    def __init__(self, status, **headers):
        self.response = type("Response", (), {"status_code": status, "headers": headers})()


def judge(error):
    """Everything but a ValueError passes."""
    failure = TemporaryFailure(str(error), "wait", asked_wait(error))
    return None if isinstance(error, ValueError) else failure


def call(failures, *, n_tries=100, **options):
    """The waits between the tries of a function that fails so often, the core, the function."""
    waits, left, retries = [], list(failures), Retries(longest_wait_seconds=5.0, **options)

    def function(argument):
        if left:
            raise left.pop(0)
        return argument

    attempts = retrying(
        "file", judge, retries, stop=tenacity.stop_after_attempt(n_tries), sleep=waits.append
    )
    return waits, attempts, function


def test_a_server_that_asks_for_a_longer_wait_than_there_is_patience_is_given_up():
    waits, attempts, function = call([AiohttpError("x")], give_up_after_seconds=6.0)
    with pytest.raises(AiohttpError):
        attempts(function, "done")
    assert waits == []


def test_waits_double_unless_the_server_asks_for_another_and_each_is_said(capsys):
    failures = [OSError("x"), OSError("x"), AiohttpError("x"), OSError("x"), OSError("x")]
    waits, attempts, function = call(failures)
    assert attempts(function, "done") == "done"
    assert waits == [1, 2, 7, 5, 5]
    assert attempts.statistics["attempt_number"] == 6
    assert capsys.readouterr().err.splitlines() == [
        f"file: x; next try in {seconds:.0f} s; wait" for seconds in waits
    ]


def test_a_message_that_cannot_be_written_ends_no_tries(monkeypatch):
    def fail(text):
        raise OSError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=fail, flush=lambda: None))
    waits, attempts, function = call([OSError("x")] * 2)
    assert attempts(function, "done") == "done" and len(waits) == 2


def test_jitter_comes_on_top_of_a_wait():
    waits, attempts, function = call([OSError("x")] * 3, jitter_seconds=0.5)
    attempts(function, None)
    assert all(
        seconds <= wait <= seconds + 0.5 for seconds, wait in zip((1, 2, 4), waits, strict=True)
    )
    assert waits != [1, 2, 4]


@pytest.mark.parametrize(("failure", "n_tries"), [(ValueError("no"), 1), (OSError("down"), 3)])
def test_the_last_failure_passes_unchanged(failure, n_tries):
    _, attempts, function = call([failure] * 9, n_tries=3)
    with pytest.raises(type(failure)) as caught:
        attempts(function, None)
    assert caught.value is failure
    assert attempts.statistics["attempt_number"] == n_tries


def test_status_and_wait_are_found_in_the_errors_of_any_library():
    assert [status_of(error) for error in (AiohttpError(), HttpxError(404), OSError())] == [
        *(503, 404, None)
    ]
    assert asked_wait(HttpxError(429, **{"Retry-After": "3"})) == 3
    for nothing in ("Wed, 21 Oct", "0", "²"):
        assert asked_wait(HttpxError(429, **{"Retry-After": nothing})) is None
    assert asked_wait(OSError()) is None
    assert [code for code in (400, 404, 408, 425, 429, 500, 503) if is_temporary(code)] == [
        *(408, 425, 429, 500, 503)
    ]
