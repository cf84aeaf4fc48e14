import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.core import MethodCallback, NumberedCallback, Outputs
from leyden.methods import Classification
from leyden.models import MLP


class First(MethodCallback):
    pass


class Second(First):
    pass


def set_up(*callbacks):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=list(callbacks))
    for callback in callbacks:
        callback.setup(trainer, Classification(MLP(4, 3, ())), "fit")
    return [callback.state_key for callback in callbacks]


def test_state_keys_number_those_of_one_class_in_the_order_of_the_list():
    assert set_up(First(), Second(), First(), Second(), First()) == [
        "First",
        "Second",
        "First_2",
        "Second_2",
        "First_3",
    ]


def test_state_keys_differ_before_setup_too():  # Lightning refuses two alike when the trainer is made
    assert First().state_key != First().state_key


def test_state_keys_are_the_same_in_another_run():
    assert set_up(First(), First()) == set_up(First(), First())


def test_a_foreign_module_is_refused_with_what_to_do():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(MisconfigurationException, match=r"First changes .* is a BoringModel: derive it from"):
        First().setup(trainer, BoringModel(), "fit")


def test_a_numbered_callback_works_on_any_module():
    callback = NumberedCallback()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback])
    callback.setup(trainer, BoringModel(), "fit")
    assert callback.state_key == "NumberedCallback"


def test_doors_hand_through_by_default():
    batch, terms = {"input": torch.zeros(1)}, {"task": torch.zeros(())}
    assert First().transform_batch(None, batch) is batch
    assert First().loss_terms(None, batch, Outputs(torch.zeros(1)), terms) is terms
