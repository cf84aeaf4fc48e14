"""Combining checkpoints: time against reading their bytes once, and peak memory in copies of one of them.

Reading is one ``readinto`` after another into a buffer of 1 MiB, from the page cache; a worker process averages the
checkpoints, and says how far its resident memory grew. In turn; medians over the rounds.

    python benchmarks/combine.py [--rounds 7] [--checkpoints 20] [--parameters 25]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from leyden.weights import CheckpointFile, average

TENSORS = 88


def write(folder: Path, count: int, millions: float) -> list[Path]:
    rows = int(millions * 1e6 / TENSORS / 512)
    paths = [folder / f"{number}.ckpt" for number in range(count)]
    for path in paths:
        state = {f"layer.{number}": torch.randn(rows, 512) for number in range(TENSORS)}
        torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": state}, path)
    return paths


def read(paths: list[Path]) -> None:
    buffer = memoryview(bytearray(2**20))
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def worker(paths: list[str]) -> None:
    CheckpointFile(paths[0])["layer.0"].add_(1.0)  # what torch takes when it first computes
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    average([CheckpointFile(path) for path in paths])
    print(resident("VmHWM") - before)


def resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(kind)).split()[1])


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--parameters", type=float, default=25.0, help="millions")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        paths = write(Path(name), arguments.checkpoints, arguments.parameters)
        one = CheckpointFile(paths[0]).num_bytes
        ratios, times = [], []
        for number in range(arguments.rounds + 1):
            start = time.perf_counter()
            read(paths)
            middle = time.perf_counter()
            average([CheckpointFile(path) for path in paths])
            if number:  # the first round fills the cache
                times.append((middle - start, time.perf_counter() - middle))
                ratios.append(times[-1][1] / times[-1][0])
        command = [sys.executable, __file__, "worker", *map(str, paths)]
        grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    reading, combining = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{arguments.checkpoints} checkpoints of {one >> 20} MiB: read {reading:.2f} s, averaged {combining:.2f} s")
    print(f"ratio {statistics.median(ratios):.2f}, peak memory {grown / one:.2f} copies")


if __name__ == "__main__":
    main()
