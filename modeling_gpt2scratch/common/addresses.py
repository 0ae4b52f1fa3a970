"""Addresses without their secrets: what is recorded and printed, and what only a client gets.

`https://user:password@host/data?signature=...` is called `https://host/data` from the moment that
an argument is read. User, password and query stay in the memory of this process, where only the
client that opens the address asks for them.
"""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

# Several addresses may stand in one text, with weights behind them: "A:0.7,B:0.3".
NUMBER = r"[\d.eE+-]"
ADDRESS = re.compile(
    r"([A-Za-z][\w+.-]{1,30}):(//?)"  # one slash in what was a Path
    # User and password end at the last @ before the path; or, where the colon is followed by
    # neither port nor weight, at the last @ of all: perhaps a character was not escaped.
    rf"(?:([^/?#\s]*|[^/?#:\s]*:(?!{NUMBER}*(?:[/?#,\s]|$))[^,\n]*)@)?"
    r"([^?#,\s]*)"
    # A comma belongs to the query if another parameter follows it.
    r"([?#](?:[^,\s]|,(?=[^,/:\s]*[=&]))*?"
    rf"(?=(?::{NUMBER}+)?:?(?:,(?![^,/:\s]*[=&])|\s|$)))?"
)
# Two things between which nobody can choose: a password with @ and / in it, and a path with @
# behind a password or a port. All of it up to the last @ may be the password.
UNCLEAR = re.compile(
    r"([A-Za-z][\w+.-]{1,30}://?)"
    rf"(?:[^/?#:@\s]*:[^/?#\s]*@[^/?#@,\s]+/|[^/?#:@\s]+:{NUMBER}+/)[^?#,\s]*@"
)
# An address whose query nobody would find, because a space ends an address.
WITH_A_SPACE = re.compile(r"[A-Za-z][\w+.-]{1,30}://[^\s,]*\s[^?#,]*[?#]\S*=")
BEARER = re.compile(r"Bearer [^\s'\"]+")  # a token in a header
MAIN = "main"  # a repository's branch, if none is named
HOST_AND_PORT = re.compile(r"[^/]+:\d+")


@dataclasses.dataclass(frozen=True)
class Secrets:
    """What an address holds beside its place."""

    user: str = ""  # "user:password"
    query: str = ""  # "?signature=..."


_secrets: dict[str, Secrets] = {}  # by the address without them


def store_credentials(text: str) -> str:
    """A text as it may be recorded; the secrets of its addresses are kept for `with_credentials`.

    Raises:
        ValueError: if nobody could say where the password of an address ends, or its query begins.
    """
    if WITH_A_SPACE.match(text):
        raise ValueError("expected an address that writes a space as %20, found one with a space")
    if any(UNCLEAR.match(match[0]) for match in ADDRESS.finditer(text)):
        raise ValueError(
            f"expected an address that writes @ as %40 in its path, and @ and / as %40 and %2F in "
            f"its password, found another in {redacted(text)}"
        )
    return ADDRESS.sub(lambda match: _redacted(match, is_kept=True), text)


def redacted(text: str) -> str:
    """A text as it may be printed, such as a library's message."""
    return BEARER.sub("Bearer ...", ADDRESS.sub(_redacted, UNCLEAR.sub(r"\1", text)))


def with_credentials(address: str) -> tuple[str, str]:
    """An address as its client needs it, and the query that stands behind each of its files."""
    before, _, last = address.rpartition("::")  # as in `simplecache::https://...`
    before, last = (f"{before}::", last) if before and "://" in last else ("", address)
    secrets = _secrets.get(last.rstrip("/"), Secrets())
    scheme, _, place = last.partition("://")
    user = quote(secrets.user, safe=":%!$&'()*+,;=-._~")
    return (f"{before}{scheme}://{user}@{place}" if user else address), secrets.query


def split_revision(name: str) -> tuple[str, str]:
    """Repository and revision of `OWNER/NAME@REVISION`, the revision "main" if none is named.

    The name of a directory stays whole.

    Raises:
        ValueError: if a directory stands before the @, which has no revisions.
    """
    if "://" in name:  # an address, whose @ stands behind a password
        return name, MAIN
    repository, at, revision = name.partition("@")
    if not (at and repository and revision):
        return name, MAIN
    if Path(name).is_dir():
        return name, MAIN
    if Path(repository).is_dir():
        raise ValueError(
            f"{name}: expected a repository of the Hub before @{revision}, found the directory "
            f"{repository}; name a directory in it, such as a checkpoint"
        )
    return (name, MAIN) if name.startswith((".", "/", "~")) else (repository, revision)


def leads_nowhere(name: str) -> bool:
    """Whether this is neither a place on this machine nor a name that the Hub could know."""
    repository = name.partition("@")[0]  # a revision, such as refs/pr/1, may have any parts
    is_path = repository.startswith((".", "/", "~")) or len(Path(repository).parts) > 2
    return is_path and not Path(name).exists()


def redact_fields(config: Any, *, but: Sequence[str] = ()) -> None:
    """Leaves no secrets in the texts of a dataclass, which will be recorded.

    Args:
        config: frozen or not.
        but: fields that hold no addresses, but perhaps something alike.
    """
    for name in {field.name for field in dataclasses.fields(config)} - {*but}:
        value = getattr(config, name)
        try:
            if isinstance(value, str):
                object.__setattr__(config, name, store_credentials(value))
            elif isinstance(value, list):
                kept = [
                    store_credentials(part) if isinstance(part, str) else part for part in value
                ]
                object.__setattr__(config, name, kept)
        except ValueError as error:
            raise ValueError(f"--{name}: {error}") from None


def take_arguments(argv: Sequence[str] | None) -> list[str]:
    """These arguments; if None, the program's, of which trackers will find no secrets."""
    if argv is not None:
        return list(argv)
    found = sys.argv[1:]
    sys.argv[1:] = map(redacted, found)
    return found


def _redacted(match: re.Match, *, is_kept: bool = False) -> str:
    """What is left of an address."""
    scheme, slashes, user, place, query = match.groups(default="")
    # `abfs://container@account` and `sftp://user@host` need what stands there.
    is_secret = ":" in user or scheme.lower().endswith(("http", "https"))
    if user and not is_secret:
        place, user = f"{user}@{place}", ""
    if is_kept and (user or query):
        bare = place if HOST_AND_PORT.fullmatch(place) else re.sub(rf":{NUMBER}+$", "", place)
        _secrets[f"{scheme}://{bare}".rstrip("/")] = Secrets(user, query)
    return f"{scheme}:{slashes}{place}"
