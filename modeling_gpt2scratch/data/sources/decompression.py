"""The bytes of a compressed file, each checked with the checksum that its format carries.

All end with an error if the data are damaged (a .zst may carry no checksum, and then only by what
cannot be decoded), end too early, or are followed by something else.
"""

import gzip
import io
import lzma
import sys
import zlib
from pathlib import Path

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESSIONS = (".gz", ".zst", ".xz")
DAMAGES = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstd.ZstdError)
CHUNK_BYTES = 1 << 20  # of compressed data at a time
WINDOW = zstd.DecompressionParameter.window_log_max


def decompressed(path: Path, suffix: str) -> io.RawIOBase | io.BufferedIOBase:
    """A file's content, read as the ending of its name says."""
    if suffix == ".gz":
        return gzip.open(path)
    if suffix == ".xz":
        return _XzFile(path)
    if suffix == ".zst":  # `zstd --long=31` writes the longest window that there is
        return zstd.ZstdFile(path, options={WINDOW: WINDOW.bounds()[1]})
    return open(path, "rb", buffering=0)


class _XzFile(io.RawIOBase):
    """The streams of an .xz file; `lzma.open` passes silently over one with a damaged header."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer with the next bytes; 0 is the end."""
        content = b""
        while not content:
            chunk = b""
            if self._stream.eof:
                chunk = self._next_stream()
                if not chunk:
                    return 0
            elif self._stream.needs_input:
                chunk = self._file.read(CHUNK_BYTES)
                if not chunk:
                    raise EOFError("Compressed file ended before the end-of-stream marker")
            content = self._stream.decompress(chunk, len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _next_stream(self) -> bytes:
        """Begins another stream and returns its first bytes; none at the end of the file."""
        # Streams may be padded with zeros.
        chunk = self._stream.unused_data.lstrip(b"\0")
        while not chunk:
            chunk = self._file.read(CHUNK_BYTES)
            if not chunk:
                return b""
            chunk = chunk.lstrip(b"\0")
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        return chunk
