"""The training script with faults at given steps: `faulty_training.py FAULTS flags ...`.

FAULTS is JSON: a list of [kind, step, rank], where the step is that of the data. Kinds: "nan" makes
the loss of that process no number, "spike" a thousand times as large, "stop" halts the process and
"die" kills it. A file named in FAULT_ONCE makes "die" happen only while the file is not there.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))

import train_accelerate
from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.training import loop

FACTORS = {"nan": float("nan"), "spike": 1000.0}


def main() -> None:
    """Trains with the faults."""
    faults = {(step, rank): kind for kind, step, rank in json.loads(sys.argv.pop(1))}
    rank = int(os.environ.get("RANK", 0))
    train_step, forward = loop.train_step, GPT2ScratchForCausalLM.forward
    current = {"kind": None}

    def faulty_train_step(run, *args):
        current["kind"] = faults.get((run.progress.data_step, rank))
        if current["kind"] == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if current["kind"] == "die" and not Path(os.environ["FAULT_ONCE"]).exists():
            Path(os.environ["FAULT_ONCE"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return train_step(run, *args)
        finally:
            current["kind"] = None

    def faulty_forward(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        if current["kind"] in FACTORS:
            outputs.loss = outputs.loss * FACTORS[current["kind"]]
        return outputs

    loop.train_step = faulty_train_step
    GPT2ScratchForCausalLM.forward = faulty_forward
    train_accelerate.main()


if __name__ == "__main__":
    main()
