"""``leyden fit``, ``validate`` and ``test``: arguments, config files, and errors in one line."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from leyden.cli.config import (
    ConfigError,
    Section,
    config_folder,
    find_config,
    merge_file,
    read_config,
    set_option,
)
from leyden.cli.run_folder import RunFolder, experiment_name, newest_run, requeued_run, run_of_checkpoint

__all__ = [
    "HELP",
    "Arguments",
    "UsageError",
    "fit",
    "in_one_line",
    "load_tree",
    "parse_arguments",
    "run",
    "test",
    "validate",
]

HELP = """\
usage: leyden {command} [-c FILE]... [--KEY=VALUE]...

  -c, --config FILE   a config file, or its name below configs/ or configs/experiment/; may be repeated. It is put over
                      configs/default.yaml and the files before it.
  --KEY=VALUE         one value, such as --trainer.max_epochs=3 or --model.optimizer.lr=0.01; a callback is named by its
                      class: --trainer.callbacks.EMA.decay=0.9
  --print_config      print the whole config and stop
  --debug             show the traceback of an error
"""
HELP_FIT = """\
  --name NAME         name of the run folder logs/<experiment>/NAME; the time of the start if left out. A job that SLURM
                      has put back into the queue goes on with its run of this name.
  --resume FOLDER     go on with the run in this folder, with its config and its last checkpoint
"""


class UsageError(Exception):
    """The command was called in a wrong way."""


@dataclass
class Arguments:
    """The command line of `fit` and its kin.

    Attributes:
        config: names of config files, in order.
        name: of the run.
        resume: folder of the run to be continued.
        debug: whether errors show their traceback.
        print_config: whether to print the config and stop.
        help: arguments for jsonargparse's help, if one was asked for.
        options: keys and values to be set in the config.
    """

    config: list[str] = field(default_factory=list)
    name: str | None = None
    resume: str | None = None
    debug: bool = False
    print_config: bool = False
    help: list[str] | None = None
    options: list[tuple[str, str]] = field(default_factory=list)


def fit(argv: Sequence[str]) -> int:
    """Trains, then tests the best weights."""
    return run("fit", argv)


def validate(argv: Sequence[str]) -> int:
    """Computes the validation metrics."""
    return run("validate", argv)


def test(argv: Sequence[str]) -> int:
    """Computes the test metrics."""
    return run("test", argv)


def run(command: str, argv: Sequence[str]) -> int:
    """Runs one of the Trainer's commands; an error becomes one line.

    Returns:
        The exit code.
    """
    return in_one_line(lambda: _run(command, argv), debug="--debug" in argv)


def in_one_line(action: Callable[[], int], *, debug: bool = False) -> int:
    """Runs a command; an error becomes one line.

    Args:
        action: returns the exit code.
        debug: whether errors show their traceback.

    Returns:
        The exit code: that of the action, 1 for an error, 2 for a wrong call, 130 after Ctrl-C.
    """
    try:
        return action()
    except UsageError as error:
        print(f"leyden: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"{_speaker()}: error: {_one_line(error, debug)}", file=sys.stderr)
        return 1


def _run(command: str, argv: Sequence[str]) -> int:
    arguments = parse_arguments(command, argv)
    if arguments.help is not None:
        print(HELP.format(command=command) + (HELP_FIT if command == "fit" else ""))
        from leyden.cli.lightning import print_help

        return print_help(command, arguments.help)
    if command == "fit" and arguments.resume is None:
        files = [find_config(name) for name in arguments.config]
        run = requeued_run(experiment_name(files), arguments.name, os.environ)
        if run is not None:
            arguments = Arguments(resume=str(run.path), debug=arguments.debug)
    tree, files = load_tree(command, arguments)
    # Lightning takes seconds to import: the files are checked before
    from leyden.cli.lightning import run_command

    return run_command(command, tree, arguments, files)


def parse_arguments(command: str, argv: Sequence[str]) -> Arguments:
    """Sorts the command line.

    Raises:
        UsageError: an option lacks its value or stands twice, or something is no option.
    """
    arguments = Arguments()
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        key, equals, value = token.partition("=")
        if token in ("-h", "--help") or key.endswith(".help"):
            arguments.help = [token, *rest[:1]] if key.endswith(".help") and not equals else [token]
            return arguments
        if token in ("--debug", "--print_config"):
            setattr(arguments, token[2:], True)
            continue
        if key != "-c" and not key.startswith("--"):
            raise UsageError(f"{token!r} is no option; options are --KEY=VALUE, a config file is given by -c {token}")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"{key} needs a value: {key}=VALUE")
            value = rest.pop(0)
        if key in ("-c", "--config"):
            arguments.config.append(value)
        elif key in ("--name", "--resume") and command == "fit":
            if getattr(arguments, key[2:]) is not None:
                raise UsageError(f"{key} is given twice")
            setattr(arguments, key[2:], value)
        else:
            arguments.options.append((key[2:], value))
    if arguments.name is not None and arguments.resume is not None:
        raise UsageError("--resume goes on in the folder of the run: it takes no --name")
    return arguments


def load_tree(command: str, arguments: Arguments) -> tuple[Section, list[Path]]:
    """Merges what the config is made of.

    The base is ``default.yaml``; for a resumed run, and for the evaluation of a run's checkpoint without ``-c``, the
    config of that run.

    Returns:
        The config, and the ``-c`` files (the base too where it is a run's).

    Raises:
        ConfigError: a file or option is wrong.
    """
    files = [find_config(name) for name in arguments.config]
    strategies = [path.stem for path in files if path.resolve().parent == config_folder().resolve() / "strategy"]
    if len({*strategies}) > 1:
        raise ConfigError(f"a run has one strategy, got -c strategy/{' and -c strategy/'.join(strategies)}")
    checkpoint = dict(arguments.options).get("ckpt_path")
    if arguments.resume is not None:
        files.insert(0, _run_to_resume(arguments.resume).config)
    elif command != "fit" and checkpoint and not files and (tested := run_of_checkpoint(checkpoint)):
        files.insert(0, tested.config)
    tree = read_config(config_folder() / "default.yaml")
    for path in files:
        tree = merge_file(tree, read_config(path))
    for key, text in arguments.options:
        set_option(tree, key, text)
    return tree, files


def _run_to_resume(folder: str) -> RunFolder:
    run = RunFolder(Path(folder))
    if run.config.is_file():
        return run
    raise ConfigError(f"--resume: {folder} is no run folder, it has no config.yaml{newest_run()}")


def _speaker() -> str:
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK", "0")
    return "leyden" if rank == "0" else f"leyden [rank {rank}]"


def _one_line(error: Exception, debug: bool) -> str:
    text = str(error)
    if "in DataLoader worker process" in text and not debug:  # a traceback, whose last line is the error
        text = text.strip().splitlines()[-1].removeprefix(f"{type(error).__name__}: ")
    message = " ".join(text.split()) or type(error).__name__
    if debug or isinstance(error, _expected_errors()):
        return message
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{type(error).__name__}: {message[:300]} ({where}); run again with --debug for the traceback"


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is written for the user."""
    expected: tuple[type[Exception], ...] = (ValueError, OSError, ImportError)
    if "lightning.pytorch" in sys.modules:
        from lightning.pytorch.utilities.exceptions import MisconfigurationException

        from leyden.core.meter import NonFiniteLossError

        expected += (MisconfigurationException, NonFiniteLossError)
    return expected
