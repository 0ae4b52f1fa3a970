"""Requests that are made again while a later one may succeed, to the Hub and to any other address.

Waits double from the first to the longest, unless the server says how long to wait. Each new try is
announced on stderr in one line.
"""

import errno
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import tenacity
from huggingface_hub.utils import parse_ratelimit_headers

from .console import tell
from .errors import named, one_line

LONGEST_PAUSE_SECONDS = 60.0
# Exceptions of botocore and huggingface_hub, which need not be installed.
LASTING_ERRORS = ("NoCredentialsError", "OfflineModeIsEnabled")
TEMPORARY_STATUSES = (408, 425, 429)  # too slow, too early, too many requests; and all from 500 on


@dataclass(frozen=True)
class Retries:
    """How long to go on trying: waits double from the first to the longest."""

    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = LONGEST_PAUSE_SECONDS
    give_up_after_seconds: float = 900.0
    jitter_seconds: float = 0.0  # added at random, so that many processes do not come back at once


class TemporaryFailure(NamedTuple):
    """A failure that a later try may not meet."""

    reason: str  # in one line
    hint: str = ""  # what the user can do meanwhile
    wait_seconds: float | None = None  # that the server asks for


def retrying(
    what: str,
    judge: Callable[[BaseException], TemporaryFailure | None],
    retries: Retries,
    *,
    stop: Callable[[tenacity.RetryCallState], bool],
    **options: Any,
) -> tenacity.Retrying:
    """Calls a function until it succeeds: `retrying(...)(function, *arguments)`.

    The last failure passes unchanged; `statistics["attempt_number"]` counts the tries.

    Args:
        what: the file or data set that it is about, for the messages.
        judge: None for a failure that no later try can mend.
        retries: how long to wait between tries.
        stop: whether to give up. A wait beyond all that `retries` allows is not begun in any case.
        options: of `tenacity.Retrying`.
    """

    backoff = tenacity.wait_exponential(retries.first_wait_seconds, retries.longest_wait_seconds)
    backoff += tenacity.wait_random(0, retries.jitter_seconds)

    def wait(state: tenacity.RetryCallState) -> float:
        asked = judge(state.outcome.exception()).wait_seconds
        return backoff(state) if asked is None else asked

    def is_enough(state: tenacity.RetryCallState) -> bool:
        return state.upcoming_sleep > retries.give_up_after_seconds or stop(state)

    def announce(state: tenacity.RetryCallState) -> None:
        failure = judge(state.outcome.exception())
        hint = f"; {failure.hint}" if failure.hint else ""
        seconds = f"{state.upcoming_sleep:.0f} s"
        # Above a progress bar if there is one; the lines of several threads stay apart.
        tell(f"{what}: {failure.reason}; next try in {seconds}{hint}", file=sys.stderr)

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: judge(error) is not None),
        wait=wait,
        stop=is_enough,
        before_sleep=announce,
        reraise=True,
        **options,
    )


def judge_download(error: BaseException) -> TemporaryFailure | None:
    """Why a download may succeed at the next try, None if it cannot."""
    if isinstance(error, FileNotFoundError | PermissionError | ImportError | MemoryError):
        return None
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    status = status_of(error)
    if type(error).__name__ in LASTING_ERRORS or not (status is None or is_temporary(status)):
        return None
    asked = asked_wait(error)  # which may be longer than anybody wants to wait
    longest = None if asked is None else min(asked, LONGEST_PAUSE_SECONDS)
    return TemporaryFailure(download_problem(error), wait_seconds=longest)


def download_problem(error: BaseException) -> str:
    """What was found in place of a file, in some words."""
    status = status_of(error)
    if status is not None:
        return f"expected the file, found HTTP status {status}"
    if isinstance(error, ValueError):  # of a check, which says what it expected
        return one_line(error)
    reason = getattr(error, "reason", None)  # of urllib, whose error only says that there is one
    error = reason if isinstance(reason, BaseException) else error
    if isinstance(error, FileNotFoundError):
        return "expected the file, found none"
    if isinstance(error, TimeoutError):
        return "expected the file, found no answer in time"
    return f"expected the file, found {named(error)}"


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an error of aiohttp, or of requests, httpx and huggingface_hub."""
    response = getattr(error, "response", None)
    status = getattr(error, "status", getattr(response, "status_code", None))
    return status if isinstance(status, int) else None


def is_temporary(status: int) -> bool:
    """Whether a server that answered so may answer otherwise later."""
    return status >= 500 or status in TEMPORARY_STATUSES


def asked_wait(error: BaseException) -> float | None:
    """Seconds after which the server wants to be asked again, if it says so; 0 says nothing."""
    headers = getattr(getattr(error, "response", error), "headers", None) or {}
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    seconds = headers.get("Retry-After", "")
    return (float(seconds) or None) if seconds.isdecimal() else None
