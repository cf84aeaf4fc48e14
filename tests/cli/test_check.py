import pytest

from leyden.cli import main

BAD = [
    (
        "trainer:\n  callbacks:\n    EMA: {deccay: 0.9}\n",
        "bad.yaml:3: trainer.callbacks[1]: 'deccay' is not an argument of",
    ),
    ("trainer:\n  callbacks:\n    EMA:\n      decay: 1.5\n", "bad.yaml:4: EMA: decay must lie in [0, 1], got 1.5"),
    ("trainer:\n  max_epochs: many\n", "bad.yaml:2: trainer.max_epochs: 'many' is not int or None"),
    ("model:\n  class_path: leyden.methods.Clasification\n", "did you mean leyden.methods.Classification?"),
    ("data:\n  init_args:\n    label_noise: 2.0\n", "bad.yaml:3: label_noise must lie in [0, 1], got 2.0"),
    ("max_epochs: 3\n", "bad.yaml:1: 'max_epochs' is no top-level key; did you mean trainer.max_epochs?"),
    ("trainer:\n  callbacks: []\n", "bad.yaml:2: a plain 'callbacks:' would drop what was there before"),
    ("trainer: [\n", "bad.yaml:2: no valid YAML"),
    ("stages:\n  a: {run: train}\n", "bad.yaml:2: run must be one of fit, "),
    ("stages:\n  a:\n    give: [weights]\n", "bad.yaml:3: there is no key 'give'; did you mean 'gives'?"),
]


@pytest.mark.parametrize(("text", "expected"), BAD)
def test_a_mistake_is_named_with_its_line(text, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    assert main(["check", "bad.yaml"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("leyden: error: bad.yaml:")
    assert expected in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_every_file_is_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text("trainer: {max_epochs: 3}\n")
    assert main(["check", "nothing", "default", "good.yaml", "regularization/elr", "class_incremental"]) == 1
    printed = capsys.readouterr()
    assert printed.err == "leyden: error: there is no config file 'nothing'\n"
    lines = printed.out.splitlines()
    assert [line.rsplit("/", 1)[-1] for line in lines] == [
        f"{name}.yaml: good" for name in ("default", "good", "elr", "class_incremental")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.yaml"]


def test_files_of_your_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "data/image_folder"]) == 1
    assert "image_folder.yaml:" in capsys.readouterr().err
