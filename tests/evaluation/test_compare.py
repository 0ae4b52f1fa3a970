import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from support import evaluation as tiny
from support.evaluation import compare
from support.paths import REPOSITORY

from modeling_gpt2scratch import api
from modeling_gpt2scratch.evaluation.configuration import default_output_dir, parse_arguments
from modeling_gpt2scratch.reports.record_checks import check_evaluation

N_PASSAGES = 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Directories `first` and `second` (models), `shards`, and a file `passages.jsonl`."""
    root = tmp_path_factory.mktemp("inputs")
    tokenizer = tiny.tiny_tokenizer()
    for name, n_positions in (("first", 32), ("second", 16)):
        tiny.tiny_gpt2(tokenizer, n_positions).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    encoded = tokenizer(tiny.CORPUS * 4)["input_ids"]
    stream = sum(([tokenizer.eos_token_id, *ids] for ids in encoded), [])
    tiny.write_shards(root / "shards", [stream], tokenizer)
    rows = [json.dumps({"text": f"the cat sat on {i} the mat"}) + "\n" for i in range(N_PASSAGES)]
    (root / "passages.jsonl").write_text("".join(rows))
    return root


@pytest.fixture
def arguments(inputs, tmp_path):
    """A command line of both tasks, without models."""
    return [
        *("--val_data", str(inputs / "shards")),
        *("--lambada_data", str(inputs / "passages.jsonl")),
        *("--output_dir", str(tmp_path / "out")),
        *("--device", "cpu"),
        *("--tasks", "val", "lambada"),
    ]


def results_of(tmp_path):
    return json.loads((tmp_path / "out" / "results.json").read_text())


def table_rows(output):
    """Cells of each row of a Markdown table, without the line under the headers and the notes."""
    table, _, notes = output.partition("\n\n")
    assert "± is one standard error." in notes
    lines = table.splitlines()
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


@pytest.mark.slow
def test_a_command_line_compares_what_it_reaches_and_says_why_it_misses_the_rest(
    inputs, arguments, tmp_path
):
    models = [str(inputs / "first"), "no/such-model", str(inputs / "second")]
    finished = subprocess.run(
        [sys.executable, "evaluate/compare.py", *arguments, "--models", *models],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1, finished.stderr
    assert "no/such-model, val, lambada: expected a model" in finished.stderr

    header, *rows = table_rows(finished.stdout)
    n_published = len(header) - 7
    titles = ["first", "such-model", "second"]
    assert header[:7] == ["Task", "Protocol", "Metric", "", *titles]
    assert all(name.endswith("(published, not measured here)") for name in header[7:])
    assert n_published and {row[7] for row in rows[:3]} == {"–"}
    assert [row[:4] for row in rows] == [
        ["val", "stream v1", "loss", "↓"],
        ["val", "stream v1", "perplexity", "↓"],
        ["val", "stream v1", "bits_per_byte", "↓"],
        ["lambada", "lambada_openai v3", "acc", "↑"],
        ["lambada", "lambada_openai v3", "perplexity", "↓"],
    ]
    reported = results_of(tmp_path)
    for task, _, metric, _, first, missing, second, *_ in rows:
        for model, text in ((models[0], first), (models[2], second)):
            cell = reported["models"][model]["results"][task]
            value, stderr = cell[f"{metric},none"], cell[f"{metric}_stderr,none"]
            assert text.partition(" (")[0] == f"{value:.4f} ± {stderr:.4f}"
        is_first_row = metric in ("loss", "acc")
        assert missing == ("error [1]" if is_first_row else "–")
    assert list(reported["models"]["no/such-model"]["errors"]) == ["val", "lambada"]


def test_the_results_file_says_what_was_measured_on_what(inputs, arguments, tmp_path):
    model = str(inputs / "first")
    assert compare.main([*arguments, "--models", model]) == 0
    reported = results_of(tmp_path)
    found = reported["models"][model]
    passages = (inputs / "passages.jsonl").read_bytes()
    shard = (inputs / "shards" / "val_000000.bin").read_bytes()
    weights = (inputs / "first" / "model.safetensors").read_bytes()
    digest = hashlib.sha256(passages).hexdigest()
    config = found["configs"]["lambada"]
    assert (config["protocol"], found["versions"]["lambada"]) == ("lambada_openai", 3)
    assert config["data_status"] == f"{N_PASSAGES} of 5153 samples, unchecked"
    assert found["n-samples"]["lambada"] == {"original": N_PASSAGES, "effective": N_PASSAGES}
    assert found["task_hashes"]["lambada"] == digest
    assert found["task_hashes"]["val"] == hashlib.sha256(shard).hexdigest()
    assert found["model_sha256"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert {"config.json", "tokenizer.json"} <= set(found["model_sha256"])
    assert 0 <= found["results"]["lambada"]["acc,none"] <= 1
    assert found["seconds"]["lambada"] >= 0
    assert found["details"]["val"]["window_tokens"] == 32
    assert found["config"]["model_class"] == "GPT2LMHeadModel"
    assert found["errors"] == {} and reported["is_complete"]
    assert reported["arguments"]["tasks"] == ["val", "lambada"]
    assert {"torch_version", "transformers_version", "bootstrap"} <= set(reported)


def test_a_limit_is_named_in_the_table(inputs, arguments, tmp_path, capsys):
    model = str(inputs / "first")
    assert compare.main([*arguments, "--models", model, "--limit", "3"]) == 0
    _, *rows = table_rows(capsys.readouterr().out)
    assert rows[0][1] == "stream v1, first 3 windows"
    assert rows[-1][1] == "lambada_openai v3, first 3 passages"
    counts = results_of(tmp_path)["models"][model]["n-samples"]
    assert counts["lambada"] == counts["val"] == {"original": None, "effective": 3}


def test_data_that_cannot_be_read_leaves_the_other_task_its_numbers(
    inputs, arguments, tmp_path, capsys
):
    missing = str(tmp_path / "none.jsonl")
    model = str(inputs / "first")
    assert compare.main([*arguments, "--models", model, "--lambada_data", missing]) == 1
    _, *rows = table_rows(capsys.readouterr().out)
    assert rows[0][4].count("±") == 1
    assert rows[3][4] == "error [1]"
    found = results_of(tmp_path)["models"][model]
    assert "none.jsonl" in found["errors"]["lambada"]
    assert list(found["results"]) == ["val"]


def test_a_missing_model_directory_is_an_error_in_its_column(arguments, tmp_path, capsys):
    model = str(tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()  # whose name is another one
    assert compare.main([*arguments, "--models", model]) == 1
    error = results_of(tmp_path)["models"][model]["errors"]["val"]
    assert error == "expected a model directory, found none"


@pytest.mark.parametrize("name", ["{}/minne", "gtp2", "gpt2-xl"])
def test_a_name_that_is_nearly_right_gets_the_right_one(arguments, tmp_path, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "mine").mkdir()
    model = name.format(tmp_path)
    assert compare.main([*arguments, "--models", model]) == 1
    error = results_of(tmp_path)["models"][model]["errors"]["val"]
    if name == "gpt2-xl":  # which is right, and out of reach here
        assert error.endswith("in reach and HF_HUB_OFFLINE unset, found none of them")
    else:
        assert error.endswith(f"; did you mean {'gpt2' if name == 'gtp2' else tmp_path / 'mine'}?")


def test_a_directory_without_a_model_is_named_as_such(arguments, tmp_path):
    (tmp_path / "empty").mkdir()
    assert compare.main([*arguments, "--models", str(tmp_path / "empty")]) == 1
    ((_, model),) = results_of(tmp_path)["models"].items()
    expected = "expected a model, found a directory without config.json"
    assert model["errors"]["val"] == expected
    (checkpoint := tmp_path / "empty" / "checkpoint-8").mkdir()
    (checkpoint / "training_state.json").write_text("{}")
    assert compare.main([*arguments, "--models", str(tmp_path / "empty")]) == 1
    ((_, model),) = results_of(tmp_path)["models"].items()
    hint = f"; the run has not finished; its newest checkpoint is {checkpoint}"
    assert model["errors"]["val"] == expected + hint


def test_what_an_earlier_comparison_measured_and_this_one_does_not_is_said(
    inputs, arguments, tmp_path, capsys
):
    model = str(inputs / "first")
    assert compare.main([*arguments, "--models", model]) == 0
    assert "is replaced" not in capsys.readouterr().err
    place = arguments.index("--lambada_data")
    fewer = [part for part in arguments if part not in ("lambada", *arguments[place : place + 2])]
    assert compare.main([*fewer, "--models", model]) == 0
    said = (
        f"results.json had lambada of {model}, and is replaced; name all models and tasks at once, "
    )
    assert said in capsys.readouterr().err
    assert compare.main([*fewer, "--models", model]) == 0
    assert "is replaced" not in capsys.readouterr().err


def test_results_go_beside_the_first_model_if_it_is_a_local_directory(tmp_path):
    assert default_output_dir(str(tmp_path)) == str(tmp_path)
    (tmp_path / "training_state.json").write_text("{}")  # a checkpoint, which may be pruned
    assert default_output_dir(str(tmp_path)) == "results"
    assert default_output_dir("some/hub-model") == "results"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--models m --tasks lambda", "found 'lambda'; did you mean lambada?"),
        ("--models m --tasks all lambada", "--tasks: expected all alone"),
        ("--models m --tasks lambada lambada", "--tasks: expected each once"),
        ("--models m n --tasks all --baseline gpt2", "--baseline: expected one of --models"),
        ("--models m --tasks all --data_dir no/where", "--data_dir: expected a directory"),
        (
            "--models m --tasks text --text_data t --data_dir .",
            "--data_dir, --tasks: expected a task whose data are looked for in data_dir, found a "
            "place of its own for each of text; leave data_dir out",
        ),
        ("--models m --tasks lambada --limit 0", "--limit: expected at least 1, found 0"),
        ("--models m --tasks lambada --batch_tokens 0", "--batch_tokens: expected at least 1"),
        (
            "--models m --tasks val",
            "--val_data: expected a shard directory of prepare_data.py for task val, found none; "
            "add --val_data PATH",
        ),
        ("--models m --tasks text", "--text_data: expected a file of your own: .jsonl with"),
        ("--tasks lambada --model m", "unknown flag --model; did you mean --models?"),
        ("--models m m --tasks lambada", "--models: expected each once, found m m"),
        ("--models m --tasks lambada --device gpu9", "--device: expected auto, cpu or a device"),
        ("--models m --tasks lambada --device cpu:9x", "--device: expected auto, cpu or a device"),
        ("--models m --tasks lambada --blimp_data b", "expected blimp_data only with tasks"),
        ("--models m --tasks lambada --cache false --cache_dir c", "cache_dir only with cache"),
        ("--models m --tasks lambada --include_path=", "expected a text, found none"),
        ("--models m --tasks lambada --output_dir=", "expected a text, found none"),
        (
            "--models m --tasks lambada --dtype int8",
            "--dtype: expected one of float32, bfloat16, float16, found 'int8'",
        ),
        ("--models m --tasks lambada --lim 3", "unknown flag --lim; did you mean --limit?"),
        ("--tasks lambada", "required: --models"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        compare.main(arguments.split())
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_data_directory_of_a_recipe_gives_way_to_places_of_the_command_line(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"models: [m]\ntasks: [lambada]\ndata_dir: {tmp_path}\n")
    flags = ["--tasks", "text", "--text_data", "t", "--output_dir", str(tmp_path / "out")]
    config, _ = parse_arguments([str(recipe), *flags])
    assert config.data_dir is None
    assert "data_dir of the recipe is left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "tasks", "name"), [([], ["text"], "models"), ("m", [], "tasks")]
)
def test_no_model_or_no_task_is_nothing_to_compare(models, tasks, name):
    with pytest.raises(ValueError, match=f"--{name}: expected at least one, found none"):
        api.compare(models, tasks, text_data="t")


def test_an_output_directory_that_is_a_file_is_a_bad_argument(inputs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as caught:
        compare.main(
            ["--models", "m", "--tasks", "lambada", "--output_dir", str(tmp_path / "file")]
        )
    assert caught.value.code == 2
    assert "--output_dir: expected a directory" in capsys.readouterr().err


def test_another_programs_results_are_never_replaced(inputs, arguments, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "results.json"
    path.write_text('{"results": {}}')
    with pytest.raises(SystemExit) as caught:
        compare.main(["--models", str(inputs / "first"), *arguments])
    assert caught.value.code == 2
    assert "out to hold results of compare.py or none, found" in capsys.readouterr().err
    assert path.read_text() == '{"results": {}}'


def test_models_whose_names_make_one_folder_or_none_have_folders_of_their_own(
    inputs, arguments, tmp_path
):
    long = tmp_path / ("x" * 120) / ("y" * 120) / "model"
    models = [tmp_path / "a" / "b", tmp_path / "a__b", long]
    for model in models:
        shutil.copytree(inputs / "first", model)
    options = ("--limit", "2", "--batch_tokens", "64")
    assert compare.main(["--models", *map(str, models), *arguments, *options]) in (None, 0)
    folders = list((tmp_path / "out" / "lm_eval_results").iterdir())
    assert len(folders) == 3 and all(len([*folder.iterdir()]) == 1 for folder in folders)
    content = results_of(tmp_path)
    assert content["arguments"]["batch_tokens"] == 64
    check_evaluation(content["arguments"], {})  # as `publish` will
