import pytest

from leyden.cli.config import (
    ConfigError,
    config_folder,
    find_config,
    merge_file,
    plain,
    read_config,
    set_option,
)

BASE = """\
seed: 1
model:
  class_path: pkg.Classifier
  init_args:
    lr: 1e-3
    network: {class_path: pkg.Small, init_args: {width: 4, depth: 2}}
trainer:
  epochs: 10
  callbacks:
    - class_path: pkg.EMA
      init_args: {decay: 0.9}
    - class_path: pkg.Watch
    - class_path: other.EMA
  logger: [pkg.Log]
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = 0

    def read_text(text):
        nonlocal count
        count += 1
        path = tmp_path / f"file{count}.yaml"
        path.write_text(text)
        return read_config(path)

    return read_text


@pytest.fixture
def merged(read):
    def merge_texts(*texts):
        tree = read(BASE)
        for text in texts:
            tree = merge_file(tree, read(text))
        return tree

    return merge_texts


def test_numbers_without_point_are_numbers(read):
    assert plain(read("{a: 1e-3, b: -2E5, c: 1.5, d: 1e, e: 12, f: yes}")) == {
        "a": 0.001,
        "b": -200000.0,
        "c": 1.5,
        "d": "1e",
        "e": 12,
        "f": True,
    }


def test_later_files_win_and_mappings_merge(merged):
    tree = merged("trainer: {epochs: 20}", "trainer: {epochs: 30, steps: 5}\nmodel: {init_args: {lr: 2}}")
    assert tree["trainer"]["epochs"] == 30
    assert tree["trainer"]["steps"] == 5
    assert tree["model"]["init_args"]["lr"] == 2
    assert tree["model"]["init_args"]["network"]["init_args"] == {"width": 4, "depth": 2}
    assert tree["seed"] == 1


def test_another_class_drops_the_arguments_of_the_one_before(merged):
    same = merged("model: {init_args: {network: {class_path: pkg.Small, init_args: {width: 8}}}}")
    assert plain(same["model"]["init_args"]["network"]["init_args"]) == {"width": 8, "depth": 2}
    other = merged("model: {init_args: {network: {class_path: pkg.Big, init_args: {width: 8}}}}")
    assert plain(other["model"]["init_args"]["network"]) == {"class_path": "pkg.Big", "init_args": {"width": 8}}
    assert other["model"]["init_args"]["lr"] == 0.001


def test_lists_are_joined_by_plus_and_replaced_without(merged):
    tree = merged("trainer: {callbacks+: [{class_path: pkg.New}], logger: []}", "trainer: {callbacks+: pkg.Newer}")
    assert [item if isinstance(item, str) else item["class_path"] for item in tree["trainer"]["callbacks"]] == [
        "pkg.EMA",
        "pkg.Watch",
        "other.EMA",
        "pkg.New",
        "pkg.Newer",
    ]
    assert tree["trainer"]["logger"] == []


def test_plus_makes_a_list_where_there_is_none(merged):
    tree = merged("trainer: {plugins+: [a], logger: one}", "trainer: {logger+: [two]}\nnew: {deep+: [1]}")
    assert plain(tree["trainer"]["plugins"]) == ["a"]
    assert plain(tree["trainer"]["logger"]) == ["one", "two"]
    assert plain(tree["new"]) == {"deep": [1]}


def test_items_of_a_list_are_named_by_their_class(merged):
    tree = merged("trainer: {callbacks: {EMA: {decay: 0.5}, EMA_2: {start: 3}, Watch: null}}")
    assert plain(tree["trainer"]["callbacks"]) == [
        {"class_path": "pkg.EMA", "init_args": {"decay": 0.5}},
        {"class_path": "other.EMA", "init_args": {"start": 3}},
    ]


def test_a_plain_list_of_callbacks_is_refused(merged):
    match = r"file2\.yaml:2: a plain 'callbacks:' would drop .*\(EMA, Watch, EMA_2\); write 'callbacks\+:'"
    with pytest.raises(ConfigError, match=match):
        merged("trainer:\n  callbacks: [pkg.New]")
    with pytest.raises(ConfigError, match="a plain 'callbacks:' would drop"):
        merged("trainer: {callbacks: null}")
    with pytest.raises(ConfigError, match="a plain 'plugins:' would drop"):
        merged("trainer: {plugins: [a]}", "trainer: {plugins: [b]}")


def test_a_standalone_file_replaces_everything(merged):
    assert plain(merged("standalone: true\ntrainer: {callbacks: [pkg.New]}")) == {"trainer": {"callbacks": ["pkg.New"]}}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [1", r"file1\.yaml:1: no valid YAML"),
        ("a: 1\nb: 2\na: 3", r"file1\.yaml:3: the key 'a' is given twice"),
        ("- 1", r"file1\.yaml: a config file is a mapping of keys to values, not a list"),
    ],
)
def test_files_that_cannot_be_read(read, text, match):
    with pytest.raises(ConfigError, match=match):
        read(text)


def test_yaml_anchors_work(read):
    tree = read("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}")
    assert plain(tree["d"]) == {"b": 1, "c": 3}


def test_origins_tell_file_and_line(merged):
    tree = merged("trainer:\n  steps: 5\n  callbacks+:\n    - class_path: pkg.New\n      init_args:\n        x: 1\n")
    assert tree["trainer"].origin["epochs"] == "file1.yaml:8"
    assert tree["trainer"].origin["steps"] == "file2.yaml:2"
    assert tree["trainer"]["callbacks"][3]["init_args"].origin["x"] == "file2.yaml:6"
    set_option(tree, "trainer.epochs", "3")
    assert tree["trainer"].origin["epochs"] == "command line"


# ---- options


def option(tree, key, text):
    set_option(tree, key, text)
    return plain(tree)


def test_options_reach_arguments_without_naming_init_args(merged):
    assert option(merged(), "model.lr", "0.5")["model"]["init_args"]["lr"] == "0.5"
    assert option(merged(), "model.init_args.network.width", "8")["model"]["init_args"]["network"]["init_args"] == {
        "width": "8",
        "depth": 2,
    }
    assert option(merged(), "new.key", "[1, {a: 2}]")["new"] == {"key": [1, {"a": 2}]}
    assert option(merged(), "trainer.epochs", "null")["trainer"]["epochs"] is None


def test_options_reach_items_of_lists(merged):
    tree = merged()
    set_option(tree, "trainer.callbacks.EMA.decay", "0.99")
    set_option(tree, "trainer.callbacks.EMA_2.decay", "0.5")
    set_option(tree, "trainer.callbacks.Watch", "null")
    set_option(tree, "trainer.logger.Log.path", "here")
    set_option(tree, "trainer.logger+", "pkg.More")
    assert plain(tree["trainer"]) == {
        "epochs": 10,
        "callbacks": [
            {"class_path": "pkg.EMA", "init_args": {"decay": "0.99"}},
            {"class_path": "other.EMA", "init_args": {"decay": "0.5"}},
        ],
        "logger": [{"class_path": "pkg.Log", "init_args": {"path": "here"}}, "pkg.More"],
    }


def test_a_strategy_is_a_class_or_one_of_lightnings_names(merged):
    tree = merged("trainer: {strategy: {class_path: my.Strategy, init_args: {a: 1}}}")
    set_option(tree, "trainer.strategy", "ddp")
    assert tree["trainer"]["strategy"] == "ddp"
    set_option(tree, "trainer.strategy", "other.Strategy")
    assert plain(tree["trainer"]["strategy"]) == {"class_path": "other.Strategy"}


def test_a_class_given_by_an_option_replaces_the_one_before(merged):
    tree = merged()
    set_option(tree, "model.network", "pkg.Small")
    assert plain(tree["model"]["init_args"]["network"]["init_args"]) == {"width": 4, "depth": 2}
    set_option(tree, "model.network", "pkg.Big")
    set_option(tree, "model.network.size", "3")
    assert plain(tree["model"]["init_args"]["network"]) == {"class_path": "pkg.Big", "init_args": {"size": "3"}}


@pytest.mark.parametrize(
    ("key", "text", "match"),
    [
        ("trainer.callbacks.EMMA.decay", "1", "trainer.callbacks has no 'EMMA'; did you mean 'EMA'?"),
        ("trainer.callbacks.zzz", "null", "has no 'zzz'; it has EMA, Watch, EMA_2"),
        ("trainer.callbacks.EMA", "0.9", r"trainer\.callbacks\.EMA is a class: set one of its arguments"),
        ("trainer.epochs.x", "1", "trainer.epochs is 10, which has no parts"),
        ("trainer.epochs+", "1", r"'epochs\+' adds to a list, but epochs is 10"),
        ("trainer.epochs", "[1", r"--trainer.epochs: no valid YAML: '\[1'"),
    ],
)
def test_bad_options(merged, key, text, match):
    with pytest.raises(ConfigError, match=match):
        set_option(merged(), key, text)


# ---- finding files


def test_names_are_found_below_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_folder().is_absolute()  # of the checkout
    for name in ("default", "data/wine", "experiment/family/paper", "mine"):
        path = tmp_path / ("" if name == "mine" else "configs") / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert config_folder().resolve() == tmp_path / "configs"
    for name in ("data/wine", "data/wine.yaml", "configs/data/wine.yaml", "configs/data/wine"):
        assert find_config(name).resolve() == tmp_path / "configs/data/wine.yaml"
    assert find_config("family/paper").resolve() == tmp_path / "configs/experiment/family/paper.yaml"
    assert find_config("mine.yaml").resolve() == tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match="there is no config file 'famly/papr'; did you mean family/paper?"):
        find_config("famly/papr")
    with pytest.raises(ConfigError, match="did you mean data/wine?"):
        find_config("wien.yaml")
    with pytest.raises(ConfigError, match="there is no config file 'qqqq'$"):
        find_config("qqqq")


def test_a_file_builds_on_another(merged, tmp_path):
    (tmp_path / "below.yaml").write_text("seed: 2\ntrainer: {epochs: 20, callbacks: {Watch: null}}\n")
    (tmp_path / "middle.yaml").write_text("base: below.yaml\ntrainer: {epochs: 30}\n")
    tree = merged("base: middle.yaml\ntrainer: {callbacks+: [pkg.New]}")
    assert (tree["seed"], tree["trainer"]["epochs"]) == (2, 30)
    assert [getattr(item, "get", lambda _, i=item: i)("class_path") for item in tree["trainer"]["callbacks"]] == [
        "pkg.EMA",
        "other.EMA",
        "pkg.New",
    ]
    assert "base" not in tree


def test_a_file_that_builds_on_itself_is_refused(merged, tmp_path):
    (tmp_path / "one.yaml").write_text("base: two.yaml\n")
    (tmp_path / "two.yaml").write_text("base: one.yaml\n")
    with pytest.raises(ConfigError, match=r"one.yaml:1: the file builds on itself: two.yaml -> one.yaml -> two.yaml"):
        merged("base: two.yaml")


def test_an_unknown_base_is_named(merged):
    with pytest.raises(ConfigError, match="no config file 'elsewhere.yaml'"):
        merged("base: elsewhere.yaml")
