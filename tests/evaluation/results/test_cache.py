"""What keeps results for a later call, and what makes them no longer count."""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from support import evaluation as tiny
from support.evaluation import compare
from support.paths import REPOSITORY
from support.processes import run_process
from support.servers.fake_hub import serve

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
from modeling_gpt2scratch.evaluation import measuring
from modeling_gpt2scratch.evaluation.configuration import CACHE_FOLDER
from modeling_gpt2scratch.evaluation.measuring import cache_key
from modeling_gpt2scratch.evaluation.results import fingerprints
from modeling_gpt2scratch.evaluation.results.cache import ResultCache
from modeling_gpt2scratch.evaluation.results.fingerprints import evaluation_code, model_code

PACKAGE = REPOSITORY / "modeling_gpt2scratch"
FIELDS = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.3}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with a model of this package and its tokenizer."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = tiny.tiny_tokenizer()
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    GPT2ScratchForCausalLM(GPT2ScratchConfig(**FIELDS | tokens)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def arguments(tmp_path):
    """A command line of two tasks on one file, without models."""
    rows = [json.dumps({"text": f"the cat sat on {'a ' * i}the mat"}) + "\n" for i in range(9)]
    (tmp_path / "lambada_test.jsonl").write_text("".join(rows))
    return [
        *("--tasks", "lambada", "lambada:bos", "--data_dir", str(tmp_path), "--device", "cpu"),
        *("--output_dir", str(tmp_path / "out")),
    ]


def read(tmp_path):
    """The only model of the results."""
    (model,) = json.loads((tmp_path / "out" / "results.json").read_text())["models"].values()
    return model


def run_script(script, tmp_path, arguments, **environment):
    """A comparison in a process of its own, which must succeed."""
    command = [sys.executable, str(script), *arguments]
    finished = run_process(command, cwd=tmp_path, env=os.environ | environment)
    assert finished.returncode == 0, finished.stderr[-3000:]


def test_results_that_cannot_be_kept_are_reported_all_the_same(model, arguments, tmp_path, capsys):
    place = tmp_path / "file" / "cache"
    (tmp_path / "file").write_text("no directory")
    options = ["--models", str(model), "--cache_dir", str(place)]
    assert compare.main([*arguments, *options]) == 0
    output = capsys.readouterr()
    assert output.err.count(f"{place}: expected to keep results here, found ") == 1
    assert output.out.count("±") > 4
    assert set(read(tmp_path)["results"]) == {"lambada", "lambada:bos"}


def test_weights_replaced_while_the_model_loads_are_no_measurement_of_the_new_ones(
    model, arguments, tmp_path, monkeypatch, capsys
):
    own, load = tmp_path / "model", measuring.load_scorer
    shutil.copytree(model, own)

    def load_and_replace(*args, **options):
        scorer = load(*args, **options)
        tiny.tiny_gpt2(scorer.tokenizer).save_pretrained(own)
        return scorer

    monkeypatch.setattr(measuring, "load_scorer", load_and_replace)
    assert compare.main([*arguments, "--models", str(own)]) == 1
    expected = "expected model.safetensors as it was before, found it changed while the model"
    assert expected in capsys.readouterr().err
    assert not read(tmp_path)["results"]
    assert not (tmp_path / "out" / CACHE_FOLDER).exists()
    monkeypatch.undo()
    assert compare.main([*arguments, "--models", str(own)]) == 0
    assert (tmp_path / "out" / CACHE_FOLDER).exists()


def test_a_measurement_is_kept_before_it_is_told(model, arguments, tmp_path, monkeypatch):
    n_kept = []

    def tell(text, **options):
        n_kept.append(len(list((tmp_path / "out" / "evaluation_cache").iterdir())))

    monkeypatch.setattr(measuring, "tell", tell)
    assert compare.main([*arguments, "--models", str(model)]) == 0
    assert n_kept == [1, 2]


@pytest.mark.gate
@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>/dev/full"])
def test_a_comparison_needs_nobody_who_reads_its_messages(model, arguments, tmp_path, streams):
    if "full" in streams and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    script = str(REPOSITORY / "evaluate" / "compare.py")
    command = [sys.executable, script, *arguments, "--models", str(model)]
    finished = run_process(["sh", "-c", f'"$@" {streams}', "sh", *command], cwd=tmp_path)
    assert finished.returncode == 0
    assert set(read(tmp_path)["results"]) == {"lambada", "lambada:bos"}


def test_files_that_cannot_be_written_leave_the_table(model, arguments, tmp_path, capsys):
    (tmp_path / "out" / "results.json").mkdir(parents=True)
    assert compare.main([*arguments, "--models", str(model)]) == 1
    output = capsys.readouterr()
    assert "| lambada " in output.out and output.out.count("±") > 4
    assert "--output_dir: expected to write to" in output.err


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a directory without files")
def test_an_output_directory_that_cannot_be_written_to_is_a_bad_argument(model, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        compare.main([*arguments, "--models", str(model), "--output_dir", "/proc/self"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "--output_dir: expected a directory that can be written to, found" in error
    assert error.count("\n") == 1


def test_files_that_come_only_while_a_model_is_loaded_are_in_the_key(model, arguments, monkeypatch):
    arguments = [*arguments, "--models", str(model)]
    identify, load = measuring._identify, measuring.load_scorer
    is_here, keys = [], []

    def identify_what_is_here(name, config):
        files, *others = identify(name, config)
        return files if is_here else {"config.json": files["config.json"]}, *others

    monkeypatch.setattr(measuring, "_identify", identify_what_is_here)
    monkeypatch.setattr(
        measuring, "load_scorer", lambda *a, **k: is_here.append(1) or load(*a, **k)
    )
    monkeypatch.setattr(ResultCache, "write", lambda self, key, *_: keys.append(key))
    assert compare.main(arguments) == 0
    assert all("model.safetensors" in key["model"] for key in keys) and keys


@pytest.mark.gate
def test_a_model_that_comes_from_the_hub_only_now_is_kept_under_its_checksums(
    model, arguments, tmp_path
):
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    script = REPOSITORY / "evaluate" / "compare.py"
    with serve("someone/tiny", files, kind="models") as hub:
        environment = hub.environment(tmp_path)
        run_script(script, tmp_path, [*arguments, "--models", "someone/tiny"], **environment)
    found = read(tmp_path)
    weights = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert found["model_sha256"]["model.safetensors"] == weights
    assert set(found["from_cache"].values()) == {False}
    assert len(list((tmp_path / "out" / "evaluation_cache").iterdir())) == 2


@pytest.mark.gate
def test_a_model_whose_code_was_edited_is_measured_again(model, arguments, tmp_path):
    for folder in (REPOSITORY / "evaluate", PACKAGE):
        shutil.copytree(folder, tmp_path / folder.name)
    script, arguments = tmp_path / "evaluate" / "compare.py", [*arguments, "--models", str(model)]
    run_script(script, tmp_path, arguments, PYTHONPATH=str(tmp_path))
    first = read(tmp_path)
    path = tmp_path / PACKAGE.name / "modeling_gpt2scratch.py"
    with path.open("a") as file:  # every product twice as large
        file.write("\n_forward = nn.Linear.forward\n")
        file.write("nn.Linear.forward = lambda self, x: 2 * _forward(self, x)\n")
    run_script(script, tmp_path, arguments, PYTHONPATH=str(tmp_path))
    second = read(tmp_path)
    assert set(second["from_cache"].values()) == {False}
    perplexities = [found["results"]["lambada"]["perplexity,none"] for found in (first, second)]
    assert perplexities[0] != perplexities[1]


def test_code_of_the_evaluation_counts_whatever_is_edited(model, arguments, tmp_path, monkeypatch):
    shutil.copytree(fingerprints.FOLDER, tmp_path / "evaluate")
    monkeypatch.setattr(fingerprints, "FOLDER", tmp_path / "evaluate")
    command = [*arguments, "--models", str(model)]
    hits = []
    for edited in (None, None, "scoring/scorer.py", None):
        if edited:
            with (tmp_path / "evaluate" / edited).open("a") as file:
                file.write("# edited\n")
        evaluation_code.cache_clear()
        assert compare.main(command) == 0
        hits.append(all(read(tmp_path)["from_cache"].values()))
    evaluation_code.cache_clear()
    assert hits == [False, True, False, True]


def test_code_of_a_model_is_that_of_its_type_unless_a_library_has_it(model, tmp_path):
    tiny.tiny_gpt2(tiny.tiny_tokenizer()).save_pretrained(tmp_path / "stock")
    assert model_code(str(tmp_path / "stock"), trust_remote_code=False) is None
    assert model_code(str(tmp_path / "nowhere"), trust_remote_code=False) is None
    digest = hashlib.sha256()
    for part in ("configuration", "loading", "loss", "modeling"):
        path = PACKAGE / f"{part}_gpt2scratch.py"
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    assert model_code(str(model), trust_remote_code=False) == digest.hexdigest()


OWN_MODEL = """
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel


class OwnConfig(GPT2Config):
    model_type = "own-{number}"


class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig


AutoConfig.register(OwnConfig.model_type, OwnConfig)
AutoModelForCausalLM.register(OwnConfig, OwnModel)
"""


def test_code_of_a_model_that_a_module_of_yours_registers_is_all_of_its_folder(tmp_path):
    digests = []
    for number in range(2):
        (tmp_path / "tasks").mkdir(exist_ok=True)
        path = tmp_path / "tasks" / "own.py"
        path.write_text(OWN_MODEL.format(number=number))
        spec = importlib.util.spec_from_file_location(f"own_model_{number}", path)
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.OwnConfig().save_pretrained(tmp_path / "own")
        digests.append(model_code(str(tmp_path / "own"), trust_remote_code=False))
    (tmp_path / "tasks" / "helper.py").write_text("SCALE = 2\n")
    digests.append(model_code(str(tmp_path / "own"), trust_remote_code=False))
    assert len({*digests}) == 3 and None not in digests


@pytest.mark.parametrize(
    "name",
    ["spiece.model", "sentencepiece.bpe.model", "bpe.codes", "tekken.json", "dict.txt"],
)
def test_the_vocabulary_counts_whatever_its_file_is_called(tmp_path, name):
    for file in ("model.safetensors", name):
        (tmp_path / file).write_bytes(b"content")
    assert set(fingerprints.checksums_of(str(tmp_path))) == {"model.safetensors", name}


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_weights_count_wherever_their_index_says_that_they_are(tmp_path, kind):
    (tmp_path / "parts").mkdir()
    parts = ["parts/a", "parts/b", "c"]
    for name in parts:
        (tmp_path / name).write_bytes(b"content")
    index = tmp_path / f"{kind}.index.json"
    weight_map = {f"tensor {number}": name for number, name in enumerate([*parts, "c"])}
    index.write_text(json.dumps({"weight_map": weight_map}))
    before = fingerprints.checksums_of(str(tmp_path))
    assert set(before) == {*parts, index.name}
    (tmp_path / "parts" / "b").write_bytes(b"other")
    assert fingerprints.checksums_of(str(tmp_path)) != before
    index.write_text("{}")
    with pytest.raises(ValueError, match="expected a weight_map, found KeyError"):
        fingerprints.checksums_of(str(tmp_path))


def test_an_older_index_beside_whole_weights_does_not_hide_them(tmp_path):
    sizes = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 16, "vocab_size": 64}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(fingerprints.checksums_of(str(tmp_path))) > 3
    model.save_pretrained(tmp_path)  # which leaves the index
    assert "model.safetensors" in fingerprints.checksums_of(str(tmp_path))


def test_a_result_is_one_of_everything_that_it_depends_on(monkeypatch):
    task = SimpleNamespace(protocol="p", version=1, sha256="0" * 64)
    config = SimpleNamespace(dtype="float32", limit=None)

    def key(files=None, code="c", name="lambada", changes=None, **settings):
        one = SimpleNamespace(**vars(task) | (changes or {}))
        asked = SimpleNamespace(**vars(config) | settings)
        found = cache_key(files or {"model.safetensors": "1"}, code, name, one, asked)
        return json.dumps(found, sort_keys=True)

    keys = [
        *(key(), key(files={"model.safetensors": "2"}), key(code="d"), key(name="hellaswag")),
        *(key(changes={"protocol": "q"}), key(changes={"version": 2})),
        *(key(changes={"sha256": "1" * 64}), key(changes={"data_vocabulary": [256, 0, "f"]})),
        *(key(dtype="bfloat16"), key(limit=5)),
    ]
    for module in (torch, transformers):
        monkeypatch.setattr(module, "__version__", "99")
        keys.append(key())
    assert len({*keys}) == len(keys) == 12 and key() == keys[-1]
