"""What a training run may want from the network: a tokenizer, the Hub and wandb.

A run can do without each of them, so nothing here is worse than a warning. Tokens are sent to the
server that they belong to, and never printed.
"""

import importlib.util
import netrc
import os
from urllib.parse import urlsplit

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import get_session

from modeling_gpt2scratch.common.addresses import redacted
from modeling_gpt2scratch.data.tokens.names import GPT2, TokenizerError
from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer

from .machine import CheckResult

REQUEST_SECONDS = 8.0
WANDB_ADDRESS = "https://api.wandb.ai"


def check_tokenizer() -> CheckResult:
    """GPT-2's tokenizer is at hand, or can be downloaded."""
    try:
        tokenizer = load_tokenizer(GPT2)
    except TokenizerError as error:
        return CheckResult("warning", "not available", str(error).partition("; ")[2])
    return CheckResult("ok", f"{len(tokenizer):,} entries")


def check_hub() -> CheckResult:
    """The Hub answers, and takes the token if there is one."""
    if constants.HF_HUB_OFFLINE:
        return CheckResult(
            "ok", "not checked, because HF_HUB_OFFLINE is set; only the cache is used"
        )
    token = get_token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    status = _status_of(f"{constants.ENDPOINT}/api/whoami-v2", headers)
    if status is None:
        advice = "HF_HUB_OFFLINE=1 for what is in the cache, HF_ENDPOINT for a mirror"
        return CheckResult("warning", f"{redacted(constants.ENDPOINT)} is not reachable", advice)
    if not token:
        return CheckResult("ok", "reachable, no token; pushing needs one (hf auth login)")
    if status == 200:
        return CheckResult("ok", "reachable, and the token is valid")
    found = f"reachable, but it refuses the token (HTTP {status})"
    return CheckResult("warning", found, "hf auth login")


def check_wandb() -> CheckResult:
    """wandb answers and there is a key, if it is installed and to be used online."""
    if importlib.util.find_spec("wandb") is None:
        return CheckResult("ok", "not installed; metrics.jsonl is always written")
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        return CheckResult("ok", f"WANDB_MODE={mode}: nothing is sent")
    address = os.environ.get("WANDB_BASE_URL", WANDB_ADDRESS)
    if not _has_wandb_key(address):
        return CheckResult("warning", "no key", "wandb login, or WANDB_MODE=offline")
    if _status_of(address, {}) is None:
        return CheckResult(
            "warning", f"{redacted(address)} is not reachable", "WANDB_MODE=offline; sync later"
        )
    return CheckResult("ok", "reachable, and there is a key")


def _status_of(address: str, headers: dict[str, str]) -> int | None:
    """The HTTP status that the server answers with, None if it does not answer."""
    try:
        answer = get_session().get(address, headers=headers, timeout=REQUEST_SECONDS)
    except (HTTPError, OSError, ValueError):  # the last of a token that no header can hold
        return None
    return answer.status_code


def _has_wandb_key(address: str) -> bool:
    """Whether `wandb login` has been run for this server, or a key is in the environment."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        entries = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return entries.authenticators(urlsplit(address).hostname or "") is not None
