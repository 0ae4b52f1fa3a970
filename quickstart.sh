#!/usr/bin/env bash
# From raw text to a scored checkpoint on two CPU cores, without a network. Copy the lines one by one.
# After an interruption run it again: it goes on where it stopped. Arguments go to the training, such as
# --max_steps 300 for a shorter first run.
set -euo pipefail

case " $* " in
*" --data"* | *" --output"*)
    echo "quickstart.sh: error: expected arguments for a run in runs/quickstart, found another place; use" \
        "train_accelerate.py recipes/quickstart.yaml for it" >&2
    exit 2
    ;;
esac

# 1. Text to token shards: docstrings of the standard library and of ten packages, and a tokenizer for them.
python prepare_data.py --dataset docstrings --output_dir data/docstrings

# 2. Shards to a checkpoint.
accelerate launch --config_file accelerate_configs/cpu.yaml \
    train_accelerate.py recipes/quickstart.yaml --resume auto "$@"

# 3. The checkpoint's score on text it has not seen.
python evaluate/compare.py --models runs/quickstart --tasks val --val_data data/docstrings

# 4. What it writes.
gpt2scratch sample runs/quickstart --prompt "Return the number of" --max_new_tokens 60 --temperature 0.5
