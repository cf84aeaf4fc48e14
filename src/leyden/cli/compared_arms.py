"""What can be compared: the config of a fit, a function of its checkpoint (which trains nothing), a stages file.

An evaluator is a config with ``evaluate: {function: PATH, arguments: {...}}``; the function is called with the method
that has the weights of the best checkpoint, the data, and the arguments, and returns numbers by name. Fits of one
config are made once, whatever is evaluated in them. A stages file is run as ``leyden run`` does; ``FILE:STAGE``
compares the metrics of one of its stages, a file alone those of the last stage that has the metric.
"""

import hashlib
import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from leyden.cli.commands import Arguments, load_tree
from leyden.cli.compare_worker import Job
from leyden.cli.comparison import Arm
from leyden.cli.config import ConfigError, Section, config_folder, find_config, plain, read_config, set_option
from leyden.cli.quiet import only_measured
from leyden.cli.run_folder import LOGS, experiment_name
from leyden.cli.stages import read_stages, stages_name

__all__ = ["load_arm", "load_job", "source_digest"]

RUNS = "runs"


def load_arm(name: str, settings: list[str], seeds: list[int]) -> tuple[Arm, Job]:
    """Reads and checks what is to be compared.

    Args:
        name: of a config as ``-c`` takes it, or a stages file.
        settings: ``KEY=VALUE`` for the config, or for all stages.
        seeds: of the runs.

    Raises:
        ConfigError: something in it is wrong.
    """
    job = load_job(name, settings, seeds)
    source = _digest(plain(job.tree) | ({"evaluate": job.evaluate} if job.evaluate else {}))
    if job.stages is not None:
        return _stages_arm(name, job, source)
    resolved = _parse(job)
    key = _digest(resolved)
    folder = LOGS / "compare" / RUNS / experiment_name(job.files) / key
    if job.evaluate is not None:
        from leyden.cli.trainless_stages import check_function

        check_function(job.evaluate[0], [None, None], job.evaluate[1])
        resolved["evaluate"] = {"class_path": job.evaluate[0], "init_args": job.evaluate[1]}
        key = _digest(resolved)
    return Arm(name, resolved, key, source, folder), replace(job, folder=folder)


def load_job(name: str, settings: list[str], seeds: list[int]) -> Job:
    """Merges a config and takes from it what only shows a run.

    Raises:
        ConfigError: a file or option is wrong.
    """
    options = [_option(setting) for setting in settings]
    stage: str | None = None
    try:
        path = find_config(name)
    except ConfigError:
        file, colon, stage = name.rpartition(":")
        if not colon:
            raise
        path = find_config(file)
    content = read_config(path)
    if "stages" in content:
        return _stages_job(path, stage, options, seeds)
    if stage is not None:
        raise ConfigError(f"{path} has no stages, so that there is no {stage!r} in it")
    files = [] if path.resolve() == (config_folder() / "default.yaml").resolve() else [str(path)]
    evaluate = None
    if "evaluate" in content:
        # the fit is that of the file below
        below = find_config(str(content["base"])) if "base" in content else config_folder() / "default.yaml"
        files = [] if below.resolve() == (config_folder() / "default.yaml").resolve() else [str(below)]
        evaluate = _evaluator(content)
    tree, paths = load_tree("fit", Arguments(config=files, options=options))
    only_measured(tree)
    set_option(tree, "test_after_fit", "true")
    if tree["trainer"].get("devices") in (None, "auto"):
        set_option(tree, "trainer.devices", "1")
    if str(tree["trainer"]["devices"]) != "1" or str(tree["trainer"].get("num_nodes", 1)) != "1":
        raise ConfigError(
            f"{name} asks for several devices; a comparison makes each run on one: --set trainer.devices=1"
        )
    return Job(Path(), tree, paths, seeds, evaluate=evaluate)


def source_digest(name: str) -> str:
    """Digest of a config as it is written now, as evidence has it: without the defaults of classes."""
    job = load_job(name, [], [])
    return _digest(plain(job.tree) | ({"evaluate": job.evaluate} if job.evaluate else {}))


def _evaluator(content: Section) -> tuple[str, dict[str, Any]]:
    section = content["evaluate"]
    origin = content.origin["evaluate"]
    if not isinstance(section, Section) or not isinstance(section.get("function"), str):
        raise ConfigError(f"{origin}: evaluate needs a function: {{function: PATH, arguments: {{...}}}}")
    if strange := next((key for key in content if key not in ("base", "evaluate")), None):
        raise ConfigError(f"{content.origin[strange]}: a file that evaluates has no {strange!r}: its base trains")
    if strange := next((key for key in section if key not in ("function", "arguments")), None):
        raise ConfigError(f"{section.origin[strange]}: there is no key {strange!r}; there are: function, arguments")
    return section["function"], plain(section.get("arguments") or {})


def _parse(job: Job) -> dict[str, Any]:
    import yaml

    from leyden.cli.lightning import run_command

    printed = io.StringIO()
    with redirect_stdout(printed):
        run_command("fit", job.tree, Arguments(print_config=True), job.files)
    return _without_seed(yaml.safe_load(printed.getvalue()))


def _without_seed(resolved: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v for k, v in resolved.items() if k not in ("standalone", "seed_everything", "ckpt_path", "weights_only")
    }


# ---- stages


def _stages_job(path: Path, stage: str | None, options: list[tuple[str, str]], seeds: list[int]) -> Job:
    stages = read_stages(path)
    if stage is not None and stage not in stages.givers:
        raise ConfigError(f"{path} has no stage {stage!r}; there are: {', '.join(stages.givers)}")
    stages.measured = True
    tree = Section()
    tree.put("stages", read_config(path), str(path))
    tree.put("options", [list(option) for option in options], "command line")
    return Job(Path(), tree, [path], seeds, stages=path, stage=stage)


def _stages_arm(name: str, job: Job, source: str) -> tuple[Arm, Job]:
    from leyden.cli.stage_config import check_stages

    assert job.stages is not None
    stages = read_stages(job.stages)
    stages.measured = True
    options = [(key, value) for key, value in job.tree["options"]]
    # stand-ins for what is taken lie in a folder of one name: it must not tell two runs apart
    resolved = {stage: _without_seed(config) for stage, config in check_stages(stages, options, Path(RUNS)).items()}
    key = _digest({"stages": plain(job.tree["stages"]), "resolved": resolved})
    folder = LOGS / "compare" / RUNS / stages_name(job.stages) / key
    trained = [stage for _, stage in stages if stage.run == "fit"]
    measured = job.stage or (trained[-1].name if trained else next(iter(resolved)))
    data = resolved[measured].get("data") or next((c["data"] for c in resolved.values() if c.get("data")), None)
    whole = {"stages": resolved, "data": data, "stage": job.stage}
    loop, stage = stages.givers[measured]
    log = loop.folder(stage, loop.last_round) + ("/member-0" if stage.members is not None else "")
    return Arm(name, whole, _digest(whole), source, folder, stage=job.stage, log=log), replace(job, folder=folder)


def _option(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set takes KEY=VALUE, got {setting!r}")
    return key, value


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    # the evidence of a template holds in a clone that has another name
    text = text.replace(f'"{__name__.partition(".")[0]}.', '"leyden.')  # keep this name
    return hashlib.sha256(text.encode()).hexdigest()[:12]
