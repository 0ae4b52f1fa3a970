"""The records of a run that never took place."""

import json
import shutil
from pathlib import Path

from modeling_gpt2scratch.common.checksums import file_sha256
from modeling_gpt2scratch.data.shards.manifest import Manifest, ShardEntry, Split

REPOSITORY = "someone/tiny"


SECRET = "hf_xJ4tP0qLw7"


def model_of(name: str, data: Path, *, limit: int | None, **estimates: float) -> dict:
    """A model of results.json, measured on 40 samples of `val`."""
    values = {"alias": "val", "sample_len": 40}
    for metric, value in estimates.items():
        values |= {f"{metric},none": value, f"{metric}_stderr,none": value / 8}
    config = {"task": "val", "protocol": "stream", "dataset_path": str(data)}
    is_cut = limit is not None and limit <= 40
    return {
        "results": {"val": values},
        "configs": {"val": config},
        "versions": {"val": 1},
        "n-shot": {"val": 0},
        "higher_is_better": {"val": dict.fromkeys(estimates, False)},
        "n-samples": {"val": {"original": None if is_cut else 40, "effective": 40}},
        "task_hashes": {"val": None},
        "model_sha256": {p.name: file_sha256(p) for p in Path(name).glob("*.safetensors")},
        "errors": {"lambada": f"FileNotFoundError: {data} {SECRET}"},
        "model_name": name,
    }


def add_lambada(run: Path, **changes) -> None:
    """Adds OpenAI's LAMBADA, read from a file of this machine, to the results."""
    content = json.loads((run / "results.json").read_text())
    model = content["models"][str(run)]
    config = {"task": "lambada", "protocol": "lambada_openai", "dataset_path": "/x/lambada.jsonl"}
    config |= {"official_dataset": "some/lambada", "data_status": "official"} | changes
    model["configs"]["lambada"] = config
    values = {"acc,none": 0.25, "acc_stderr,none": 0.125, "perplexity,none": 9.5}
    model["results"]["lambada"] = {"alias": "lambada"} | values | {"perplexity_stderr,none": "N/A"}
    model["versions"]["lambada"], model["n-shot"]["lambada"] = 1, 0
    model["higher_is_better"]["lambada"] = {"acc": True, "perplexity": False}
    model["n-samples"]["lambada"] = {"original": 5153, "effective": 5153}
    (run / "results.json").write_text(json.dumps(content))


def write_records(
    run: Path,
    *,
    dataset: str = "someone/fables",
    limit: int | None = None,
    vocabulary: tuple[int, int, str] = (300, 299, "1" * 64),
) -> None:
    """Every record that a run of 20 steps of 128 tokens leaves, and the data it names.

    Wherever a text may stand, there is an absolute path or a secret.
    """
    data = run.parent / "data"
    data.mkdir(exist_ok=True)
    train, val = (
        (ShardEntry(file=f"{split}_000000.bin", n_tokens=n_tokens, sha256="0" * 64),)
        for split, n_tokens in (("train", 5_120), ("val", 640))
    )
    Manifest(
        vocab_size=vocabulary[0],
        end_of_text_id=vocabulary[1],
        tokenizer={"name": "bpe:300", "fingerprint": vocabulary[2]},
        splits={
            "train": Split(n_tokens=5_120, n_documents=70, n_bytes=20_000, shards=train),
            "val": Split(n_tokens=640, n_documents=9, n_bytes=2_500, shards=val),
        },
        arguments={"dataset": dataset, "subset": None, "output_dir": str(data)},
    ).save(data)
    arguments = {"data": str(data), "output_dir": str(run), "model": "tiny", "max_steps": 20}
    arguments |= {"total_batch_tokens": 128, "learning_rate": 0.003, "resume": SECRET}
    arguments |= {"mixed_precision": "no", "report_to": ["none"], "seed": 0}
    rows = [
        {"step": 10, "loss": 5.0, "tokens_per_second": 900.0},
        {"step": 20, "loss": 4.0, "tokens_per_second": 1100.0, "eval_loss": 4.25},
    ]
    rows[-1]["sample"] = f"{data} {SECRET}"
    other = str(run.parent / "other")
    models = (
        model_of(str(run), data, limit=limit, loss=4.25, bits_per_byte=2.5),
        model_of(other, data, limit=limit, loss=4.5, bits_per_byte=2.75),
    )
    results = {
        "models": {model["model_name"]: model for model in models},
        "baseline": str(run),
        "differences": [{"model": other, "task": "val", "metric": "loss", "difference": 0.25}],
        "arguments": {"models": [str(run)], "output_dir": str(run), "tasks": ["val", "lambada"]}
        | {"limit": limit, "dtype": "float32", "val_data": str(data)},
        **{"python_version": "3.11", "torch_version": "2.13", "transformers_version": "5.23"},
        "date": "2026-11-22T19:37:12+00:00",
    }
    run.mkdir(exist_ok=True)
    if not (run / "config.json").exists():
        (run / "config.json").write_text("{}")
    (run / "train_config.json").write_text(json.dumps(arguments))
    (run / "environment.json").write_text(json.dumps({"device": "cpu", "processes": 2}))
    shutil.copy(data / "manifest.json", run / "data_manifest.json")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "results.json").write_text(json.dumps(results))
