"""``leyden curate``: a training set made or chosen before training, as a file."""

import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from leyden.cli.commands import Arguments, in_one_line, load_tree, parse_arguments
from leyden.cli.config import ConfigError
from leyden.cli.run_folder import LOGS, experiment_name

__all__ = ["curate"]


def curate(argv: Sequence[str]) -> int:
    """Runs a curation.

    Returns:
        The exit code.
    """
    parser = ArgumentParser(
        prog="leyden curate",
        allow_abbrev=False,
        description="Makes a training set by the 'curation' of a config from its 'data', and writes it into a "
        "safetensors file that leyden.data.CuratedData trains on. The seed is seed_everything. A curation that was "
        "killed goes on if it is run again with the same config and --name or --output.",
        epilog="--KEY=VALUE sets a value of the config, as in leyden fit: --curation.images_per_class=5",
    )
    parser.add_argument("-c", "--config", action="append", default=[], metavar="FILE", help="config, as of leyden fit")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: logs/curation/NAME/dataset.safetensors")
    parser.add_argument("--name", help="of the folder, without --output (default: config and time)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments, rest = parser.parse_known_args(list(argv))

    def go() -> int:
        options = parse_arguments("curate", rest).options
        tree, files = load_tree("fit", Arguments(config=arguments.config, options=options))
        # torch takes seconds to import
        from leyden.cli.curating import parse_curation, write_curation

        name = arguments.name or f"{experiment_name(files)}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
        output = arguments.output or LOGS / "curation" / name / "dataset.safetensors"
        if output.exists():
            raise ConfigError(f"{output} is there already: choose another --output or --name")
        num_samples, _ = write_curation(parse_curation(tree), output)
        print(f"leyden: {output}: {num_samples} samples", file=sys.stderr)
        return 0

    return in_one_line(go, debug=arguments.debug)
