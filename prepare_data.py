"""Text to token shards: `python prepare_data.py --dataset fineweb-edu-10B --output_dir data/edu`.

Reads documents, tokenizes them in several processes, shuffles them, holds some out for validation
and writes a directory of shards with their tokenizer and a manifest. The directory appears under
its name only when it is complete. If it stops for any reason, even a full disk, run the same
command again: it continues where it was and writes the same bytes.
"""

from pathlib import Path

PROGRAM = "prepare_data.py"


def main() -> None:
    """Parses, prepares, and turns what is wrong with the input into one line and an exit code."""
    # Each worker process imports this file once more and needs none of these.
    from modeling_gpt2scratch.common.console import activity, readable_output
    from modeling_gpt2scratch.common.interruptions import Interruptible, started_as

    with readable_output(), Interruptible(PROGRAM) as ctrl_c:
        # `--help` needs only these.
        from modeling_gpt2scratch.common.command_line import parse_config, with_place
        from modeling_gpt2scratch.common.errors import ending_in_one_line
        from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig

        config = parse_config(PrepareConfig, description=__doc__)
        ctrl_c.advice = lambda: f"to go on, run again: {started_as()}"
        with ctrl_c.ending_at_once(), activity("loading the libraries"):
            from modeling_gpt2scratch.data.preparation.prepare import prepare
            from modeling_gpt2scratch.hub.datasets import push_data, require_place

        with ending_in_one_line(PROGRAM, placed=with_place):
            if config.push_to_hub:
                require_place(config.push_to_hub, private=config.private)
            manifest = prepare(config)
            for name, split in manifest.splits.items():
                documents = f"{split.n_documents:,} document{'s' * (split.n_documents > 1)}"
                shards = f"{len(split.shards)} shard{'s' * (len(split.shards) > 1)}"
                sizes = f"{split.n_tokens:,} tokens, {documents}, {shards}"
                print(f"{name}: {sizes} in {config.output_dir}")
            if config.push_to_hub:
                repository, private = config.push_to_hub, config.private
                with activity("uploading"):
                    print(push_data(Path(config.output_dir), repository, private=private))


if __name__ == "__main__":
    main()
