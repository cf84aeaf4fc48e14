import math
from functools import partial

import pytest
import torch
from torch.nn import functional

from leyden.callbacks import UDS, FastJL, RepresentationMemory, nuclear_norm
from leyden.core import MethodCallback
from leyden.data import Digits, PydocTopics
from leyden.methods import Classification, LanguageModeling
from leyden.models import GPT, MLP
from leyden.plugins import CSVLogger

# two matrices, and what the authors' FastJLProjector (gfyddha/UDS at 6cd1634) makes of them with the signs and indices
# of `authors`
X = torch.tensor(
    [[[((3 * i**2 + 5 * j**2 + 2 * i * j + 7 * n) % 11) / 4.0 for j in range(7)] for i in range(5)] for n in range(2)]
)
AUTHORS = [
    [-9.1451339, 0.5934092, -9.1451339, -0.4250061, 9.3694124, -0.4250061],
    [-9.6313372, -3.0462592, -9.6313372, -7.5561228, 0.3291266, -7.5561228],
]
NORMS = [14.280171053759641, 14.885514355102185]  # their torch.linalg.svdvals(X).sum(1), in float64


def authors():
    projection = FastJL(5, 7, rows=2, cols=3)
    projection.row_sign.copy_(torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0]))
    projection.col_sign.copy_(torch.tensor([-1.0, 1.0, 1.0, -1.0, 1.0, -1.0, -1.0]))
    projection.row_index.copy_(torch.tensor([3, 1]))
    projection.col_index.copy_(torch.tensor([5, 0, 2]))
    return projection


def test_projection_and_norm_of_the_authors():
    torch.testing.assert_close(authors()(X), torch.tensor(AUTHORS), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nuclear_norm(X), torch.tensor(NORMS))
    torch.testing.assert_close(nuclear_norm(X.double()), torch.tensor(NORMS, dtype=torch.float64), rtol=1e-12, atol=0)


def test_projection_by_sums_of_cosines():
    torch.manual_seed(0)
    projection, x = FastJL(6, 9, rows=4, cols=5).double(), torch.randn(3, 6, 9, dtype=torch.float64)
    for n in range(3):
        expected = torch.zeros(4, 5, dtype=torch.float64)
        for a, row in enumerate(projection.row_index.tolist()):
            for b, col in enumerate(projection.col_index.tolist()):
                for i in range(6):
                    for j in range(9):
                        value = projection.row_sign[i] * projection.col_sign[j] * x[n, i, j]
                        expected[a, b] += (
                            value * math.cos(2 * math.pi * row * i / 6) * math.cos(2 * math.pi * col * j / 9)
                        )
        expected *= math.sqrt(6 / 4) * math.sqrt(9 / 5)
        torch.testing.assert_close(projection(x)[n], expected.flatten())


def test_projection_is_linear_fixed_and_drawn_from_its_generator():
    x, y = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    one, again, other = (FastJL(8, 7, generator=torch.Generator().manual_seed(s)).double() for s in (0, 0, 1))
    torch.testing.assert_close(one(2.0 * x - y), 2.0 * one(x) - one(y))
    assert torch.equal(one(x), again(x))
    assert not torch.allclose(one(x), other(x))
    assert one(x).shape == (3, 8 * 128)
    assert {name: tuple(buffer.shape) for name, buffer in one.named_buffers()} == {
        "row_sign": (8,),
        "row_index": (8,),
        "col_sign": (7,),
        "col_index": (128,),
    }
    assert set(one.row_sign.tolist()) | set(one.col_sign.tolist()) == {-1.0, 1.0}


def test_rows_of_zeros_change_nothing():
    padded = functional.pad(X, (0, 0, 0, 3))
    projection = FastJL(9, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(projection(padded), projection(X))
    torch.testing.assert_close(nuclear_norm(padded), nuclear_norm(X))


def test_norm_is_that_of_the_singular_values_under_orthogonal_maps():
    torch.manual_seed(0)
    x = torch.randn(4, 12, 30) @ torch.randn(4, 30, 30).tril().exp()  # of very different singular values
    left, right = (torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q for size in (12, 30))
    expected = torch.linalg.svdvals(x.double()).sum(1)
    for matrices in (x.double(), left @ x.double() @ right, x.double().mT):
        torch.testing.assert_close(nuclear_norm(matrices), expected)
    torch.testing.assert_close(nuclear_norm(x[:, :1]), x[:, 0].norm(dim=1))
    flat = x[:, :1].expand(4, 12, 30)  # of rank 1
    torch.testing.assert_close(nuclear_norm(flat), math.sqrt(12) * x[:, 0].norm(dim=1), rtol=1e-5, atol=0)
    assert nuclear_norm(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 3])
def test_what_is_not_finite_has_no_norm(rows):
    x = torch.ones(3, rows, 5)
    x[0, 0, 2], x[2, 0, 1] = torch.inf, torch.nan
    norms = nuclear_norm(x)
    assert not torch.isfinite(norms[[0, 2]]).any()
    torch.testing.assert_close(norms[1].item(), (5.0 * rows) ** 0.5)


def test_memory_is_a_ring():
    memory = RepresentationMemory(3, 2)
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert memory.distance(x).tolist() == [0.0, 0.0]
    memory.push(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    torch.testing.assert_close(memory.distance(x), torch.tensor([(5 + 1) / 2, 18**0.5 / 2]))
    memory.push(torch.tensor([[6.0, 8.0], [0.0, 2.0]]))  # the second takes the place of the first of all
    assert memory.items.tolist() == [[0.0, 2.0], [0.0, 1.0], [6.0, 8.0]]
    torch.testing.assert_close(memory.distance(x[:1]), torch.tensor([(2 + 1 + 10) / 3]))
    memory.push(torch.arange(10.0).view(5, 2))  # more than fit: the last three, in their places
    assert memory.items.tolist() == [[4.0, 5.0], [6.0, 7.0], [8.0, 9.0]]
    assert memory.count == 9


class Recorder(MethodCallback):
    """Notes each batch, and the logits that the network has for it."""

    def __init__(self):
        self.batches, self.logits = [], []

    def transform_batch(self, method, batch):
        self.batches.append(batch)
        training = method.network.training
        with torch.no_grad():
            self.logits.append(method.network.eval()(batch["input"]))
        method.network.train(training)
        return batch


def fit(make_trainer, *callbacks, steps=5, dropout=0.0, **options):
    torch.manual_seed(0)
    network = MLP(64, 10, (16,), dropout=dropout)
    method = Classification(network, optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer = make_trainer(*callbacks, max_steps=steps, limit_val_batches=0, **options)
    trainer.fit(method, Digits(batch_size=16, seed=0))
    return method


SMALL = {"rows": 1, "max_length": 1, "cols": 16, "memory": 10}


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_choice_by_hand(make_trainer, alpha):
    before, after, uds = Recorder(), Recorder(), UDS(4, alpha, **SMALL)
    fit(make_trainer, before, uds, after, dropout=0.5)
    remembered = torch.zeros(0, 16)
    for batch, logits, kept in zip(before.batches, before.logits, after.batches, strict=True):
        projected = torch.fft.fft(logits * uds._projection.col_sign).real[:, uds._projection.col_index]
        projected = projected * (10 / 16) ** 0.5 * uds._projection.row_sign
        distance = torch.cdist(projected, remembered).mean(1) if len(remembered) else torch.zeros(16)
        score = logits.norm(dim=1) + alpha * distance
        chosen = score.argsort(descending=True)[:4].sort().values
        assert kept.keys() == batch.keys()
        assert all(torch.equal(kept[key], batch[key][chosen]) for key in batch)
        remembered = torch.cat([remembered, projected[chosen]])[-10:]
    assert uds.memory.count == 20
    torch.testing.assert_close(uds.memory.items, remembered)  # 20 are two rounds of 10


def test_distance_has_its_part(make_trainer):
    choices = []
    for alpha in (0.0, 5.0):
        after = Recorder()
        fit(make_trainer, UDS(4, alpha, **SMALL), after)
        choices.append([batch["index"].tolist() for batch in after.batches])
    assert choices[0][0] == choices[1][0]  # the memory is empty
    assert choices[0] != choices[1]


def test_all_samples_or_a_late_start_are_plain_training_bit_for_bit(make_trainer):
    plain = fit(make_trainer, dropout=0.5).state_dict()
    for uds in (UDS(16, **SMALL), UDS(4, **SMALL, start_step=5)):
        chosen = fit(make_trainer, uds, dropout=0.5).state_dict()
        assert all(torch.equal(chosen[name], tensor) for name, tensor in plain.items())
    after = Recorder()
    fit(make_trainer, UDS(4, **SMALL, start_step=3), after)
    assert [len(batch["index"]) for batch in after.batches] == [16, 16, 16, 4, 4]


def test_tokens_are_matrices_and_masked_rows_are_zeros(make_trainer):
    class Mask(MethodCallback):
        def transform_batch(self, method, batch):
            return batch | {"mask": torch.arange(8).expand(6, 8) < 5}

    after, uds = Recorder(), UDS(2, max_length=8)
    torch.manual_seed(0)
    method = LanguageModeling(GPT(256, 8, dim=8, depth=1, num_heads=2))
    trainer = make_trainer(Mask(), after, uds, max_steps=1, limit_val_batches=0)
    trainer.fit(method, PydocTopics(context=8, batch_size=6))
    logits = after.logits[0]
    expected = torch.linalg.svdvals(logits[:, :5]).sum(1).topk(2).indices
    projected = uds._projection(functional.pad(logits[:, :5], (0, 0, 0, 3)))[expected.sort().values]
    torch.testing.assert_close(uds.memory.items[:2], projected)


def test_what_is_logged(make_trainer, tmp_path):
    fit(make_trainer, UDS(4, **SMALL), logger=CSVLogger(str(tmp_path)))
    header = (tmp_path / "metrics.csv").read_text().split("\n")[0]
    assert all(f"train/uds_{key}" in header for key in ("kept", "utility", "diversity"))


def test_bad_input_is_refused(make_trainer):
    for name in ("k", "memory", "rows", "cols", "max_length"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            UDS(**{name: 0})
    with pytest.raises(ValueError, match="alpha and start_step must be at least 0, got -1.0 and 0"):
        UDS(alpha=-1.0)
    with pytest.raises(ValueError, match="alpha and start_step must be at least 0, got nan and 0"):
        UDS(alpha=math.nan)
    with pytest.raises(ValueError, match="k must be at most 8, the samples of a process's micro-batch, got 9"):
        fit(make_trainer, UDS(9), accumulate_grad_batches=2)
    with pytest.raises(ValueError, match=r"\[N, L, 7\] with L of at most 5, the projection's length, got \(2, 6, 7\)"):
        authors()(torch.zeros(2, 6, 7))
    with pytest.raises(ValueError, match="length, vocab, rows and cols must be at least 1"):
        FastJL(0, 7)
    with pytest.raises(ValueError, match="size and dim must be at least 1"):
        RepresentationMemory(0, 3)
