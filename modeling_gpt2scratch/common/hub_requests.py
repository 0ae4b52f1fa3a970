"""Requests to the Hub: made again while it is down or limits them, refused in one line otherwise.

`huggingface_hub` itself repeats some requests a few times, within seconds. This is for the rest:
the Hub is down for minutes, a rate limit lasts, the network of the machine is gone, a file came
down damaged.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tenacity
from huggingface_hub import HfApi, RepoFile, constants, get_token
from huggingface_hub.errors import (  # the first is of httpx or its successor, by version
    HTTPError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import get_session, validate_repo_id
from huggingface_hub.utils.sha import git_hash

from .addresses import redacted
from .errors import SourceError, named, one_line
from .retries import Retries, TemporaryFailure, asked_wait, is_temporary, retrying, status_of

Result = TypeVar("Result")

MAX_DAMAGED_DOWNLOADS = 5  # a file that is damaged on the Hub does not get better
LOGIN_HINT = "log in with `hf auth login` or set HF_TOKEN"
LIMIT_HINT = f"{LOGIN_HINT}, which raises the limit"
HINTS = {
    401: f"it is not there or private; check the name, or {LOGIN_HINT}",
    403: "this login may not read it; accept the conditions on the page of the data set, or use a "
    "token with the right to read it",
    404: f"check the name; if the data set is private, {LOGIN_HINT}",
}
# The same of writing.
PUSH_HINTS = {
    401: "the login is not valid; run `hf auth login`",
    403: "this login may not write there; use a token with write access to the repository",
    404: "there is no such user or organization, or this login may not see it",
    412: "somebody else wrote at the same moment; run the same command again",
}
DEFAULT_RETRIES = Retries()
FIRST_ANSWER_SECONDS = 10.0  # as long as huggingface_hub waits for a file's headers
SILENCE_SECONDS = 300.0  # after which a server that says nothing is asked again


class DamagedFileError(Exception):
    """A download with another size or checksum than the Hub promised."""


def check_repository(repository: str, *, flag: str) -> None:
    """Refuses what cannot be a repository.

    Raises:
        ValueError: unless it is OWNER/NAME.
    """
    try:
        validate_repo_id(repository)
    except ValueError as error:  # the Hub's own rules, in several sentences
        raise ValueError(
            f"expected {flag} OWNER/NAME as the Hub allows them, found {repository!r}: {error}"
        ) from error
    if "/" not in repository:
        raise ValueError(f"expected {flag} OWNER/NAME, found {repository!r}")


def check_license(name: str | None) -> None:
    """Refuses what cannot be the Hub's name for a licence.

    Raises:
        ValueError: with an example.
    """
    if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name):
        raise ValueError(f"expected --license as the Hub names it, such as mit, found {name!r}")


def check_language(code: str | None) -> None:
    """Refuses what the Hub takes for no language, which it would say after making a repository.

    Raises:
        ValueError: with an example.
    """
    if code is not None and not re.fullmatch(r"[a-z]{2,3}|code|multilingual", code):
        raise ValueError(
            f"expected --language as a code of two or three letters, such as en, found {code!r}"
        )


@contextlib.contextmanager
def cache_without_hub(name: str) -> Iterator[None]:
    """Lets Hugging Face's libraries look in their cache alone where the Hub cannot be reached.

    They make each request again for half a minute, and a model takes a dozen of them.

    Args:
        name: of a model or a tokenizer; for one on this machine, nobody is asked.

    Raises:
        OSError: if the block does so while the Hub cannot be reached, in one line.
    """
    if constants.HF_HUB_OFFLINE or os.path.exists(name) or _is_reachable():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        place = redacted(constants.ENDPOINT)
        raise OSError(f"no copy in the cache, and {place} cannot be reached") from error
    finally:
        constants.HF_HUB_OFFLINE = False


def require_login() -> None:
    """Refuses to begin what would end at the Hub without a token.

    Raises:
        SourceError: if there is none, or none that can be sent.
    """
    _refuse_unsendable_token()
    if get_token() is None:
        raise SourceError(f"expected a login at the Hub, found none; {LOGIN_HINT}")


def make_repository(repository: str, *, repo_type: str, private: bool) -> str:
    """The address of a repository, which is there afterwards, and which this login may write to.

    Raises:
        SourceError: if it is to be private, and is there and public.
        HTTPError: if the Hub refuses or cannot be reached.
    """
    api = HfApi()
    url = api.create_repo(repository, repo_type=repo_type, private=private or None, exist_ok=True)
    api.auth_check(repository, repo_type=repo_type, write=True)  # it may be somebody else's
    if private and api.repo_info(repository, repo_type=repo_type).private is False:
        raise SourceError(
            f"{repository}: expected a private repository, found a public one; change it in its "
            f"settings or leave out --private"
        )
    return str(url)


def file_ids(repository: str, *, repo_type: str, revision: str | None = None) -> dict[str, str]:
    """Every file of a repository: the sha256 of what is in large file storage, else git's sha1.

    Raises:
        HTTPError: if the Hub refuses or cannot be reached.
    """
    tree = HfApi().list_repo_tree(
        repository, repo_type=repo_type, revision=revision, recursive=True
    )
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}


def blob_id(path: Path) -> str:
    """What git calls the content of a file: its sha1."""
    return git_hash(path.read_bytes())


def with_retries(
    request: Callable[[], Result], what: str, retries: Retries, *, hints: Mapping[int, str] = HINTS
) -> Result:
    """The result of `request()`, called again after each failure that may pass.

    Every new try is announced on stderr in one line.

    Args:
        request: does something with the Hub; it may be called many times.
        what: the file or data set that it is about, for the messages.
        retries: how long to go on; what it gives up after is waits, the tries not counted.
        hints: what to do about an answer, by its HTTP status.

    Raises:
        SourceError: if the Hub refuses, or still fails in the end. Whatever else `request` raises
            passes unchanged.
    """
    _refuse_unsendable_token()
    _wait_for_no_silent_server()
    logging.getLogger("huggingface_hub.utils._http").addFilter(_hint_at_login)
    attempts = retrying(what, _judge, retries, stop=lambda state: _is_enough(state, retries))
    try:
        return attempts(request)
    except Exception as error:
        n_tries = attempts.statistics["attempt_number"]
        reason = _final_reason(error, n_tries, hints)
        if reason is None:
            raise
        raise SourceError(f"{what}: {reason}") from error


def temporary_cause(error: BaseException) -> BaseException | None:
    """The error, or the one it was made from, that a later request may not meet."""
    for cause in _chain(error):
        status = status_of(cause)
        if isinstance(cause, OfflineModeIsEnabled):
            return None
        if status is not None:
            if is_temporary(status):
                return cause
        elif isinstance(cause, DamagedFileError | HTTPError | ConnectionError | TimeoutError):
            return cause
        elif isinstance(cause, OSError) and "Consistency check failed" in str(cause):
            return cause  # of huggingface_hub: fewer bytes came than were announced
    return None


def reason_of(error: BaseException) -> str:
    """What the Hub answered, or what went wrong on the way there, in one line."""
    status = status_of(error)
    if status is None:
        return named(error)
    # aiohttp's errors have no response, and a server may answer with a whole page.
    answer = getattr(error, "server_message", None)
    answer = answer or getattr(getattr(error, "response", None), "reason_phrase", "")
    return f"the Hub answered {status} {one_line(Exception(answer)) if answer else ''}".rstrip()


def answered(error: ValueError | RuntimeError) -> str:
    """What the Hub's client said in one line, also where no JSON came, as from a proxy."""
    no_hub = isinstance(error, json.JSONDecodeError)
    return f"expected the Hub, found {named(error)}" if no_hub else one_line(error)


def unreadable(repository: str, error: BaseException) -> SourceError:
    """The error for a data set that cannot be read for whatever reason."""
    return SourceError(
        f"{repository}: expected a data set of the Hub that can be read, found {named(error)}"
    )


def _is_reachable() -> bool:
    """Whether the Hub answers anything at all."""
    try:
        get_session().head(constants.ENDPOINT, timeout=FIRST_ANSWER_SECONDS)
    except (HTTPError, OSError):
        return False
    return True


def _refuse_unsendable_token() -> None:
    """Refuses a token that no header can hold, before the network is blamed."""
    if not re.fullmatch(r"[!-~]*", get_token() or ""):
        raise SourceError(
            "expected a token of letters and digits, such as hf_..., found one with other "
            "characters; correct HF_TOKEN, or log in with `hf auth login`"
        )


def _wait_for_no_silent_server() -> None:
    """Gives requests of `huggingface_hub` a limit where they have none.

    Its API waits for ever: for a server that accepts and does not answer, or a lost connection.
    """
    hooks = get_session().event_hooks["request"]
    if _set_limit not in hooks:
        hooks.append(_set_limit)


def _set_limit(request: Any) -> None:
    """Limits the silence that a request of httpx puts up with."""
    limits = request.extensions.get("timeout", {})
    if all(seconds is None for seconds in limits.values()):
        names = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = dict.fromkeys(names, SILENCE_SECONDS)


def _judge(error: BaseException) -> TemporaryFailure | None:
    """Why a request may succeed later, None if it cannot."""
    cause = temporary_cause(error)
    if cause is None:
        return None
    return TemporaryFailure(
        reason=str(cause) if isinstance(cause, DamagedFileError) else reason_of(cause),
        hint=LIMIT_HINT if status_of(cause) == 429 and get_token() is None else "",
        wait_seconds=asked_wait(cause),
    )


def _final_reason(error: Exception, n_tries: int, hints: Mapping[int, str]) -> str | None:
    """Why a request failed for good and what to do; None if the Hub has nothing to do with it."""
    failure = _judge(error)
    tries = f"{n_tries} time{'s' * (n_tries > 1)}"
    if failure and isinstance(temporary_cause(error), DamagedFileError):
        return f"{failure.reason}, {tries}; the file may be damaged on the Hub"
    if failure:
        hint = f"; {failure.hint}" if failure.hint else ""
        return (
            f"{failure.reason}, {tries}; run the same command again when the Hub can be "
            f"reached{hint}"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return "expected to reach the Hub, found the variable HF_HUB_OFFLINE; unset it"
    status = status_of(error)
    if status is None:
        return None
    return reason_of(error) + (f"; {hints[status]}" if status in hints else "")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it, hidden ones included."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        current = waiting.pop(0)
        if current is not None and not any(current is other for other in seen):
            seen.append(current)
            yield current
            waiting += [current.__cause__, current.__context__]


def _hint_at_login(record: logging.LogRecord) -> bool:
    """Completes what `huggingface_hub` logs of its own short retries."""
    if "HTTP Error 429" in record.getMessage() and get_token() is None:
        record.msg, record.args = f"{record.getMessage()}; {LIMIT_HINT}", ()
    return True


def _is_enough(state: tenacity.RetryCallState, retries: Retries) -> bool:
    """Whether to give up."""
    if isinstance(temporary_cause(state.outcome.exception()), DamagedFileError):
        return state.attempt_number >= MAX_DAMAGED_DOWNLOADS
    return state.idle_for >= retries.give_up_after_seconds
