"""Comparisons on a stand-in for SLURM: its commands, which run the jobs of an array here."""

import json
import os
import sys
from pathlib import Path

import pytest

from leyden.cli import main
from leyden.cli.compare_slurm import check_slurm
from leyden.cli.config import ConfigError

NETWORK = """\
# A baseline: a tiny network.
model:
  init_args:
    network: {class_path: leyden.models.MLP, init_args: {in_features: 64, num_outputs: 10, hidden: [8]}}
trainer: {max_epochs: 2, limit_train_batches: 4, accelerator: cpu}
"""
BREAKER = """\
from pathlib import Path
from lightning.pytorch import Callback

class BreakOnCluster(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 6 and not Path("broken").exists():
            Path("broken").touch()
            raise ValueError("it broke")
"""
# the queue is a file per job; with a file "hold" all jobs wait, with "lose" the cluster loses the last
SBATCH = """\
#!{python}
import os, re, subprocess, sys
from pathlib import Path

script = Path(sys.argv[1]).read_text()
options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.M))
if strange := set(options) - set("array error job-name nodes open-mode output signal time".split()):
    sys.exit("sbatch: unrecognized option '--" + strange.pop() + "'")
number = 7 + len(list(Path().glob("script-*.sh")))
Path(f"script-{{number}}.sh").write_text(script)
print("Submitted batch job", number)
Path("queue").mkdir(exist_ok=True)
array = re.match("0-([0-9]+)%", options.get("array", ""))
jobs = [f"{{number}}_{{index}}" for index in range(int(array[1]) + 1)] if array else [str(number)]
for job in jobs[:-1] if Path("lose").exists() else jobs:
    if Path("hold").exists():
        Path("queue", job).write_text("PENDING")
        continue
    Path("queue", job).write_text("RUNNING")
    log = Path(re.sub("%A_%a|%j", job, options["output"]))
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = dict(SLURM_JOB_ID=job, SLURM_CPUS_ON_NODE="1")
    if array:
        variables |= dict(zip(("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"), job.split("_")))
    command = ["bash", "-c", f"bash script-{{number}}.sh; rm queue/{{job}}"]
    subprocess.Popen(command, env=dict(os.environ, **variables), stdout=log.open("w"), stderr=subprocess.STDOUT)
"""
SQUEUE = """\
#!/bin/bash
cd queue && for job in *; do state=$(cat "$job" 2>/dev/null); [ "$state" ] && echo "$job $state"; done
exit 0
"""
SCANCEL = """\
#!/bin/bash
echo "$@" >> cancelled
cd queue && rm -f "$@"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {"sbatch": SBATCH.format(python=sys.executable), "squeue": SQUEUE, "scancel": SCANCEL, "srun": ""}
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("leyden.cli.compare_slurm.PAUSE", 0.1)
    Path("plain.yaml").write_text(NETWORK)
    Path("break_on_cluster.py").write_text(BREAKER)
    Path("broken.yaml").write_text(NETWORK[:-2] + ", callbacks+: [break_on_cluster.BreakOnCluster]}\n")
    Path("lost.yaml").write_text(NETWORK.replace("[8]", "[9]"))
    return tmp_path


def test_broken_and_resumed(cluster, capsys):
    Path("lose").touch()
    command = ["compare", "plain.yaml", "broken.yaml", "lost.yaml", "--seeds=1", "--jobs=2", "--slurm", "time=10"]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "leyden: 3 runs submitted to SLURM as job 7" in printed.out
    assert "leyden: SLURM: 2 running" in printed.out
    assert "plain.yaml, seed 0: test/accuracy 0." in printed.out
    assert "broken.yaml, seed 0: it broke (logs/compare/runs/broken/" in printed.err
    assert "seed-0/output.log)" in printed.err
    assert "lost.yaml, seed 0: its SLURM job 7_2 ended without a result: logs/compare/slurm/" in printed.err
    assert "/7_2/7_2_0_log.out (logs/compare/runs/lost/" in printed.err
    options = Path("script-7.sh").read_text().splitlines()
    assert "#SBATCH --array=0-2%2" in options
    assert "#SBATCH --time=10" in options
    assert not Path("cancelled").exists()

    Path("lose").unlink()
    assert main(["compare", "plain.yaml", "broken.yaml", "--seeds=1", "--name=tried", "--slurm"]) == 0
    assert "(finished before)" in capsys.readouterr().out
    # the callback computes nothing: the same numbers after the interruption
    report = json.loads(Path("logs/compare/tried/report.json").read_text())
    assert report["methods"][0]["difference"]["by_seed"] == {"0": 0.0}
    (path,) = Path("logs/compare/runs/broken").glob("*/seed-0/result.json")
    assert json.loads(path.read_text())["resumed"]


def test_interrupted(cluster, capsys, monkeypatch):
    def ctrl_c(seconds):
        raise KeyboardInterrupt

    Path("hold").touch()
    monkeypatch.setattr("leyden.cli.compare_slurm.time.sleep", ctrl_c)
    assert main(["compare", "plain.yaml", "lost.yaml", "--seeds=2", "--jobs=1", "--slurm"]) == 130
    printed = capsys.readouterr()
    assert "leyden: SLURM: 4 pending" in printed.out
    assert "interrupted; finished runs are kept, the same command goes on" in printed.err
    assert Path("cancelled").read_text() == "7_0 7_1 7_2 7_3\n"
    assert not list(Path("queue").iterdir())
    options = Path("script-7.sh").read_text()
    assert "#SBATCH --array=0-3%1" in options
    assert "#SBATCH --time" not in options  # as long as the partition gives


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("partitio=gpu", "--slurm: sbatch: unrecognized option '--partitio'"),
        ("Gpu", "--slurm takes KEY=VALUE, or KEY, where sbatch takes --KEY; got 'Gpu'"),
        ("ntasks-per-node=2", "--slurm: ntasks-per-node cannot be set: each run is one process"),
    ],
)
def test_wrong_options_take_one_line_and_no_job(cluster, option, message, capsys):
    assert main(["compare", "plain.yaml", "lost.yaml", "--seeds=1", "--slurm", option]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"leyden: error: {message}")
    assert error.count("\n") == 1
    assert not Path("queue").exists()
    assert not list(Path("logs").rglob("*.pkl"))


def test_without_slurm_or_submitit(cluster, monkeypatch):
    (cluster / "bin" / "squeue").unlink()
    monkeypatch.setenv("PATH", str(cluster / "bin"))
    with pytest.raises(ConfigError, match="not on the PATH: squeue"):
        check_slurm([])
    monkeypatch.setattr("leyden.cli.compare_slurm.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'leyden\[slurm\]'"):
        check_slurm([])
