"""Stages files: what is wrong in them is said in one line, before anything is trained."""

from pathlib import Path

import pytest

from leyden.cli import main
from leyden.cli.config import ConfigError
from leyden.cli.stages import read_stages, stages_name

EXAMPLES = sorted((Path(__file__).parents[2] / "configs" / "stages").glob("*.yaml"))
SOFT = "trainer.callbacks.Distillation.teacher"


def read(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    return read_stages(path)


WRONG = {
    "nothing: 1": "there is no key 'nothing'",
    "stages: {}": "it has no stages",
    "stages: {a: {rnu: fit}}": "no key 'rnu'; did you mean 'run'",
    "stages: {a: {run: train}}": "run must be one of fit, validate, test, predict, combine, curate, evaluate, call,",
    "stages: {before: {}}": "'before' cannot be a stage's name",
    "stages: {a/b: {}}": "'a/b' cannot be a stage's name",
    "stages: {a: 3}": "the stage a must be a mapping, got 3",
    "stages: {a: {}, a: {}}": "the key 'a' is given twice",
    "stages: {a: {}, l: {rounds: 2, stages: {a: {}}}}": "there is another stage 'a'",
    "stages: {a: {members: 0}}": "members must be a number from 1 on, got 0",
    "stages: {a: {rounds: true}}": "rounds must be a number from 1 on, got True",
    "stages: {l: {rounds: 2, stages: {a: {rounds: 2}}}}": "rounds within rounds: a cannot repeat",
    "stages: {l: {stages: {a: {}}}}": "l needs stages, and rounds or until",
    "stages: {l: {rounds: 2, set: {x: 1}, stages: {a: {}}}}": "'set' belongs to one of the stages in l",
    "stages: {a: {run: test, gives: [weights]}}": "a is a test, which gives no weights, only metrics",
    "stages: {a: {gives: [dataset]}}": "a is a fit, which gives no dataset, only weights, network, checkpoint, metrics",
    "stages: {a: {run: call}}": "a stage has a function if it is a call",
    "stages: {a: {run: evaluate}}": "a stage has a function if it is a call or an evaluate",
    "stages: {a: {run: evaluate, function: f}}": "runs evaluate takes ckpt_path: STAGE.checkpoint",
    "stages: {a: {run: combine}}": "a: a stage that runs combine takes ckpts: STAGE.checkpoint",
    "stages: {a: {run: curate, gives: [weights]}}": "a is a curate, which gives no weights, only dataset",
    "stages: {a: {members: 2, gives: [weights]}, b: {run: combine, takes: {ckpts: a.weights}}}": "ckpts takes a check",
    "stages: {a: {gives: [checkpoint]}, b: {run: combine, takes: {ckpts: a.checkpoint}}}": "b combines members",
    "stages: {a: {set: {x: 1}, takes: {x: round}, rounds: 2}}": "x of a is set twice",
    "stages: {a: {takes: {x: round}}}": "a takes its round for x, but has no rounds",
    "stages: {a: {takes: {x: member}}}": "a takes its member for x, but has no members",
    "stages: {a: {takes: {x: 3}}}": "3 is nothing to be taken",
    "stages: {a: {members: 2, gives: [weights]}, b: {takes: {x: member.a.weights}}}": "have not as many members",
    "stages: {one: {gives: [weights]}, a: {takes: {x: onee.weights}}}": "no stage 'onee'; did you mean 'one'",
    "stages: {b: {}, a: {takes: {x: b.weights}}}": "a takes b.weights, but b gives nothing: add it to its gives",
    "stages: {a: {takes: {x: b.weights}}, b: {gives: [weights]}}": "a takes b.weights from b, which comes after it",
    "stages: {a: {takes: {x: a.weights}, gives: [weights]}}": "a takes a.weights from itself",
    "stages: {a: {takes: {x: b.weights}, gives: [weights]}, b: {takes: {x: a.weights}, gives: [weights]}}": "a cycle",
    "stages: {a: {rounds: 2, takes: {x: a.weights}, gives: [weights]}}": "it would be before.a.weights",
    "stages: {a: {gives: [weights]}, b: {takes: {x: before.a.weights}}}": "b and a have no rounds in common",
    "stages: {a: {gives: [weights]}, b: {run: test, takes: {ckpt_path: a.weights}}}": "ckpt_path takes a checkpoint",
    "stages: {a: {rounds: 3, by_round: {x: [1, 2]}}}": "needs one value per round for x: a list of 3 values",
    "stages: {a: {by_round: {x: [1]}}}": "a list of no values",
    "stages: {a: {until: soon}}": "until must be 'STAGE.METRIC > NUMBER'",
    "stages: {a: {until: a.val/loss < low}}": "until must be 'STAGE.METRIC > NUMBER'",
    "stages: {a: {until: a.val/loss < 1}}": "until of a takes a.val/loss, but a gives nothing",
    "stages: {a: {gives: [weights], until: a.weights < 1}}": "until of a needs one number, which a.weights is not",
    "stages: {b: {gives: [v]}, a: {until: b.v < 1}}": "until of a must look at one of its own stages",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_wrong_file(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_line_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"some.yaml:4: a takes b.weights, but there is no stage 'b'"):
        read(tmp_path, "stages:\n  a:\n    takes:\n      x: b.weights\n")


def test_folders(tmp_path):
    stages = read(tmp_path, "stages: {a: {}, b: {rounds: 2}, l: {until: c.x > 1, stages: {c: {gives: [x]}}}}")
    folders = [loop.folder(stage, 1) for loop, stage in stages]
    assert folders == ["a", "b/round-1", "l/round-1/c"]
    assert stages_name(tmp_path / "some.yaml") == "some"
    assert stages_name(EXAMPLES[0]) == EXAMPLES[0].stem


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    assert text.startswith("# ")
    read_stages(path)


SOFT_TARGETS = "set: {trainer.callbacks+: {class_path: leyden.callbacks.Distillation}}"
INITIAL = "set: {trainer.callbacks+: leyden.callbacks.InitialWeights}"
LABEL = "c: {run: predict, takes: {ckpt_path: a.checkpoint}, gives: [dataset]}"
EXPERTS = "a: {members: 2, gives: [checkpoint, weights]}"
COMBINE = "run: combine, takes: {ckpts: a.checkpoint}"
WRONG_CONFIGS = {  # known only by parsing the configs
    "stages: {a: {set: {model.network.widht: 4}}}": "a: model.network: 'widht' is not an argument of",
    "stages: {a: {config: nowhere}}": "a: there is no config file 'nowhere'",
    f"stages: {{a: {{gives: [weights]}}, b: {{{SOFT_TARGETS}, takes: {{{SOFT}: a.weights}}}}}}": "is not Network or",
    f"stages: {{a: {{gives: [checkpoint]}}, {LABEL}, b: {{{INITIAL}, takes: "
    "{trainer.callbacks.InitialWeights.weights: c.dataset}}}": "takes weights, c.dataset is a dataset",
    "stages: {a: {gives: [weights]}, b: {takes: {model.network.width: a.weights}}}": "a/weights' is not int",
    "stages: {a: {gives: [test/accuracy]}, b: {takes: {model.network.width: a.test/accuracy}}}": "b: model.",
    "stages: {a: {gives: [test/f1]}}": "a: it gives test/f1, but a fit of it logs test/loss, test/accuracy",
    "stages: {a: {set: {model.metrics: {auroc: {class_path: torchmetrics.classification.MulticlassAUROC, init_args: "
    "{num_classes: 10}}}}, gives: [test/auroc, test/f1]}}": "it gives test/f1, but a fit of it logs test/loss, "
    "test/accuracy, test/auroc",
    "stages: {a: {gives: [val/f1], until: a.val/f1 > 1}}": "a: it gives val/f1, but a fit of it logs val/loss",
    "stages: {a: {set: {test_after_fit: false}, gives: [test/loss]}}": "a fit of it logs no test metrics",
    "stages: {a: {set: {trainer.default_root_dir: x}}, b: {set: {trainer.default_root_dir: ./x}}}": "same files as a",
    "stages: {a: {members: 2, set: {trainer.callbacks.LastCheckpoint.dirpath: x}}}": "would write the same files",
    "stages: {a: {set: {trainer.devices: 2}}}": "trainer.devices must be 1",
    f"stages: {{{EXPERTS}, b: {{{COMBINE}}}}}": "b: combine needs method",
    f"stages: {{{EXPERTS}, b: {{{COMBINE}, set: {{method: soup}}}}}}": "method must be one of average, ema,",
    f"stages: {{{EXPERTS}, b: {{{COMBINE}, set: {{method: greedy-soup}}}}}}": "greedy-soup needs a metric",
    f"stages: {{{EXPERTS}, b: {{{COMBINE}, set: {{method: ema, decay: high}}}}}}": "decay must be a number",
    f"stages: {{{EXPERTS}, b: {{{COMBINE}, set: {{method: ema}}, gives: [val/loss]}}}}": "but has no metric",
    f"stages: {{{EXPERTS}, b: {{{COMBINE}, set: {{method: ema, metric: val/f1}}, gives: [val/f1]}}}}": "logs val/loss",
    "stages: {a: {run: curate}}": "a: the config has no curation",
    "stages: {a: {run: curate, set: {curation: leyden.curation.Nothing}}}": "'leyden.curation.Nothing' is not Curation",
    f"stages: {{{EXPERTS}, b: {{run: curate, set: {{curation: leyden.curation.PruneAndCombine}}, "
    "takes: {curation.predictions: a.weights}}}": "curation.predictions takes dataset, a.weights is a weights",
    "stages: {a: {gives: [checkpoint]}, b: {run: evaluate, function: os.getcwd, takes: {ckpt_path: a.checkpoint}}}": (
        "b: os.getcwd: too many positional arguments"
    ),
    "stages: {a: {run: call, function: leyden.nothing}}": "a: there is no function leyden.nothing",
    "stages: {a: {run: call, function: os.path.join, set: {x: 1}}}": "a: os.path.join: ",
}


@pytest.mark.parametrize(("text", "message"), WRONG_CONFIGS.items())
def test_wrong_config(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    Path("some.yaml").write_text(text)
    assert main(["run", "some.yaml"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("leyden: error: some.yaml:1: ")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("logs").exists()
