import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional

from leyden.data import DigitBags
from leyden.methods import MHIM
from leyden.models import AttentionMIL
from leyden.nn import GlobalRecycle
from leyden.weights import pack_weights

FIRST = {"class_scores": False, "high_random": 0.5, "random_ratio": 0.5}  # as in the first version
BATCH = {"index": torch.arange(2), "target": torch.tensor([0, 1])}


def wave(*shape, phase):
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.7 + phase).view(shape)


def set_weights(module, phase):
    """Weights that the authors' code was given too."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(wave(*parameter.shape, phase=phase + 0.1 * number))


def with_teacher(phase=1.0, **knobs):
    network = AttentionMIL(3, 2, hidden=4, dropout=0.0)
    method = MHIM(network, **knobs).double()
    set_weights(network, phase)
    method.setup("fit")
    set_weights(network, 0.0)
    return method


# Printed by MHIM of the authors' code, DearCaat/MHIM-MIL at 9d0c91a, modules/mhim.py, with baseline="attn", temp_t=0.1,
# da_act="tanh", no dropout; merge_ratio=0, so that all that is left is recycled; without it in the first version
X = wave(1, 6, 3, phase=0.6) * 1.5
TEACHER = [1.420036071474319, 1.3608494722019004, 0.7298732763603798, 1.0257147615097475]
V1, V1_LOSS = [3.445290159447694, -1.7482354178454735], 1.9181931202684328
V2, V2_LOSS = [3.310036350503144, -1.7837371461563767], 1.676005704435788
V2_QUERY = [0.47466819499867013, 0.9427310807747806, 0.9733804486108225, 0.5560588118609531]
TEST = [3.9333161365407374, -2.3318413361558723]


def recycle():
    module = GlobalRecycle(4, keep_ratio=0.0, momentum=0.9, dropout=0.0).double()
    with torch.no_grad():
        module.to_kv.weight.copy_(wave(1024, 4, phase=0.1))
        module.to_q.weight.copy_(wave(512, 4, phase=0.2))
        module.to_out.weight.copy_(wave(4, 512, phase=0.3))
        module.to_out.bias.copy_(wave(4, phase=0.4))
        module.query.copy_(wave(1, 1, 4, phase=0.5))
    return module


@pytest.mark.parametrize(("version", "logits", "loss"), [(1, V1, V1_LOSS), (2, V2, V2_LOSS)])
def test_numbers_of_the_authors_code(version, logits, loss):
    knobs = {"class_scores": False, "low_ratio": 0.2} if version == 1 else {"recycle": recycle()}
    method = with_teacher(high_ratio=0.3, consistency_weight=0.5, **knobs)
    batch = {"input": X, "index": torch.tensor([0]), "target": torch.tensor([1])}
    outputs = method.train().compute(batch)
    close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-12)
    close(outputs.extra["teacher_features"], torch.tensor([TEACHER], dtype=torch.float64))
    close(outputs.logits, torch.tensor([logits], dtype=torch.float64))
    terms = method.loss_terms(batch, outputs)
    close(terms["consistency"], torch.tensor(0.5 * loss, dtype=torch.float64))
    close(terms["task"], functional.cross_entropy(outputs.logits, batch["target"]))
    if version == 2:
        close(method.attached["recycle"].query[0, 0], torch.tensor(V2_QUERY, dtype=torch.float64))
    outputs = method.eval().compute(batch)
    close(outputs.logits, torch.tensor([TEST], dtype=torch.float64))
    assert list(method.loss_terms(batch, outputs)) == ["task"]


@pytest.mark.parametrize("knobs", [FIRST, {"high_ratio": 0.2}])
def test_bags_of_a_batch_are_trained_as_alone(knobs):
    recycle = None if knobs == FIRST else GlobalRecycle(4, keep_ratio=0.5, dropout=0.0)
    x = wave(2, 9, 3, phase=0.3)
    mask = torch.arange(9) < torch.tensor([[5], [9]])
    both = with_teacher(recycle=copy.deepcopy(recycle), **knobs).train().compute(BATCH | {"input": x, "mask": mask})
    for bag, size in enumerate((5, 9)):
        batch = {key: value[bag : bag + 1] for key, value in BATCH.items()} | {"input": x[bag : bag + 1, :size]}
        alone = with_teacher(recycle=copy.deepcopy(recycle), **knobs).train().compute(batch)
        torch.testing.assert_close(both.logits[bag], alone.logits[0])
        torch.testing.assert_close(both.extra["teacher_features"][bag], alone.extra["teacher_features"][0])


def test_the_easiest_instances_get_no_gradient():
    method = with_teacher(high_ratio=0.25, class_scores=False, consistency_weight=0.0).train()
    x = wave(1, 8, 3, phase=0.3).requires_grad_()
    batch = {"input": x, "index": torch.tensor([0]), "target": torch.tensor([1])}
    terms = method.loss_terms(batch, method.compute(batch))
    assert list(terms) == ["task"]
    terms["task"].backward()
    teacher = method.frozen["teacher"].module
    attention = teacher.pool(teacher.embed(x))[1][0]
    masked = (x.grad[0] == 0.0).all(-1)
    assert masked.nonzero()[:, 0].tolist() == sorted(attention.topk(2).indices.tolist())
    assert all(p.grad is None for p in teacher.parameters())


class Seen(Callback):
    """Students before each step, and the teacher and masked share then."""

    def __init__(self):
        self.students, self.teachers, self.ratios = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.students.append(copy.deepcopy(pl_module.network))
        self.teachers.append(copy.deepcopy(pl_module.frozen["teacher"].module))
        self.ratios.append(pl_module._high_ratio())


def fit(make_trainer, epochs=2, **knobs):
    torch.manual_seed(0)
    method, seen = MHIM(AttentionMIL(64, 2, hidden=8, attention_dim=4), **knobs), Seen()
    trainer = make_trainer(seen, max_epochs=epochs, limit_val_batches=0)
    trainer.fit(method, datamodule=DigitBags(batch_size=8, num_bags=16, seed=0))
    return method, seen


def test_teacher_follows_and_the_share_falls(make_trainer):
    method, seen = fit(make_trainer, momentum=0.75, high_ratio=0.1, decay_high_ratio=True)
    students = [*seen.students[1:], method.network]
    assert all(map(torch.equal, seen.teachers[0].parameters(), seen.students[0].parameters()))
    for number, teacher in enumerate([*seen.teachers[1:], method.frozen["teacher"].module]):
        for new, old, student in zip(
            teacher.parameters(), seen.teachers[number].parameters(), students[number].parameters(), strict=True
        ):
            torch.testing.assert_close(new, 0.75 * old + 0.25 * student)
    assert seen.ratios == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], abs=1e-7)  # 0.05 (1 + cos(pi i / 4))
    assert method.frozen["teacher"].module.training  # its dropout is on


def test_teacher_of_a_file(make_trainer, tmp_path):
    torch.manual_seed(1)
    trained = AttentionMIL(64, 2, hidden=8, attention_dim=4)
    (tmp_path / "trained.safetensors").write_bytes(pack_weights(trained.state_dict()))
    _, seen = fit(make_trainer, epochs=1, teacher_weights=str(tmp_path / "trained.safetensors"))
    student, teacher = seen.students[0], seen.teachers[0]
    assert all(map(torch.equal, teacher.parameters(), trained.parameters()))
    assert all(map(torch.equal, student.embedding.parameters(), trained.embedding.parameters()))
    assert not torch.equal(student.head.weight, trained.head.weight)
    with pytest.raises(FileNotFoundError, match=r"there is no file of weights nowhere\.safetensors"):
        fit(make_trainer, teacher_weights="nowhere.safetensors")


def test_an_endless_fit_has_no_share_that_falls(make_trainer):
    with pytest.raises(MisconfigurationException, match=r"decay_high_ratio needs trainer\.max_epochs"):
        fit(make_trainer, epochs=-1, decay_high_ratio=True)


def test_bags_without_numbers():
    with pytest.raises(ValueError, match=r"MHIM needs the batch keys \['index'\]"):
        with_teacher().train().compute({"input": X})


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"momentum": 1.5}, r"momentum must lie in \[0, 1\], got 1.5"),
        ({"consistency_weight": -1.0}, "consistency_weight must be at least 0, got -1.0"),
        ({"teacher_temperature": 0.0}, "teacher_temperature must be positive, got 0.0"),
        ({"high_ratio": 2.0}, r"high_ratio must lie in \[0, 1\], got 2.0"),
        ({"recycle": GlobalRecycle(5)}, "recycle must have the dim of the network's features, 4, got 5"),
    ],
)
def test_bad_arguments(knobs, message):
    with pytest.raises(ValueError, match=message):
        with_teacher(**knobs)
