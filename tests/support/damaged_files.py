"""Files of tensors as they arrive when something went wrong on the way."""

import struct

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 548105171\n"
# What happened to a safetensors file, and what is then found.
DAMAGES = {
    "cut": "incomplete metadata, .*; copy or download it again",
    "cut in the header": "invalid header length; copy",
    "empty": "an empty file; copy",
    "Git-LFS pointer": "a Git-LFS pointer; run `git lfs pull` there",
    "huge header": "header too large; copy",
    "header beyond the end": "invalid header length; copy",
    "no JSON": "invalid JSON in header: .*; copy",
    "web page": "a web page; download the file itself",
}


def damaged(content: bytes, damage: str) -> bytes:
    """A safetensors file after that damage."""
    return {
        "cut": content[:-5],
        "cut in the header": content[:20],
        "empty": b"",
        "Git-LFS pointer": LFS_POINTER,
        "huge header": struct.pack("<Q", 1 << 40) + content[8:],
        "header beyond the end": struct.pack("<Q", len(content)) + content[8:],
        "no JSON": content[:8] + b"!" + content[9:],
        "web page": b"<!DOCTYPE html><html><body>404: not found</body></html>",
    }[damage]
