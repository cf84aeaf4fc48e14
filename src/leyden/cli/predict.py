"""``leyden predict``: what the network of a checkpoint says of each sample, as a table."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from leyden.cli.commands import HELP, in_one_line, load_tree, parse_arguments
from leyden.cli.config import set_option
from leyden.cli.run_folder import find_checkpoint

__all__ = ["predict"]

HELP_PREDICT = """\
  RUN|CKPT            run folder (its best checkpoint) or checkpoint, as --ckpt_path and the config of the run
  --to FORMAT         csv (default), parquet, or pt: all tensors of predict_step, which must fit into memory
  --output FILE       default: RUN/predict/predictions.<format>
"""


def predict(argv: Sequence[str]) -> int:
    """Writes predictions.

    Returns:
        The exit code.
    """
    return in_one_line(lambda: _predict(list(argv)), debug="--debug" in argv)


def _predict(argv: list[str]) -> int:
    source = [argv.pop(0)] if argv and not argv[0].startswith("-") else []
    own, rest = _parse(argv)
    arguments = parse_arguments("predict", rest)
    if arguments.help is not None:
        from leyden.cli.lightning import print_help

        print(HELP.format(command="predict [RUN|CKPT]") + HELP_PREDICT)
        return print_help("predict", arguments.help)
    arguments.options += [("ckpt_path", str(find_checkpoint(name))) for name in source]
    tree, files = load_tree("predict", arguments)
    set_option(tree, "return_predictions", "true" if own.to == "pt" else "false")
    # Lightning takes seconds to import: the files are checked before
    from leyden.cli.lightning import run_command
    from leyden.cli.prediction_writer import PredictCLI

    return run_command("predict", tree, arguments, files, make=lambda *args: PredictCLI(own.to, own.output, *args))


def _parse(argv: list[str]) -> tuple[Namespace, list[str]]:
    parser = ArgumentParser(prog="leyden predict", add_help=False, allow_abbrev=False)
    parser.add_argument("--to", choices=("csv", "parquet", "pt"), default="csv")
    parser.add_argument("--output", type=Path)
    return parser.parse_known_args(argv)
