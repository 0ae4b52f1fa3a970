"""Our models become stock gpt2, bit for bit, or are refused in one line."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.paths import TIKTOKEN_CACHE
from support.processes import run_process
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
from modeling_gpt2scratch.checkpoints.checkpoint import save_model
from modeling_gpt2scratch.commands.convert import ACTIVATIONS, main
from modeling_gpt2scratch.configuration_gpt2scratch import GELU_APPROXIMATION
from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer, train_tokenizer
from modeling_gpt2scratch.interchange.conversion import limits_in_llama_cpp, save_converted

N_LAYER = 2
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [255, 264, 260, 0, 261, 268, 7, 7]])
VARIANTS = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "untied": {"tie_word_embeddings": False, "n_inner": 40},
    "exact GELU": {"activation_function": "gelu", "resid_pdrop": 0.1},
}
OUR_NAMES = {
    "attn.c_attn": "attn.qkv_proj",
    "attn.c_proj": "attn.o_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
# Loads directories as a program that knows nothing of this package, and prints the logits.
LOAD_WITHOUT_PACKAGE = """
import sys
sys.modules["modeling_gpt2scratch"] = None
import json, torch
from transformers import AutoModelForCausalLM
for directory in sys.argv[2:]:
    options = {"trust_remote_code": False, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(directory, **options)
    with torch.no_grad():
        logits = model(torch.tensor(json.loads(sys.argv[1]))).logits
    print(json.dumps([type(model).__name__, logits.tolist()]))
"""


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Each variant's run and its export. Every parameter has values that a mix-up would change."""
    directory = tmp_path_factory.mktemp("exports")
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, 280)
    end_of_text = tokenizer.eos_token_id
    paths = {}
    for name, changes in VARIANTS.items():
        fields = dict(n_positions=8, n_embd=16, n_layer=N_LAYER, n_head=2) | changes
        fields |= dict(bos_token_id=end_of_text, eos_token_id=end_of_text)
        dtype = fields.pop("dtype", torch.float32)
        model = GPT2ScratchForCausalLM(GPT2ScratchConfig(vocab_size=len(tokenizer), **fields))
        model.generation_config.pad_token_id = end_of_text
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        run, out = directory / name, directory / f"{name} out"
        run.mkdir()
        save_model(model.to(dtype), tokenizer, run)
        main(["to-gpt2", str(run), str(out)])
        paths[name] = run, out
    return paths


def refusal(capsys, *arguments) -> tuple[int, str]:
    """Exit code and the one line that goes to stderr."""
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in arguments])
    code, line = error.value.code, capsys.readouterr().err
    if isinstance(code, str):  # Python prints it on the way out
        code, line = 1, code + "\n"
    assert line.count("\n") == 1 and line.startswith("gpt2scratch convert ")
    return code, line


@pytest.mark.slow
def test_a_process_without_the_package_gets_the_same_logits(exports, tmp_path):
    command = [sys.executable, "-c", LOAD_WITHOUT_PACKAGE, json.dumps(IDS.tolist())]
    command += [str(out) for _, out in exports.values()]
    process = run_process(command, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    for (run, _), line in zip(exports.values(), process.stdout.splitlines(), strict=True):
        name, logits = json.loads(line)
        assert name == "GPT2LMHeadModel"
        ours = GPT2ScratchForCausalLM.from_pretrained(run, dtype=torch.float32).eval()
        with torch.no_grad():
            torch.testing.assert_close(torch.tensor(logits), ours(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_export_holds_the_same_bits_transposed_and_loads_back_as_ours(exports, variant):
    run, out = exports[variant]
    ours, stock = load_file(run / "model.safetensors"), load_file(out / "model.safetensors")
    back = GPT2ScratchForCausalLM.from_pretrained(out).state_dict()
    assert len(stock) == len(ours) == 2 + 12 * N_LAYER + 2 + (variant == "untied")
    for name, tensor in stock.items():
        is_projection = name.endswith((".c_attn.weight", ".c_fc.weight", ".c_proj.weight"))
        for theirs, our in OUR_NAMES.items():
            name = name.replace(f".{theirs}.", f".{our}.")
        assert tensor.dtype == ours[name].dtype == VARIANTS[variant].get("dtype", torch.float32)
        assert torch.equal(tensor.t() if is_projection else tensor, ours[name])
        assert torch.equal(back[name], ours[name])


def test_an_export_is_a_stock_directory_that_everybody_may_read(exports):
    run, out = exports["exact GELU"]
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "gpt2" and config["architectures"] == ["GPT2LMHeadModel"]
    assert config["activation_function"] == "gelu" and config["resid_pdrop"] == 0.1
    assert config["dtype"] == "float32" and "auto_map" not in config
    assert config["n_ctx"] == config["n_positions"] == 8  # llama.cpp reads the first
    assert {file.name for file in out.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
        *("tokenizer_config.json", "vocab.json", "merges.txt", ".gpt2scratch.json"),
    }
    assert len({file.stat().st_mode for file in out.iterdir()}) == 1
    generation = [json.loads((path / "generation_config.json").read_text()) for path in (run, out)]
    assert generation[0] == generation[1] and generation[0]["pad_token_id"] is not None


def test_the_classic_vocabulary_files_make_the_same_tokenizer(exports):
    _, out = exports["float32"]
    classic = ByteLevelBPETokenizer(str(out / "vocab.json"), str(out / "merges.txt"))
    text = "the cat sat on a naïve mat\n\n  12"
    assert classic.encode(text).ids == AutoTokenizer.from_pretrained(out)(text)["input_ids"]


def test_a_checkpoint_without_tokenizer_is_exported_without(exports, tmp_path, capsys):
    run, _ = exports["float32"]
    (tmp_path / "run").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "run" / name).write_bytes((run / name).read_bytes())
    main(["to-gpt2", str(tmp_path / "run"), str(tmp_path / "new" / "out")])
    assert capsys.readouterr().out == (
        f"{tmp_path}/new/out: gpt2 model of 11,024 parameters in float32, vocabulary 269, "
        f"activation gelu_new, without tokenizer\n"
    )
    assert not list((tmp_path / "new" / "out").glob("*token*"))


def test_an_export_says_what_llama_cpp_will_refuse(exports, tmp_path, capsys):
    tokenizer = "llama.cpp: expected GPT-2's tokenizer, found another, of which its converter may "
    n_inner = "llama.cpp: expected n_inner of 64 (4 * n_embd), found 40; "
    for variant, expected in {"float32": [tokenizer], "untied": [tokenizer, n_inner]}.items():
        main(["to-gpt2", str(exports[variant][0]), str(tmp_path / variant)])
        _, *lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(expected)
        assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))


def test_llama_cpp_takes_gpt2s_own_tokenizer(tmp_path, monkeypatch):
    if not TIKTOKEN_CACHE.is_dir():
        pytest.skip(f"needs GPT-2's tokenizer in {TIKTOKEN_CACHE}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_CACHE))
    config = GPT2Config(n_layer=1, n_head=1, n_embd=2, n_positions=8, n_inner=8)
    model = GPT2LMHeadModel(config)
    save_converted(model, load_tokenizer("gpt2"), tmp_path)
    assert limits_in_llama_cpp(model, tmp_path) == []


@pytest.mark.parametrize("problem", ["missing", "unexpected", "mismatched"])
def test_a_run_with_other_tensors_than_its_config_says_is_refused(
    exports, tmp_path, capsys, problem
):
    run, _ = exports["float32"]
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    tensors = load_file(run / "model.safetensors")
    weight = tensors.pop("transformer.h.1.mlp.up_proj.weight")
    if problem != "missing":
        tensors["transformer.h.1.mlp.up_proj.weight"] = weight[1:] if problem[0] == "m" else weight
    if problem == "unexpected":
        tensors["transformer.h.1.mlp.up_proj.weight.scale"] = weight[:1].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    code, line = refusal(capsys, "to-gpt2", tmp_path, tmp_path / "out")
    assert code == 1 and "transformer.h.1.mlp.up_proj.weight" in line
    if problem == "mismatched":
        assert "up_proj.weight of shape (64, 16), found (63, 16)" in line
    else:
        assert f"{problem} keys: " in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "expected a finished run"),
        ("{", "config.json: expected a JSON object, found "),
        ('{"model_type": "llama"}', "expected a gpt2scratch model, found llama"),
        ('{"model_type": "gpt2scratch"}', "cannot be loaded"),
    ],
)
def test_a_directory_that_is_no_model_of_ours_is_refused(tmp_path, capsys, content, expected):
    if content:
        (tmp_path / "config.json").write_text(content)
    code, line = refusal(capsys, "to-gpt2", tmp_path, tmp_path / "out")
    assert code == 1 and expected in line


def test_a_run_with_an_adapter_beside_it_is_refused(exports, tmp_path, capsys):
    run = shutil.copytree(exports["untied"][0], tmp_path / "run")
    (run / "adapter_config.json").write_text("{}")
    code, line = refusal(capsys, "to-gpt2", run, tmp_path / "out")
    assert code == 1 and "expected a model alone, found adapter_config.json beside it" in line


def test_an_output_in_use_is_kept_unless_it_may_be_overwritten(exports, tmp_path, capsys):
    run, _ = exports["float32"]
    (tmp_path / "notes.txt").write_text("mine")
    assert refusal(capsys, "to-gpt2", run, tmp_path)[0] == 2
    out = tmp_path / "out"
    main(["to-gpt2", str(run), str(out)])
    (out / "old").touch()
    code, line = refusal(capsys, "to-gpt2", run, out)
    assert code == 2 and "--overwrite" in line and (out / "old").exists()
    main(["to-gpt2", str(run), str(out), "--overwrite"])
    assert (out / "config.json").exists() and not (out / "old").exists()


@pytest.mark.parametrize("inside", ["", "checkpoint-3"])
def test_an_output_that_holds_the_source_is_never_replaced(exports, tmp_path, capsys, inside):
    run, _ = exports["float32"]
    source = tmp_path / "run" / inside
    source.mkdir(parents=True)
    for directory in (tmp_path / "run", source):
        (directory / "config.json").write_bytes((run / "config.json").read_bytes())
    code, line = refusal(capsys, "to-gpt2", source, tmp_path / "run", "--overwrite")
    assert code == 2 and "choose another" in line and source.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("to-gpt3", "a", "b"),
        ("to-gpt2", "a"),
        ("from-llmc", "a", "b", "--n_head", "2"),
        ("from-nanogpt", "a", "b", "--n_head", "0"),
        ("from-nanogpt", "a", "b", "--activation", "relu"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_knows_the_activations_of_the_model():
    assert tuple(GELU_APPROXIMATION) == ACTIVATIONS
