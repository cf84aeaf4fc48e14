"""The process that makes runs of a sweep, one after another, as it is told."""

import gc
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from leyden.cli.compare_worker import end_with_parent, output_to
from leyden.cli.config import Section

__all__ = ["SweepRun", "serve"]

Ending = tuple[str, float | None, str]


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep.

    Attributes:
        folder: of the run; one that was interrupted goes on there.
        tree: the merged config.
        files: the config files that were named.
        metric: that is optimized.
        mode: ``min`` or ``max``.
    """

    folder: Path
    tree: Section
    files: list[Path]
    metric: str
    mode: str


def serve(connection: Connection) -> None:
    """Makes the runs that come through the connection.

    It sends ``("value", iteration, value)`` whenever the metric is logged and takes an answer, whether to stop; and
    ``("end", outcome, value, message, seconds)`` after each run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent ends this one
    threading.Thread(target=end_with_parent, daemon=True).start()
    import leyden.cli.sweep_fit  # noqa: F401  seconds that are not the first run's

    while True:
        run = connection.recv()
        run.folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with output_to(run.folder / "output.log"):
            ending = _make(run, connection)
        connection.send(("end", *ending, time.monotonic() - started))
        gc.collect()


def _make(run: SweepRun, connection: Connection) -> Ending:
    from leyden.cli.sweep_fit import DivergedError, NotLoggedError, StoppedEarlyError, SweepFit
    from leyden.core.meter import NonFiniteLossError

    def should_stop(iteration: int, value: float) -> bool:
        connection.send(("value", iteration, value))
        return connection.recv()

    try:
        return "complete", SweepFit(run, should_stop).value, ""
    except StoppedEarlyError as error:
        return "stopped early", None, str(error)
    except (DivergedError, NonFiniteLossError) as error:
        return "diverged", None, " ".join(str(error).split())
    except NotLoggedError as error:
        return "not logged", None, str(error)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return "failed", None, " ".join(str(error).split()) or type(error).__name__
