import shlex
from pathlib import Path

import pytest

from leyden.cli import main

SBATCH = """\
#!/bin/sh
printf '%s\\n' "$@" >called
test -e refuse && { echo "sbatch: error: invalid partition specified: x" >&2; exit 1; }
echo "17;dev"
"""


@pytest.fixture(autouse=True)
def _sbatch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = tmp_path / "bin" / "sbatch"
    command.parent.mkdir()
    command.write_text(SBATCH)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")


def called() -> list[str]:
    return Path("called").read_text().splitlines()


def test_what_is_given_to_sbatch_and_said(capsys):
    options = [
        "--nodes",
        "2",
        "--tasks-per-node=8",
        "--time=4:00:00",
        "--sbatch=gpus-per-node=8",
        "--sbatch",
        "exclusive",
    ]
    assert main(["submit", *options, "-c", "supervised/digits", "--name=big", "--trainer.max_epochs=3"]) == 0
    script = called().index(next(line for line in called() if line.endswith("scripts/slurm/train.sbatch")))
    assert called()[:script] == [
        "--parsable",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--output=logs/slurm/big-%j.log",
        "--time=4:00:00",
        "--gpus-per-node=8",
        "--exclusive",
    ]
    assert called()[script + 1 :] == ["-c", "supervised/digits", "--name=big", "--trainer.max_epochs=3"]
    assert capsys.readouterr().out == "leyden: job 17, run logs/supervised/digits/big, output logs/slurm/big-17.log\n"
    assert Path("logs/slurm").is_dir()  # SLURM does not make it
    assert not Path("logs/supervised").exists()


def test_a_run_without_name_gets_one_that_all_its_starts_share():
    assert main(["submit", "-c", "supervised/digits"]) == 0
    assert called()[-1].startswith("--name=20")


def test_dry_run_only_prints(capsys):
    assert main(["submit", "--dry-run", "--partition=long", "--name=a b"]) == 0
    command = shlex.split(capsys.readouterr().out)
    assert command[0] == "sbatch"
    assert "--partition=long" in command
    assert command[-1] == "--name=a b"
    assert not Path("called").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes=0"], "--nodes must be at least 1, got 0"),
        (["--tasks-per-node=0"], "--tasks-per-node must be at least 1, got 0"),
        (["--sbatch=--exclusive"], "--sbatch takes KEY=VALUE, or KEY, where sbatch takes --KEY; got '--exclusive'"),
        (["--print_config"], "help and configs are printed by leyden fit"),
        (["--trainer.max_epochs=many"], "trainer.max_epochs"),
        (["-c", "no/such"], "no/such"),
        (["--resume=logs/none"], "logs/none is no run folder"),
    ],
)
def test_mistakes_are_found_before_the_queue(arguments, message, capsys):
    assert main(["submit", *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not Path("called").exists()


def test_a_taken_name_is_refused(capsys):
    checkpoint = Path("logs/default/taken/checkpoints/last.ckpt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert main(["submit", "--name=taken"]) == 1
    assert "logs/default/taken has checkpoints of a run already" in capsys.readouterr().err


def test_what_sbatch_says_is_passed_on(capsys):
    Path("refuse").touch()
    assert main(["submit", "--partition=x"]) == 1
    assert "sbatch refused: sbatch: error: invalid partition specified: x" in capsys.readouterr().err


def test_without_slurm(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(["submit"]) == 1
    assert "sbatch is not on the PATH" in capsys.readouterr().err
