"""``leyden export``: the network of a checkpoint as a file that other programs read."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from leyden.cli.commands import Arguments, in_one_line, load_tree, parse_arguments
from leyden.cli.config import Section, set_option
from leyden.cli.run_folder import find_checkpoint, run_of_checkpoint

__all__ = ["export"]

SUFFIXES = {"safetensors": ".safetensors", "torchscript": ".ts", "pt2": ".pt2", "onnx": ".onnx"}
# The network alone, on one CPU: nothing that logs, shares work out or compiles.
SETTINGS = {
    "trainer.accelerator": "cpu",
    "trainer.devices": "1",
    "trainer.num_nodes": "1",
    "trainer.strategy": "auto",
    "trainer.precision": "null",
    "trainer.logger": "false",
    "trainer.limit_predict_batches": "2",
    "trainer.enable_progress_bar": "false",
}


def export(argv: Sequence[str]) -> int:
    """Exports the network of a checkpoint.

    Returns:
        The exit code.
    """
    parser = ArgumentParser(
        prog="leyden export",
        allow_abbrev=False,
        description="Writes the network of a checkpoint (the average of its weights, if there is one) into a file, "
        "after it gave the same outputs from there on two batches to predict. Parametrizations are resolved, the size "
        "of the batch is free.",
        epilog="--KEY=VALUE sets a value of the run's config, as in leyden fit.",
    )
    parser.add_argument("source", metavar="RUN|CKPT", help="run folder (its best checkpoint) or checkpoint")
    parser.add_argument("--to", required=True, choices=SUFFIXES, help="format of the file")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: RUN/export/<checkpoint>.<format>")
    parser.add_argument("-c", "--config", action="append", default=[], help="config, if it is not that of the run")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments, options = parser.parse_known_args(list(argv))
    return in_one_line(lambda: _export(arguments, options), debug=arguments.debug)


def _export(arguments: Namespace, options: list[str]) -> int:
    checkpoint = find_checkpoint(arguments.source)
    tree, files = _config(checkpoint, arguments.config, parse_arguments("export", options).options)
    run = run_of_checkpoint(str(checkpoint))
    folder = (run.path if run else checkpoint.parent) / "export"
    output = arguments.output or folder / f"{checkpoint.stem}{SUFFIXES[arguments.to]}"
    # torch takes seconds to import
    from leyden.cli.export_formats import FORMATS, write_checked
    from leyden.cli.exported_network import network_of_checkpoint

    network, inputs, metadata = network_of_checkpoint(tree, files, folder)
    if arguments.to == "torchscript":
        print("leyden: torchscript is deprecated by PyTorch; pt2 is what replaces it", file=sys.stderr)
    difference = write_checked(FORMATS[arguments.to], network, inputs, metadata, output)
    rows = ", ".join(str(len(x)) for x in inputs)
    print(f"leyden: {output}: outputs differ by at most {difference:.1e} from the network's (batches of {rows})")
    return 0


def _config(checkpoint: Path, config: list[str], options: list[tuple[str, str]]) -> tuple[Section, list[Path]]:
    options = [*SETTINGS.items(), *options, ("ckpt_path", str(checkpoint))]
    tree, files = load_tree("predict", Arguments(config=config, options=options))
    callbacks = tree["trainer"].get("callbacks")
    if isinstance(callbacks, list):  # a bar is refused where there shall be none
        callbacks[:] = [item for item in callbacks if "ProgressBar" not in str(item)]
    model = tree.get("model")
    if isinstance(model, Section) and "compile" in model.get("init_args", {}):
        set_option(tree, "model.compile", "false")
    return tree, files
