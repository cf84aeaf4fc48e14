"""``leyden ray``: a fit on a Ray cluster, in the workers of Ray Train."""

import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leyden.cli.commands import in_one_line
from leyden.cli.config import ConfigError
from leyden.cli.run_folder import RunFolder
from leyden.cli.submit import named_run

__all__ = ["ray"]

DESCRIPTION = """\
Checks the config and runs `leyden fit` in the workers of Ray Train: on the cluster that RAY_ADDRESS names, or on this
machine. What is not named below goes to `leyden fit`. All nodes see this folder at the same path, as on a network
drive. When a worker is lost, Ray starts all of them again, and the run continues with the same bits.

  leyden ray --workers 16 --gpu -c supervised/digits -c strategy/ddp --name big
"""


def ray(argv: Sequence[str]) -> int:
    """Runs a fit on Ray.

    Returns:
        The exit code.
    """
    parser = ArgumentParser(
        prog="leyden ray", description=DESCRIPTION, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--workers", type=int, default=1, help="processes of the run (default: 1)")
    parser.add_argument("--gpu", action="store_true", help="give each of them a GPU")
    parser.add_argument("--cpus", type=float, default=1.0, help="cores for each of them (default: 1)")
    parser.add_argument(
        "--restarts", type=int, default=3, help="how often lost workers are started again; -1: always (default: 3)"
    )
    arguments, rest = parser.parse_known_args(list(argv))
    return in_one_line(lambda: _run(arguments, rest), debug="--debug" in rest)


def _run(arguments: Namespace, rest: list[str]) -> int:
    if arguments.workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {arguments.workers}")
    if arguments.cpus <= 0.0:
        raise ConfigError(f"--cpus must be more than 0, got {arguments.cpus:g}")
    if arguments.restarts < -1:
        raise ConfigError(f"--restarts must be at least 0, or -1 for always, got {arguments.restarts}")
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise ImportError("leyden ray needs Ray Train: pip install 'leyden[ray]'") from error
    run, rest = named_run(rest)
    folder = run.path.absolute()
    resources = {"CPU": arguments.cpus} | ({"GPU": 1.0} if arguments.gpu else {})
    trainer = TorchTrainer(
        _fit,
        train_loop_config={"folder": str(Path.cwd()), "run": str(run.path), "arguments": rest},
        scaling_config=ScalingConfig(
            num_workers=arguments.workers, use_gpu=arguments.gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="ray", storage_path=str(folder), failure_config=FailureConfig(max_failures=arguments.restarts)
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise ConfigError(f"a worker of {run.path} failed, see above: {str(error).splitlines()[0]}") from error
    return 0


def _fit(config: dict[str, Any]) -> None:
    """What a worker does, in an environment that is torchrun's but for two names.

    So any strategy works as it does under torchrun, and the saved config is that of a run without Ray.
    """
    from leyden.cli import main

    os.chdir(config["folder"])
    run = RunFolder(Path(config["run"]))
    os.environ["TORCHELASTIC_RUN_ID"] = run.path.name
    os.environ["GROUP_RANK"] = os.environ["NODE_RANK"]
    workers, on_node = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    arguments = [*config["arguments"], f"--trainer.devices={on_node}", f"--trainer.num_nodes={workers // on_node}"]
    if run.config.is_file() and run.last_checkpoint.is_file():  # it was no run before: the workers were started again
        arguments = [f"--resume={run.path}"]
    code = main(["fit", *arguments])
    if code:
        raise RuntimeError(f"leyden fit ended with exit code {code}")
