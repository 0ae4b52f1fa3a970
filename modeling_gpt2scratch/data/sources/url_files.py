"""Files at one address that everybody starts with: downloaded once, checked, and kept.

They stay in the user's cache, where a file that was copied there by hand will do as well.
"""

import hashlib
import http.client
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from modeling_gpt2scratch.common.atomic_files import write_file
from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.common.retries import Retries, download_problem, judge_download, retrying
from modeling_gpt2scratch.common.user_cache import user_cache

# Who has no network should not wait long for the advice what to do without.
RETRIES = Retries(give_up_after_seconds=7)
SILENCE_SECONDS = 20  # after which a connection is given up
MAX_ATTEMPTS = 5


@dataclass(frozen=True)
class UrlFile:
    """A file of known content, with the interface of those of the Hub."""

    name: str  # in the cache; tells the format
    url: str
    n_bytes: int
    sha256: str

    @property
    def revision(self) -> str:
        """What decides the content."""
        return self.sha256

    def fetch(self, directory: Path, *, retries: Retries = RETRIES) -> Path:
        """Its place in the user's cache, after a download if it is not there yet.

        Raises:
            SourceError: if it cannot be had, or if another file is in its place.
            OSError: if the cache cannot be written to.
        """
        path = user_cache() / self.name
        if path.is_file():
            if self._fault(path.read_bytes()) is not None:
                raise SourceError(
                    f"{path}: expected {self.url} with sha256 {self.sha256}, found another file; "
                    f"remove it"
                )
            return path
        attempts = retrying(
            self.url,
            judge_download,
            retries,
            stop=lambda state: (
                state.idle_for >= retries.give_up_after_seconds
                or state.attempt_number >= MAX_ATTEMPTS
            ),
        )
        try:
            content = attempts(self._download)
        except (OSError, http.client.HTTPException, _OtherContentError) as error:
            raise SourceError(
                f"{self.url}: {download_problem(error)}; without a network, put it "
                f"({self.n_bytes:,} bytes, sha256 {self.sha256}) at {path}"
            ) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
        return path

    def _download(self) -> bytes:
        """The content, once."""
        with urllib.request.urlopen(self.url, timeout=SILENCE_SECONDS) as response:
            content = response.read(self.n_bytes + 1)  # however much it sends
        fault = self._fault(content)
        if fault is not None:
            raise _OtherContentError(f"expected the file, found {fault}")
        return content

    def _fault(self, content: bytes) -> str | None:
        """What is wrong with the content."""
        if len(content) != self.n_bytes:
            more = " or more" if len(content) > self.n_bytes else ""
            return f"{len(content):,} bytes{more} in place of {self.n_bytes:,}"
        found = hashlib.sha256(content).hexdigest()
        return None if found == self.sha256 else f"sha256 {found} in place of {self.sha256}"


class _OtherContentError(ValueError):
    """A download that is not the file."""


# By their short names on the command line.
URL_PRESETS = {
    "shakespeare": UrlFile(
        name="tinyshakespeare.txt",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        n_bytes=1_115_394,
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    )
}
