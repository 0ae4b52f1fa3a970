"""Everything that a GPU has to show, in one command and nine and a half minutes.

    python benchmarks/gpu_day.py --make_data gpu_day_data --text openstax.jsonl.zst books.jsonl \
        --official lambada_test.jsonl lambada_test_plain_text.txt wiki.test.raw blimp.zip
    python benchmarks/gpu_day.py --data gpu_day_data --output_dir gpu_day

The first command makes a folder of at most 45 MB, on any machine. The second runs the parts one
after the other, each in a process of its own with a time limit of its own; a part that ends early
leaves its time to the next. `gpu_day.json` and `gpu_day.md` are written anew after each part.
`--smoke` runs every part with tiny sizes and no data, on any machine.

An image for GPUs has torch, transformers and accelerate, which is nearly all that it needs. Bring
the packages of `NEEDED` to a machine without a network.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the package need not be installed

from modeling_gpt2scratch.common.atomic_files import write_file  # noqa: E402
from modeling_gpt2scratch.common.command_line import argument, parse_config  # noqa: E402

# In their order, the most valuable first, with the seconds of each.
PARTS = {
    **{"machine": 75, "steps": 105, "losses": 15},
    **{"training": 300, "scoring": 45, "larger_steps": 30},
}
SMOKE_SECONDS = 900  # of each part, on a machine that does other things as well
NEEDS_DATA = ("training", "scoring")
# Of the package's requirements, those that such an image may lack.
NEEDED = ("tenacity",) if sys.version_info >= (3, 14) else ("tenacity", "backports.zstd")


@dataclass(frozen=True)
class GpuDayConfig:
    """Every argument of this script."""

    output_dir: str = argument("where results go", default="gpu_day")
    data: str | None = argument("folder from --make_data", default=None)
    seconds: int = argument("budget of all parts together", default=sum(PARTS.values()))
    parts: list[str] = argument(
        f"any of {', '.join(PARTS)}; all if none is given", default_factory=list
    )
    smoke: bool = argument("tiny sizes, for any machine", default=False)
    make_data: str | None = argument("write this data folder, and end", default=None)
    text: list[str] = argument(
        "for --make_data: as --dataset of prepare_data.py, each", default_factory=list
    )
    official: list[str] = argument(
        "for --make_data: files of benchmarks, with their own names", default_factory=list
    )
    megabytes: float = argument("for --make_data: limit of the folder", default=45.0)

    def __post_init__(self):
        if unknown := [name for name in self.parts if name not in PARTS]:
            raise ValueError(f"expected --parts of {', '.join(PARTS)}, found {unknown[0]}")
        if self.make_data is not None and not self.text:
            raise ValueError("expected --text for --make_data, found none")
        if self.make_data is None and self.data is None and not self.smoke:
            raise ValueError("expected --data, as --make_data writes it, or --smoke, found neither")


class Day:
    """The parts of a day, run one after the other.

    Args:
        config: of the script.
        data: folder that all parts read.
    """

    def __init__(self, config: GpuDayConfig, data: Path):
        self.config, self.data = config, data
        self.output_dir = Path(config.output_dir)
        self.directory = self.output_dir / "parts"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, dict[str, Any]] = {}

    def start(self, part: str, seconds: float) -> subprocess.Popen:
        """The process of a part; what it prints goes to a file."""
        (self.directory / f"{part}.json").unlink(missing_ok=True)
        plan = {"output_dir": str(self.output_dir.resolve()), "data": str(self.data.resolve())}
        plan |= {"seconds": seconds, "is_smoke": self.config.smoke, "started": time.time()}
        paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        with open(self.directory / f"{part}.log", "w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "gpu_parts", part, json.dumps(plan)],
                cwd=HERE.parent,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
                process_group=0,  # so that it ends with all that it has started
            )

    def finish(self, part: str, process: subprocess.Popen, seconds: float) -> None:
        """Waits for a part as long as it may take, and writes down what it found."""
        started = time.monotonic()
        try:
            code = process.wait(timeout=max(1.0, seconds))
            status = "finished" if code == 0 else f"failed: {self.last_line(part)}"
        except subprocess.TimeoutExpired:
            status = f"ended after {seconds:.0f} s"
        finally:
            end(process)
        path = self.directory / f"{part}.json"
        results = json.loads(path.read_text()) if path.exists() else {}
        elapsed = round(time.monotonic() - started, 1)
        self.found[part] = {"status": status, "seconds": elapsed, "results": results}
        content = {"smoke": self.config.smoke, "parts": self.found}
        write_file(self.output_dir / "gpu_day.json", json.dumps(content, indent=2).encode())
        from gpu_parts.page import page

        write_file(self.output_dir / "gpu_day.md", page(content).encode())
        print(f"{part}: {status}, {elapsed:g} s", flush=True)

    def last_line(self, part: str) -> str:
        """What a part said last."""
        lines = (self.directory / f"{part}.log").read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")[:300]

    def run(self) -> bool:
        """Runs all parts; whether each finished."""
        shares = {name: PARTS[name] for name in PARTS if name in (self.config.parts or PARTS)}
        scale = self.config.seconds / sum(shares.values())
        if self.config.smoke:
            shares, scale = dict.fromkeys(shares, SMOKE_SECONDS), 1
        budget, started = scale * sum(shares.values()), time.monotonic()
        # Text becomes tokens while the first part, which needs few cores, looks at the machine.
        preparation = self.start("data", budget) if {*shares} & {*NEEDS_DATA} else None
        due = 0.0
        try:
            for name, share in shares.items():
                due += scale * share
                if preparation and (name in NEEDS_DATA or name == "steps"):
                    self.finish("data", preparation, started + budget - time.monotonic())
                    preparation = None
                seconds = started + due - time.monotonic()
                self.finish(name, self.start(name, seconds), seconds)
        finally:
            if preparation:
                end(preparation)
        return all(part["status"] == "finished" for part in self.found.values())


def end(process: subprocess.Popen) -> None:
    """Ends a part, and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def missing_packages() -> list[str]:
    """Of `NEEDED`, what this environment does not have."""
    missing = []
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    return missing


def main() -> None:
    """Makes the data, or runs the parts; exit code 1 if one did not finish."""
    try:
        config = parse_config(GpuDayConfig, description=__doc__)
    except ValueError as error:
        sys.exit(f"gpu_day.py: error: {error}")
    if missing := missing_packages():
        names = " ".join(missing)
        sys.exit(
            f"gpu_day.py: error: expected the packages {' and '.join(NEEDED)}, found no {names}; "
            f"`pip download --no-deps {names}` where there is a network, and install them here"
        )
    if config.make_data is not None:
        from gpu_parts.data import make_folder

        folder = Path(config.make_data)
        n_bytes = make_folder(
            folder, text=config.text, official=config.official, megabytes=config.megabytes
        )
        print(f"{folder}: {n_bytes / 1e6:.1f} MB")
        return
    data = Path(config.data or Path(config.output_dir, "smoke_data"))
    if config.data is None:
        from gpu_parts.data import make_smoke_folder

        make_smoke_folder(data)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(0 if Day(config, data).run() else 1)


if __name__ == "__main__":
    main()
