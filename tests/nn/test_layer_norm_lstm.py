"""Recurrent networks with layer norm against numpy's steps and, without the norms, against torch's."""

import numpy as np
import pytest
import torch
from torch import nn

from leyden.nn import LayerNormGRUCell, LayerNormLSTM, LayerNormLSTMCell


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scrambled(module):
    """Other gains and biases than 1 and 0."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            if parameter.ndim == 1:
                parameter.copy_(randn(number, *parameter.shape))
    return module


def normalized(x, norm):
    x = (x - x.mean()) / np.sqrt(x.var() + norm.eps)
    return x * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def test_lstm_step_by_numpy():
    cell, x, h, c = scrambled(LayerNormLSTMCell(3, 4).double()), randn(0, 2, 3), randn(1, 2, 4), randn(2, 2, 4)
    new_h, new_c = cell(x, (h, c))
    w, u = cell.weight_ih.detach().numpy(), cell.weight_hh.detach().numpy()
    for n in range(2):  # of one sample at a time
        a = normalized(w @ x[n].numpy(), cell.ln_ih) + normalized(u @ h[n].numpy(), cell.ln_hh)
        i, f, g, o = a[:4], a[4:8], a[8:12], a[12:]
        wanted_c = sigmoid(f) * c[n].numpy() + sigmoid(i) * np.tanh(g)
        wanted_h = sigmoid(o) * np.tanh(normalized(wanted_c, cell.ln_c))
        np.testing.assert_allclose(new_c[n].detach(), wanted_c)
        np.testing.assert_allclose(new_h[n].detach(), wanted_h)


def test_gru_step_by_numpy():
    cell, x, h = scrambled(LayerNormGRUCell(3, 4).double()), randn(0, 2, 3), randn(1, 2, 4)
    new = cell(x, h)
    w, u = cell.weight_ih.detach().numpy(), cell.weight_hh.detach().numpy()
    for n in range(2):
        wx, uh = w @ x[n].numpy(), u @ h[n].numpy()
        gates = sigmoid(normalized(wx[:8], cell.ln_ih) + normalized(uh[:8], cell.ln_hh))
        r, z = gates[:4], gates[4:]
        candidate = np.tanh(normalized(wx[8:], cell.ln_ih_n) + r * normalized(uh[8:], cell.ln_hh_n))
        np.testing.assert_allclose(new[n].detach(), z * h[n].numpy() + (1 - z) * candidate)


@pytest.mark.parametrize("batch_first", [False, True])
def test_without_norms_it_is_torchs(batch_first):
    ours = LayerNormLSTM(3, 4, 2, batch_first=batch_first).double()
    theirs = nn.LSTM(3, 4, 2, bias=False, batch_first=batch_first).double()
    for number, cell in enumerate(ours.cells):
        cell.ln_ih = cell.ln_hh = cell.ln_c = nn.Identity()
        for name in ("weight_ih", "weight_hh"):
            getattr(theirs, f"{name}_l{number}").data = getattr(cell, name).data
    x, state = randn(0, 5, 2, 3) if not batch_first else randn(0, 2, 5, 3), (randn(1, 2, 2, 4), randn(2, 2, 2, 4))
    for given in (None, state):
        (out, last), (wanted, wanted_last) = ours(x, given), theirs(x, given)
        torch.testing.assert_close(out, wanted)
        torch.testing.assert_close(last, wanted_last)


def test_gru_without_norms_is_torchs():
    ours, theirs = LayerNormGRUCell(3, 4).double(), nn.GRUCell(3, 4, bias=False).double()
    ours.ln_ih = ours.ln_hh = ours.ln_ih_n = ours.ln_hh_n = nn.Identity()
    theirs.weight_ih.data, theirs.weight_hh.data = ours.weight_ih.data, ours.weight_hh.data
    torch.testing.assert_close(ours(randn(0, 2, 3), randn(1, 2, 4)), theirs(randn(0, 2, 3), randn(1, 2, 4)))


def test_samples_do_not_depend_on_each_other_nor_on_the_mode():
    lstm, x = LayerNormLSTM(3, 4, 2).double(), randn(0, 5, 3, 3)
    out, _ = lstm(x)
    torch.testing.assert_close(lstm(x[:, 1:2])[0], out[:, 1:2])
    torch.testing.assert_close(lstm.eval()(x)[0], out)


def test_scale_of_all_weights_does_not_matter_but_that_of_a_row_does():
    cell, x = LayerNormLSTMCell(3, 4, eps=1e-12).double(), randn(0, 2, 3)
    before = cell.project(x)
    cell.weight_ih.data *= 5.0
    torch.testing.assert_close(cell.project(3.0 * x), before)
    cell.weight_ih.data[0] *= 5.0
    assert not torch.allclose(cell.project(x), before)


def test_masked_steps_leave_the_state():
    lstm, x = LayerNormLSTM(3, 4, batch_first=True).double(), randn(0, 2, 5, 3)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    out, (h, c) = lstm(x, mask=mask)
    short, (short_h, short_c) = lstm(x[1:, :2])
    torch.testing.assert_close(h[0, 1], short_h[0, 0])
    torch.testing.assert_close(c[0, 1], short_c[0, 0])
    torch.testing.assert_close(out[1, 2:], short[0, -1:].expand(3, 4))


def test_the_first_step_has_a_finite_gradient():
    lstm = LayerNormLSTM(3, 4)
    lstm(torch.rand(2, 1, 3))[0].sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in lstm.parameters())


def test_errors():
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        LayerNormLSTM(3, 4, 0)
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1"):
        LayerNormLSTM(3, 4, dropout=1.0)
    lstm, x = LayerNormLSTM(3, 4, 2), torch.rand(5, 2, 3)
    with pytest.raises(ValueError, match=r"mask must be bool \(5, 2\), got torch.bool \(2, 5\)"):
        lstm(x, mask=torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be bool \(5, 2\), got torch.int64 \(5, 2\)"):
        lstm(x, mask=torch.ones(5, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"state must be two tensors \(2, 2, 4\), got \[\(1, 2, 4\), \(1, 2, 4\)\]"):
        lstm(x, (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)))
    packed = nn.utils.rnn.pack_sequence([torch.rand(3, 3), torch.rand(2, 3)])
    with pytest.raises(ValueError, match=r"three dimensions \(pad, and give a mask\), got PackedSequence"):
        LayerNormLSTM(3, 4)(packed)
