"""Checkpoints of nanoGPT, build-nanogpt and llm.c become models of ours that compute the same."""

import dataclasses
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from safetensors.torch import load_file
from support.paths import TIKTOKEN_CACHE
from support.processes import run_process
from torch.nn import functional as F
from transformers import AutoTokenizer

from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.commands.convert import main
from modeling_gpt2scratch.data.tokens.tokenizer import train_tokenizer
from modeling_gpt2scratch.interchange.foreign_checkpoints import (
    ConversionError,
    from_llmc,
    from_nanogpt,
)

VOCAB_SIZE, N_ROWS, N_POSITIONS, N_EMBD, N_LAYER, N_HEAD = 61, 64, 12, 16, 3, 2
SIZES = dict(block_size=N_POSITIONS, n_layer=N_LAYER, n_head=N_HEAD, n_embd=N_EMBD)
IDS = torch.arange(2 * N_POSITIONS).view(2, -1) * 5 % VOCAB_SIZE
BLOCK = {  # in llm.c's order; outputs and inputs in multiples of N_EMBD
    **{"ln_1": (1,), "attn.c_attn": (3, 1), "attn.c_proj": (1, 1)},
    **{"ln_2": (1,), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)},
}


class Peer:
    """A GPT-2 under nanoGPT's names, with values that a mix-up would change."""

    def __init__(self, *, gelu: str, bias: bool = True, n_rows: int = N_ROWS, n_embd: int = N_EMBD):
        self.gelu, self.weights = gelu, {}
        generator = torch.Generator().manual_seed(0)
        layers = {f"h.{i}.{name}": shape for i in range(N_LAYER) for name, shape in BLOCK.items()}
        shapes = {name: [n * n_embd for n in shape] for name, shape in layers.items()}
        shapes |= {"wte": [n_rows, n_embd], "wpe": [N_POSITIONS, n_embd], "ln_f": [n_embd]}
        for name, shape in shapes.items():
            kinds = ("weight", "bias") if bias and name not in ("wte", "wpe") else ("weight",)
            for kind in kinds:
                values = torch.randn(shape if kind == "weight" else shape[:1], generator=generator)
                self.weights[f"transformer.{name}.{kind}"] = values * 0.3
        self.weights["lm_head.weight"] = self.weights["transformer.wte.weight"]

    def logits(self) -> torch.Tensor:
        """What it says to IDS about the real vocabulary, computed head by head."""
        get = self.weights.get

        def norm(name, x):
            return F.layer_norm(x, x.shape[-1:], get(f"{name}.weight"), get(f"{name}.bias"))

        def linear(name, x):
            return F.linear(x, get(f"{name}.weight"), get(f"{name}.bias"))

        unseen = torch.ones(N_POSITIONS, N_POSITIONS).triu(1).bool()
        hidden = get("transformer.wte.weight")[IDS] + get("transformer.wpe.weight")
        for block in (f"transformer.h.{i}" for i in range(N_LAYER)):
            parts = linear(f"{block}.attn.c_attn", norm(f"{block}.ln_1", hidden))
            parts = parts.tensor_split(3 * N_HEAD, dim=-1)
            heads = []
            for i in range(N_HEAD):
                query, key, value = parts[i::N_HEAD]
                scores = query @ key.mT / query.shape[-1] ** 0.5
                heads.append(scores.masked_fill(unseen, float("-inf")).softmax(-1) @ value)
            hidden = hidden + linear(f"{block}.attn.c_proj", torch.cat(heads, dim=-1))
            inner = linear(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", hidden))
            inner = F.gelu(inner, approximate=self.gelu)
            hidden = hidden + linear(f"{block}.mlp.c_proj", inner)
        return linear("lm_head", norm("transformer.ln_f", hidden))[..., :VOCAB_SIZE]


@dataclasses.dataclass
class GPTConfig:
    """What build-nanogpt pickles."""

    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int


def nanogpt_file(path: Path, peer: Peer, prefix: str = "", **model_args) -> Path:
    """A checkpoint as nanoGPT's train.py writes it."""
    sizes = SIZES | dict(vocab_size=len(peer.weights["transformer.wte.weight"]), dropout=0.1)
    checkpoint = {
        "model": {prefix + name: tensor for name, tensor in peer.weights.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 6e-4}]},
        "model_args": sizes | {"bias": "transformer.ln_f.bias" in peer.weights} | model_args,
        "iter_num": 3,
        "best_val_loss": torch.tensor(2.5),
        "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True},
    }
    torch.save(checkpoint, path)
    return path


def build_nanogpt_file(path: Path, peer: Peer, monkeypatch, module: str = "__main__") -> Path:
    """A checkpoint as build-nanogpt's train_gpt2.py writes it: its configuration is pickled."""
    weights = peer.weights | {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4).tril()}
    config = GPTConfig(**SIZES, vocab_size=N_ROWS)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module, sys.modules.get(module, types.ModuleType(module)))
        patch.setattr(sys.modules[module], "GPTConfig", GPTConfig, raising=False)
        patch.setattr(GPTConfig, "__module__", module)
        torch.save({"model": weights, "config": config, "step": 7, "val_loss": 3.25}, path)
    return path


def llmc_file(path: Path, peer: Peer, dtype: torch.dtype = torch.float32, **header) -> Path:
    """A checkpoint as llm.c writes it: a padded embedding, and blocks tensor by tensor."""
    version = {torch.float32: 3, torch.bfloat16: 5}[dtype]
    words = dict(magic=20240326, version=version, n_positions=N_POSITIONS, vocab_size=VOCAB_SIZE)
    words |= dict(n_layer=N_LAYER, n_head=N_HEAD, n_embd=N_EMBD, n_rows=N_ROWS) | header
    block = [f"{name}.{kind}" for name in BLOCK for kind in ("weight", "bias")]
    names = [f"h.{i}.{name}" for name in block for i in range(N_LAYER)]
    names = ["wte.weight", "wpe.weight", *names, "ln_f.weight", "ln_f.bias"]
    tensors = [peer.weights[f"transformer.{name}"].to(dtype).view(torch.uint8) for name in names]
    content = np.array([*words.values(), *[0] * 248], dtype="<i4").tobytes()
    path.write_bytes(content + b"".join(tensor.numpy().tobytes() for tensor in tensors))
    return path


def convert(command: str, path: Path, *flags) -> GPT2ScratchForCausalLM:
    """The model that the command line makes of a file, loaded again."""
    out = path.with_name("out")
    main([command, str(path), str(out), *map(str, flags)])
    return GPT2ScratchForCausalLM.from_pretrained(out).eval()


def assert_same(model: GPT2ScratchForCausalLM, peer: Peer) -> None:
    """The logits agree on the real vocabulary."""
    with torch.no_grad():
        torch.testing.assert_close(model.float()(IDS).logits, peer.logits(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_a_nanogpt_checkpoint_gives_the_same_logits(tmp_path, capsys, bias, prefix):
    peer = Peer(gelu="none", bias=bias)
    path = nanogpt_file(tmp_path / "ckpt.pt", peer, prefix)
    model = convert("from-nanogpt", path, "--vocab_size", VOCAB_SIZE)
    assert_same(model, peer)
    config = model.config
    assert config.activation_function == "gelu" and config.tie_word_embeddings
    assert config.resid_pdrop == config.attn_pdrop == config.embd_pdrop == 0.1
    assert config.eos_token_id is None and config.vocab_size == VOCAB_SIZE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "no tokenizer known for 61 entries; --tokenizer names one"
    assert "vocabulary 61, activation gelu, without tokenizer" in lines[1]


@pytest.mark.parametrize("module", ["__main__", "train_gpt2"])
def test_a_build_nanogpt_checkpoint_gives_the_same_logits(tmp_path, monkeypatch, module):
    peer = Peer(gelu="tanh")
    path = build_nanogpt_file(tmp_path / "model_00007.pt", peer, monkeypatch, module)
    model = convert("from-nanogpt", path, "--vocab_size", VOCAB_SIZE)
    assert_same(model, peer)
    assert model.config.activation_function == "gelu_new"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_llmc_checkpoint_gives_the_same_logits_in_its_own_dtype(tmp_path, dtype):
    peer = Peer(gelu="tanh")
    peer.weights = {name: tensor.to(dtype).float() for name, tensor in peer.weights.items()}
    model = convert("from-llmc", llmc_file(tmp_path / "model.bin", peer, dtype))
    assert model.dtype == dtype and model.config.vocab_size == VOCAB_SIZE
    assert_same(model, peer)


def test_weights_keep_their_bits(tmp_path):
    peer = Peer(gelu="none")
    convert("from-nanogpt", nanogpt_file(tmp_path / "ckpt.pt", peer))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert len(stored) == 2 + 12 * N_LAYER + 2
    for ours, theirs in {
        "transformer.wte.weight": "transformer.wte.weight",
        "transformer.h.2.ln_2.bias": "transformer.h.2.ln_2.bias",
        "transformer.h.1.attn.qkv_proj.weight": "transformer.h.1.attn.c_attn.weight",
        "transformer.h.1.attn.o_proj.bias": "transformer.h.1.attn.c_proj.bias",
        "transformer.h.0.mlp.up_proj.weight": "transformer.h.0.mlp.c_fc.weight",
        "transformer.h.0.mlp.down_proj.weight": "transformer.h.0.mlp.c_proj.weight",
    }.items():
        assert torch.equal(stored[ours], peer.weights[theirs])


def test_a_head_of_its_own_stays_one(tmp_path):
    peer = Peer(gelu="none")
    peer.weights["lm_head.weight"] = peer.weights["lm_head.weight"].flip(0)
    model = convert("from-nanogpt", nanogpt_file(tmp_path / "a.pt", peer), "--vocab_size", 61)
    assert not model.config.tie_word_embeddings
    assert_same(model, peer)


def test_weights_of_two_dtypes_take_the_one_that_holds_both(tmp_path):
    peer = Peer(gelu="none")
    name = "transformer.h.0.mlp.c_fc.weight"
    peer.weights[name] = peer.weights[name].bfloat16()
    model = from_nanogpt(nanogpt_file(tmp_path / "ckpt.pt", peer))
    assert model.dtype == torch.float32
    assert torch.equal(model.transformer.h[0].mlp.up_proj.weight, peer.weights[name].float())


def test_a_bare_state_dict_needs_heads_and_activation(tmp_path, capsys):
    peer, path = Peer(gelu="tanh"), tmp_path / "weights.pt"
    torch.save(peer.weights, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ConversionError, match="add --n_head and --activation"):
        from_nanogpt(path, n_head=N_HEAD)
    flags = ("--n_head", N_HEAD, "--activation", "gelu_new", "--vocab_size", VOCAB_SIZE)
    assert_same(convert("from-nanogpt", path, *flags), peer)


@pytest.fixture
def gpt2_files(monkeypatch):
    """OpenAI's two tokenizer files."""
    if not TIKTOKEN_CACHE.is_dir():
        pytest.skip(f"needs GPT-2's vocab.bpe and encoder.json in {TIKTOKEN_CACHE}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_CACHE))


def test_a_padded_gpt2_vocabulary_is_cut_and_gets_gpt2s_tokenizer(tmp_path, gpt2_files):
    peer = Peer(gelu="none", n_rows=50304, n_embd=4)
    model = convert("from-nanogpt", nanogpt_file(tmp_path / "ckpt.pt", peer, n_embd=4))
    assert model.config.vocab_size == len(model.transformer.wte.weight) == 50257
    assert model.config.eos_token_id == model.generation_config.pad_token_id == 50256
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_max_length == N_POSITIONS
    text = "naïve 狐\n\n  x"
    assert tokenizer(text)["input_ids"] == tiktoken.get_encoding("gpt2").encode(text)

    main(["to-gpt2", str(tmp_path / "out"), str(tmp_path / "stock")])
    originals = {file.name: file.read_text() for file in TIKTOKEN_CACHE.iterdir()}
    vocabulary = json.loads(originals["6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"])
    merges = originals["6d1cbeee0f20b3d9449abfede4726ed8212e3aee"]
    assert json.loads((tmp_path / "stock" / "vocab.json").read_text()) == vocabulary
    assert (tmp_path / "stock" / "merges.txt").read_text().splitlines() == merges.splitlines()


def test_a_tokenizer_that_is_named_goes_with_the_model(tmp_path, capsys):
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, 270)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    flags = ("--tokenizer", tmp_path / "tokenizer")
    path = nanogpt_file(tmp_path / "small.pt", Peer(gelu="none"))
    with pytest.raises(SystemExit, match="expected at most 64 entries .* found 269"):
        convert("from-nanogpt", path, *flags)
    path = nanogpt_file(tmp_path / "large.pt", Peer(gelu="none", n_rows=272))
    model = convert("from-nanogpt", path, *flags)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 268
    with pytest.raises(SystemExit, match="or --tokenizer none"):
        convert("from-nanogpt", path, "--tokenizer", tmp_path, "--overwrite")


# Refusals


def changed_weights(**changes):
    peer = Peer(gelu="none")
    peer.weights |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    peer.weights = {name: tensor for name, tensor in peer.weights.items() if tensor is not None}
    return peer


@pytest.mark.parametrize(
    ("weights", "model_args", "expected"),
    [
        ({"transformer__h__2__mlp__c_fc__weight": None}, {}, "h.2.mlp.c_fc.weight .* found none"),
        ({"transformer__h__1__ln_2__bias": None}, {}, "h.1.ln_2.bias .* found none"),
        ({"transformer__wpe__weight": torch.ones(9, 16)}, {}, r"wpe.weight .*found \(9, 16\)"),
        ({"transformer__rope": torch.ones(2)}, {}, "found also transformer.rope"),
        ({"lm_head__weight": torch.ones(61, 16)}, {}, r"lm_head.weight .* found \(61, 16\)"),
        ({"transformer__ln_f__bias": torch.ones(16).int()}, {}, "ln_f.bias.* found torch.int32"),
        ({"transformer__ln_f__bias": "text"}, {}, "ln_f.bias.* found str"),
        ({}, {"n_layer": 2}, "found also transformer.h.2"),
        ({}, {"n_layer": 10**9}, "h.3.ln_1.weight .* found none"),
        ({}, {"n_head": 3}, "multiple of n_head=3"),
        ({}, {"n_head": 0}, "expected n_head above 0, found 0"),
        ({}, {"use_rmsnorm": True}, r"found also \['use_rmsnorm'\]"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path, weights, model_args, expected):
    path = nanogpt_file(tmp_path / "ckpt.pt", changed_weights(**weights), **model_args)
    with pytest.raises(ConversionError, match=expected):
        from_nanogpt(path)


class Attack:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.slow
def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path):
    path = nanogpt_file(tmp_path / "ckpt.pt", Peer(gelu="none"), bias=Attack(tmp_path / "pwned"))
    command = [sys.executable, "-m", "modeling_gpt2scratch", "convert", "from-nanogpt"]
    command += [str(path), str(tmp_path / "out")]
    process = run_process(command)
    assert process.returncode == 1 and process.stdout == ""
    assert process.stderr == (
        f"gpt2scratch convert from-nanogpt: error: {path}: expected a checkpoint of tensors and "
        f"plain values, found a pickled io.open, which could execute code\n"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["ckpt.pt"]


@pytest.mark.parametrize("kept_bytes", [0, 3, 900, -40])
def test_a_truncated_checkpoint_is_refused_in_one_line(tmp_path, kept_bytes):
    path = nanogpt_file(tmp_path / "ckpt.pt", Peer(gelu="none"))
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ConversionError) as error:
        from_nanogpt(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("header", "kept_bytes", "expected"),
    [
        ({"magic": 20240520}, None, "begins with 20240326, found 256 words .20240520."),
        ({}, 0, "found an empty file; copy or download it again"),
        ({}, 1000, "found 250 words"),
        ({"version": 2}, None, "expected version 3 .* found version 2"),
        ({"n_rows": 0}, None, "sizes above 0"),  # a version 3 of some weeks had no padding
        ({}, -4, "expected 48,5.. bytes|expected [0-9,]+ bytes for 3 layers of 16 channels"),
        ({"n_layer": 2**31 - 1, "n_embd": 2**31 - 1}, None, "expected [0-9,]+ bytes"),
        ({"vocab_size": 65}, None, "at most 64, found 65"),
        ({"n_head": 3}, None, "multiple of n_head=3"),
    ],
)
def test_an_llmc_file_that_is_wrong_is_refused(tmp_path, header, kept_bytes, expected):
    path = llmc_file(tmp_path / "model.bin", Peer(gelu="tanh"), **header)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ConversionError, match=expected) as error:
        from_llmc(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("command", ["from-nanogpt", "from-llmc"])
def test_a_missing_file_is_refused_with_code_1(tmp_path, command):
    with pytest.raises(
        SystemExit, match="none: expected to read or write it, found No such file or directory"
    ):
        convert(command, tmp_path / "none")


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    for name in ("wte.weight", "h.1.ln_2.bias"):
        peer = Peer(gelu="tanh")
        peer.weights[f"transformer.{name}"].view(-1)[5] = torch.inf if "wte" in name else torch.nan
        expected = f"expected finite weights, found nan or infinity in transformer.{name}; take an"
        with pytest.raises(ConversionError, match=expected):
            from_nanogpt(nanogpt_file(tmp_path / "ckpt.pt", peer))
        with pytest.raises(ConversionError, match=expected):
            from_llmc(llmc_file(tmp_path / "model.bin", peer))
