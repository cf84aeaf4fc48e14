"""The ``leyden`` command: a table of subcommands, each imported when it is called."""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

__all__ = ["COMMANDS", "main"]

# name: (module:function, one line of help); the function takes the arguments after the name and returns the exit code
COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("leyden.cli.commands:fit", "train, then test the best weights"),
    "validate": ("leyden.cli.commands:validate", "compute the validation metrics of a checkpoint"),
    "test": ("leyden.cli.commands:test", "compute the test metrics of a checkpoint"),
    "predict": ("leyden.cli.predict:predict", "write what the network of a checkpoint says of each sample"),
    "run": ("leyden.cli.run:run", "run several fits and evaluations one after another, as one run"),
    "submit": ("leyden.cli.submit:submit", "check a fit and give it to SLURM, on one node or many"),
    "ray": ("leyden.cli.ray:ray", "check a fit and run it on a Ray cluster"),
    "sweep": ("leyden.cli.sweep:sweep", "choose hyperparameters: run a W&B sweep file on this machine"),
    "curate": ("leyden.cli.curate:curate", "make or choose a training set before training, as a file"),
    "combine": ("leyden.cli.combine:combine", "make one checkpoint of several: averages, soups, TIES, DARE"),
    "compare": ("leyden.cli.compare:compare", "train a baseline and methods in the same seeds, report differences"),
    "export": ("leyden.cli.export:export", "write the network of a checkpoint as safetensors, pt2, ONNX, ..."),
    "report": ("leyden.cli.report.command:report", "write a page with curves and pictures of runs side by side"),
    "sparsity-curve": ("leyden.cli.sparsity_curve:sparsity_curve", "evaluate a checkpoint with ever fewer weights"),
    "check": ("leyden.cli.check:check", "say what is wrong with config files, without training"),
    "schema": ("leyden.cli.schema:schema", "write a JSON Schema of config files, for editors"),
    "new": ("leyden.cli.new:new", "write a part of your own, with its test and its experiment"),
    "rename": ("leyden.cli.rename:rename", "make this clone your own template, under another name"),
    "completion": ("leyden.cli.completion:completion", "print a script by which the shell completes commands"),
    "papers": ("leyden.cli.catalog:papers", "list or search the papers of the catalog"),
    "show": ("leyden.cli.catalog:show", "show a paper: its parts, its experiment, and what it gave"),
    "results": ("leyden.cli.catalog:results", "write docs/results.md from the recorded evidence"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv: the arguments; those of the process if None.

    Returns:
        The exit code: 0, 1 for an error, 2 for a wrong call, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
        print("\n".join(["usage: leyden COMMAND [ARGUMENTS]", "", *lines, "", "leyden COMMAND --help says more."]))
        return 0
    if command == "--version":
        from leyden import __version__

        print(f"leyden {__version__}")
        return 0
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}"
        print(f"leyden: error: there is no command {command!r}; {advice}", file=sys.stderr)
        return 2
    # Threads that wait for each other sleep instead of spinning: where other programs share the cores, spinning made
    # small networks twenty times slower. To be set before torch loads its thread library.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module, function = COMMANDS[command][0].split(":")
    return getattr(import_module(module), function)(arguments)
