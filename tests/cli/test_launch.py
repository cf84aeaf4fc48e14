"""Who must be told where the processes meet, and which configs are the same."""

import sys

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from leyden.cli.config import ConfigError
from leyden.cli.launch import check_environment, check_same_config, check_strategy

MEET = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


def ddp(environment, num_nodes=1):
    strategy = DDPStrategy(cluster_environment=environment)
    strategy.num_nodes = num_nodes
    return strategy


@pytest.mark.parametrize(
    ("strategy", "variables", "missing"),
    [
        (lambda: ddp(LightningEnvironment()), {}, None),  # starts the others itself
        (lambda: ddp(LightningEnvironment(), 2), {}, "MASTER_ADDR and MASTER_PORT must say"),
        (lambda: ddp(LightningEnvironment(), 2), {"MASTER_ADDR": "node1"}, "^MASTER_PORT must say"),
        (lambda: ddp(LightningEnvironment(), 2), MEET, None),
        (lambda: ddp(TorchElasticEnvironment()), {"WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT must say"),
        (lambda: ddp(TorchElasticEnvironment()), {"WORLD_SIZE": "2"} | MEET, None),
        (lambda: ddp(SLURMEnvironment(auto_requeue=False), 2), {}, None),
        (lambda: SingleDeviceStrategy("cpu"), {}, None),
    ],
)
def test_where_processes_meet(strategy, variables, missing):
    if missing is None:
        check_environment(strategy(), variables)
    else:
        with pytest.raises(ConfigError, match=missing):
            check_environment(strategy(), variables)


def first_differing(first, second):
    from leyden.core import rank

    check_same_config({"trainer": {"logger": {"id": rank()}, "devices": 2}})
    with pytest.raises(ConfigError) as caught:
        check_same_config(second if rank() == 1 else first)
    return str(caught.value)


def test_the_first_difference_is_named(run_processes):
    network = {"class_path": "a.Net", "init_args": {"width": 4}}
    configs = {"model": network, "seed": 0}, {"model": network | {"init_args": {"width": 8}}, "seed": 1}
    for message in run_processes(first_differing, 2, *configs):
        assert message.endswith("model.init_args.width is 4 in process 0 and 8 in process 1")


def test_a_strategy_whose_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    check_strategy("ddp")
    check_strategy({"class_path": "leyden.plugins.FSDP2Strategy"})
    for strategy in ("deepspeed_stage_2", {"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy"}):
        with pytest.raises(ConfigError, match=r"pip install 'leyden\[deepspeed\]'"):
            check_strategy(strategy)
