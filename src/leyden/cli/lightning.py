"""The LightningCLI of Leyden: one parse of the merged config, a folder per run, a test of the best weights."""

import logging
import os
import shutil
import signal
import sys
import time
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from leyden.callbacks.run_record import RunRecord
from leyden.cli.commands import Arguments
from leyden.cli.config import ConfigError, Section, plain
from leyden.cli.launch import check_environment, check_same_config, check_strategy
from leyden.cli.run_folder import RUN_DIR_VARIABLE, RunFolder, experiment_name, run_of_checkpoint
from leyden.cli.wandb_runs import finish_wandb, is_wandb, named_by_class, new_wandb_id, prepare_wandb
from leyden.core.replace_file import replace_file
from leyden.plugins.checkpoint_io import DamagedCheckpointError

__all__ = ["LeydenCLI", "print_help", "quiet_lightning", "run_command", "say"]


class LeydenCLI(LightningCLI):
    """Parses a merged config, makes the objects, and runs one of the Trainer's commands.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        tree: the merged config.
        arguments: the command line.
        files: the config files that were named, for the experiment's name.

    Attributes:
        run: folder of the run.
        config_dump: the resolved config, as plain values.
    """

    def __init__(self, command: str, tree: Section, arguments: Arguments, files: list[Path]) -> None:
        self.command = command
        self.arguments = arguments
        self.files = files
        self.run: RunFolder | None = None
        self.started = 0.0
        self._failure: tuple[type, Exception] | None = None
        try:
            super().__init__(
                save_config_callback=SaveConfig if command == "fit" else None,  # type: ignore[arg-type]
                save_config_kwargs={"cli": self},
                parser_kwargs={"exit_on_error": False, command: {"exit_on_error": False}},
                auto_configure_optimizers=False,
                args=tree,
            )
        except Exception:
            self._end_children()
            self._forget_wandb()
            raise
        finally:
            os.environ.pop(RUN_DIR_VARIABLE, None)
            finish_wandb()
            if self.run is not None:
                self.run.discard_if_empty()

    def _end_children(self) -> None:
        """Ends the processes that Lightning started, which would wait for this one."""
        launcher = self.trainer.strategy.launcher if hasattr(self, "trainer") else None
        if launcher is not None and hasattr(launcher, "kill"):
            with suppress(ProcessLookupError):
                launcher.kill(signal.SIGTERM)

    @rank_zero_only
    def _forget_wandb(self) -> None:
        """Removes what W&B wrote of a fit that failed before its first step, because it opens its run before."""
        finish_wandb()
        if self.command == "fit" and self.run is not None and not self.run.config.exists():
            shutil.rmtree(self.run.path / "wandb", ignore_errors=True)

    # ---- parsing

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one that runs: the parsers of the others would cost time."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the top-level keys that Lightning does not have."""
        parser.add_argument("--test_after_fit", type=bool, default=True, help="Test the best weights after a fit.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the merged config; prints it and stops if that was asked for.

        Raises:
            ConfigError: something in it is wrong.
        """
        if self.arguments.help is not None:
            parser.parse_args([self.command, *self.arguments.help])
        command_parser = self._parser(self.command)
        try:
            # the parser itself passes over an unknown key whose value is an empty mapping
            if not _known_keys(command_parser).issuperset(_keys(args)):
                raise ArgumentError(None, "unknown key")
            self.config = parser.parse_object({"subcommand": self.command, self.command: plain(args)})
        except ArgumentError as error:
            from leyden.cli.diagnosis import diagnose

            raise ConfigError(diagnose(args, command_parser, error)) from error
        if self.arguments.print_config:
            print(_with_header(self._dumped()), end="")
            raise SystemExit(0)

    def _parse_ckpt_path(self) -> None:
        """Leaves the config as typed; Lightning would put what a checkpoint saved over it."""

    @property
    def settings(self) -> Namespace:
        """The parsed config of the command."""
        return self.config[self.command]

    def _dumped(self) -> str:
        return self._parser(self.command).dump(self.settings, skip_unset=False)

    def _dump_config(self) -> None:
        """Nothing more to do: `before_instantiate_classes` made ``config_dump``, before paths were filled in."""

    # ---- making the objects

    def _add_instantiators(self) -> None:
        super()._add_instantiators()
        for base in (Callback, Logger):
            self.parser.add_instantiator(self._instantiate, base)

    def _instantiate(self, class_type: type, *args: Any, **kwargs: Any) -> Any:
        try:
            return class_type(*args, **kwargs)
        except Exception as error:
            self._failure = (class_type, error)
            raise

    def instantiate_classes(self) -> None:
        """Makes all objects.

        Raises:
            ConfigError: an argument is wrong. The parser would report it as one of many types that do not fit.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            if self._failure is not None:
                class_type, reason = self._failure
                if isinstance(reason, ModuleNotFoundError) and issubclass(class_type, Logger):
                    raise ConfigError(
                        f"{class_type.__name__} needs a package that is not there: pip install 'leyden[loggers]'"
                    ) from reason
                if not isinstance(reason, ValueError):
                    raise reason from None
                raise ConfigError(f"{class_type.__name__}: {reason}") from reason
            cause: BaseException = error
            while str(cause).startswith("Does not validate") and cause.__cause__ is not None:
                cause = cause.__cause__
            raise cause from None
        check_environment(self.trainer.strategy, os.environ)
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger) and logger._wandb_init["anonymous"] is None:
                del logger._wandb_init["anonymous"]  # only its being there makes W&B warn that it has no effect

    # ---- the run folder

    def before_instantiate_classes(self) -> None:
        """Chooses the run folder and fills in what depends on it.

        The config that is saved is the one before: it does not name the folder in which it lies, so that a copied or
        moved run stays whole.
        """
        settings, arguments = self.settings, self.arguments
        check_strategy(settings.trainer.strategy)
        loggers = list(_classes(settings.trainer.logger))
        checkpoint = settings.get("ckpt_path")
        tested = run_of_checkpoint(checkpoint) if checkpoint and self.command != "fit" else None
        self.run = self._choose_run(tested)
        if arguments.resume is None and self.command == "fit":
            for logger in loggers:
                if is_wandb(logger.class_path):
                    # a run of its own, also with the config of another; an agent of a W&B sweep has named it already
                    logger.init_args.id = os.environ.get("WANDB_RUN_ID") or new_wandb_id()
                    logger.init_args.resume = "allow"
        settings.ckpt_path = None if self.command == "fit" else checkpoint
        self.config_dump = yaml.safe_load(self._dumped())
        if self.command == "fit":
            settings.ckpt_path = checkpoint or self._checkpoint_to_resume()
        settings.weights_only = True  # a checkpoint must not run code

        folder = str(self.run.path)
        if settings.trainer.default_root_dir is None:
            settings.trainer.default_root_dir = folder
        for callback in _classes(settings.trainer.callbacks):
            if "dirpath" in callback.init_args and callback.init_args.dirpath is None:
                callback.init_args.dirpath = str((tested or self.run).checkpoints)
        for logger in loggers:
            if "save_dir" in logger.init_args and logger.init_args.save_dir in (None, "."):
                logger.init_args.save_dir = folder
            if is_wandb(logger.class_path):
                prepare_wandb(logger.init_args, self.run.label)
            if "run_name" in logger.init_args:  # MLflow's
                logger.init_args.run_name = logger.init_args.run_name or self.run.label
        say(folder)

    def _choose_run(self, tested: RunFolder | None) -> RunFolder:
        if self.arguments.resume is not None:
            return RunFolder(Path(self.arguments.resume))
        if tested is not None:
            return RunFolder(tested.path / self.command)  # leaves the run's own config and metrics as they are
        num_nodes = self.settings.trainer.num_nodes
        run = RunFolder.new(experiment_name(self.files), self.arguments.name, os.environ, num_nodes)
        os.environ[RUN_DIR_VARIABLE] = str(run.path)
        return run

    @rank_zero_only
    def _forget_metrics(self) -> None:
        assert self.run is not None
        (self.run.path / "metrics.csv").unlink(missing_ok=True)

    def _checkpoint_to_resume(self) -> str | None:
        """The checkpoint of a resumed run; without one the run starts from the beginning, with an empty log."""
        assert self.run is not None
        if self.arguments.resume is not None:
            # of a run that goes on, the folder has files: as it must, or those of a kill before the first whole epoch
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            if self.run.last_checkpoint.is_file():
                return str(self.run.last_checkpoint)
            say(f"{self.run.path} has no checkpoint yet: it starts from the beginning")
        self._forget_metrics()
        return None

    # ---- after the fit

    def before_fit(self) -> None:
        """Starts the clock."""
        self.started = time.monotonic()

    def after_fit(self) -> None:
        """Tests the best weights and prints the summary."""
        from leyden.cli.summary import print_summary

        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        seconds = time.monotonic() - self.started
        best = next((path for path in map(_best_path, self.trainer.checkpoint_callbacks) if path), None)
        metrics: dict[str, float] = {}
        if self.settings.test_after_fit and _has_test(self.model, self.datamodule):
            results = self.trainer.test(
                self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False, weights_only=True
            )
            metrics = {name: value for result in results for name, value in result.items()}
        self._report()
        finish_wandb()  # has its own last words
        if self.trainer.is_global_zero:
            assert self.run is not None
            print_summary(self.run, self.trainer, metrics, seconds, best)

    @rank_zero_only
    def _report(self) -> None:
        """Writes the page about the run and shows it in W&B, where there is a `RunRecord`."""
        if not any(isinstance(callback, RunRecord) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            return
        from leyden.cli.report.command import PAGE, write_report

        assert self.run is not None
        for logger in self.trainer.loggers:
            logger.save()
        try:
            write_report([self.run.path], self.run.path / PAGE)
        except (ConfigError, OSError) as error:  # the fit has ended well: its page must not undo that
            say(f"no page about the run: {' '.join(str(error).split())}")
            return
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger):
                from leyden.cli.report.to_wandb import log_report

                log_report(logger, self.run.path)


class SaveConfig(Callback):
    """Writes the resolved config into the run folder and gives it to the loggers, once, when training starts.

    By then data and model were made and a checkpoint was read: a run that cannot start, or cannot go on with what was
    typed, leaves no folder behind, and the config of the run to be resumed as it was.

    Args:
        parser: unused; LightningCLI gives it.
        config: unused; LightningCLI gives it.
        cli: has the folder and the resolved config.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, *, cli: LeydenCLI) -> None:
        self.cli = cli
        self._written = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compares the processes' configs.

        Raises:
            ConfigError: they differ.
        """
        check_same_config(self.cli.config_dump)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes."""
        self._write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes, if there was nothing to train."""
        if not self._written:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        self._written = True
        if not trainer.is_global_zero:
            return
        assert self.cli.run is not None
        with replace_file(self.cli.run.config) as file:
            file.write(_with_header(yaml.safe_dump(self.cli.config_dump, sort_keys=False)).encode())
        hyperparameters = named_by_class(self.cli.config_dump)
        hyperparameters["trainer"].pop("logger", None)  # where a run is written changes nothing in it
        for logger in trainer.loggers:
            logger.log_hyperparams(hyperparameters)


def run_command(
    command: str,
    tree: Section,
    arguments: Arguments,
    files: list[Path],
    *,
    make: Callable[..., LeydenCLI] = LeydenCLI,
) -> int:
    """Runs one of the Trainer's commands.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        tree: the merged config.
        arguments: the command line.
        files: the config files that were named.
        make: takes these four and runs the command.

    Returns:
        The exit code.

    Raises:
        Exception: whatever went wrong.
    """
    quiet_lightning()
    try:
        make(command, tree, arguments, files)
    except SIGTERMException:
        return 128 + signal.SIGTERM
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's own end after Ctrl-C
            return 128 + signal.SIGINT
        return int(stop.code or 0)
    except DamagedCheckpointError as error:
        if arguments.resume is None or not error.intact:
            raise
        again = f"leyden fit --resume {arguments.resume} --ckpt_path {error.intact[0]}"
        raise ConfigError(f"{error}; go on from there: {again}") from error
    return 0


def quiet_lightning() -> None:
    """Takes out an advertisement, and a warning that is Lightning's own under newer torch."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)


def print_help(command: str, arguments: list[str]) -> int:
    """Prints jsonargparse's help of all keys, or of one class (``--model.help CLASS``).

    Returns:
        The exit code.
    """
    try:
        LeydenCLI(command, Section(), Arguments(help=arguments), [])
    except ArgumentError as error:
        raise ConfigError(str(error)) from error
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@rank_zero_only
def say(line: str) -> None:
    """Prints a line to the terminal, once for all processes."""
    print(f"leyden: {line}", file=sys.stderr)


def _known_keys(parser: LightningArgumentParser) -> set[str]:
    return {part for action in parser._actions for part in (action.dest.split(".")[0], action.dest)}


def _keys(tree: Section) -> set[str]:
    trainer = tree.get("trainer")
    return {*tree, *(f"trainer.{key}" for key in (trainer if isinstance(trainer, Section) else ()))}


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()


def _classes(value: Any) -> Iterator[Namespace]:
    """The class nodes among the values of a key that takes one or a list."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, Namespace) and "class_path" in item:
            item.init_args = item.get("init_args", Namespace())
            yield item


def _best_path(callback: Any) -> str:
    return getattr(callback, "best_model_path", "")


def _has_test(model: Any, datamodule: Any) -> bool:
    has_data = is_overridden("test_dataloader", model) or (
        datamodule is not None and is_overridden("test_dataloader", datamodule)
    )
    return has_data and is_overridden("test_step", model)


def _with_header(config: str) -> str:
    return f"standalone: true  # the whole config: default.yaml is not put underneath\n{config}"
