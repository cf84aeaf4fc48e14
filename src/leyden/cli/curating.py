"""Parsing the config of a curation, and writing what it makes."""

import json
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import seed_everything

import leyden
from leyden.cli.config import ConfigError, Section, plain
from leyden.core.replace_file import replace_file
from leyden.curation import Curation
from leyden.data import DataModule, pack_tensors

__all__ = ["ParsedCuration", "parse_curation", "write_curation"]

KEYS = ("curation", "data", "seed_everything")


class ParsedCuration:
    """A curation's config.

    Args:
        parser: that parsed it.
        config: what it parsed.

    Attributes:
        resolved: the whole config, as plain values.
    """

    def __init__(self, parser: ArgumentParser, config: Namespace) -> None:
        self._parser = parser
        self._config = config
        self.resolved: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_unset=False))

    def make(self) -> tuple[Curation, DataModule]:
        """Makes the objects, after the seed was set.

        Raises:
            ConfigError: an argument is wrong.
        """
        seed_everything(self._config.seed_everything, verbose=False)
        try:
            made = self._parser.instantiate_classes(self._config)
        except ValueError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise ConfigError(f"{self.resolved['curation']['class_path'].rsplit('.', 1)[-1]}: {cause}") from error
        return made.curation, made.data


def parse_curation(tree: Section) -> ParsedCuration:
    """Parses the parts of a merged config that a curation has: ``curation``, ``data``, ``seed_everything``.

    Raises:
        ConfigError: there is no curation, or something in it is wrong.
    """
    if tree.get("curation") is None:
        raise ConfigError("the config has no curation: name one with -c, or write 'curation: {class_path: ...}'")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Curation, "curation", required=True)
    parser.add_subclass_arguments(DataModule, "data", required=True)
    parser.add_argument("--seed_everything", type=int, default=0)
    own = Section()
    for key in KEYS:
        if key in tree:
            own.put(key, tree[key], tree.origin.get(key, ""))
    try:
        return ParsedCuration(parser, parser.parse_object(plain(own)))
    except ArgumentError as error:
        from leyden.cli.diagnosis import diagnose

        raise ConfigError(diagnose(own, parser, error)) from error


def write_curation(parsed: ParsedCuration, output: Path) -> tuple[int, dict[str, float]]:
    """Runs a curation and writes its training set; the file says in its header how it was made.

    One that was killed goes on if it is run again with the same config and file.

    Returns:
        Number of samples, and the numbers that it returned beside them.

    Raises:
        ConfigError: the curation returned no training set.
    """
    curation, data = parsed.make()
    config = json.dumps(parsed.resolved)
    progress = output.with_name(f".{output.name}.progress")
    curation.keep_progress(progress, config)
    with torch.no_grad():
        returned = curation(data)
    tensors = {key: tensor for key, tensor in returned.items() if tensor.ndim}
    numbers = {key: float(tensor) for key, tensor in returned.items() if not tensor.ndim}
    missing = [key for key in ("input", "target") if key not in tensors]
    if missing or not len(tensors["input"]):
        raise ConfigError(
            f"{type(curation).__name__} returned no training set: "
            + (f"no {missing[0]!r}" if missing else "no samples")
        )
    header = {"config": parsed.resolved, "versions": {"leyden": leyden.__version__, "torch": torch.__version__}}
    if numbers:
        header["numbers"] = numbers
    with replace_file(output) as file:
        file.write(pack_tensors(tensors, metadata={"curation": json.dumps(header)}))
    progress.unlink(missing_ok=True)
    return len(tensors["input"]), numbers
