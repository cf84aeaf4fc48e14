"""Recurrent networks with layer norm (J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", 2016, arXiv
1607.06450, equations 20 to 22 and those of the supplement for the GRU; authors' code: ryankiros/layer-norm).

The paper has one more bias per gate, and the authors' code two: the biases of the norms are in their place here.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LayerNormGRUCell", "LayerNormLSTM", "LayerNormLSTMCell"]

State = tuple[Tensor, Tensor]


class LayerNormLSTMCell(nn.Module):
    """One step of an LSTM whose pre-activations and cell are normalised; the cell that is kept is not.

    The statistics are those of all four gates of a sample together. Weights have torch's order of gates: input, forget,
    cell, output; recurrent ones start orthogonal per gate.

    Args:
        input_size: I.
        hidden_size: H.
        eps: of the norms; at the first step the recurrent part is zero, and its gradient up to ``eps^-1/2`` times.
    """

    def __init__(self, input_size: int, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.weight_ih = nn.Parameter(_input_weight(4, hidden_size, input_size))
        self.weight_hh = nn.Parameter(_recurrent_weight(4, hidden_size))
        self.ln_ih, self.ln_hh = (nn.LayerNorm(4 * hidden_size, eps=eps) for _ in range(2))
        self.ln_c = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, input: Tensor, state: State) -> State:
        """Returns the next ``(h, c)``, each ``[N, H]``, from an input ``[N, I]`` and the last ones."""
        return self.step(self.project(input), state)

    def project(self, input: Tensor) -> Tensor:
        """Returns the part of the pre-activations that does not depend on the state, ``[..., 4H]``."""
        return self.ln_ih(functional.linear(input, self.weight_ih))

    def step(self, projected: Tensor, state: State) -> State:
        """Returns the next ``(h, c)`` from what `project` gave."""
        h, c = state
        gates = projected + self.ln_hh(functional.linear(h, self.weight_hh))
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.ln_c(c).tanh(), c


class LayerNormGRUCell(nn.Module):
    """One step of a GRU whose pre-activations are normalised: those of both gates together, and those of the candidate.

    Args:
        input_size: I.
        hidden_size: H; weights have torch's order: reset, update, candidate.
        eps: of the norms.
    """

    def __init__(self, input_size: int, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.weight_ih = nn.Parameter(_input_weight(3, hidden_size, input_size))
        self.weight_hh = nn.Parameter(_recurrent_weight(3, hidden_size))
        self.ln_ih, self.ln_hh = (nn.LayerNorm(2 * hidden_size, eps=eps) for _ in range(2))
        self.ln_ih_n, self.ln_hh_n = (nn.LayerNorm(hidden_size, eps=eps) for _ in range(2))

    def forward(self, input: Tensor, h: Tensor) -> Tensor:
        """Returns the next h ``[N, H]`` from an input ``[N, I]`` and the last one."""
        split = [2 * self.hidden_size, self.hidden_size]
        gates_x, new_x = functional.linear(input, self.weight_ih).split(split, -1)
        gates_h, new_h = functional.linear(h, self.weight_hh).split(split, -1)
        r, z = (self.ln_ih(gates_x) + self.ln_hh(gates_h)).sigmoid().chunk(2, -1)
        n = (self.ln_ih_n(new_x) + r * self.ln_hh_n(new_h)).tanh()
        return z * h + (1.0 - z) * n


class LayerNormLSTM(nn.Module):
    """Layers of `LayerNormLSTMCell` over a sequence, with the interface of `torch.nn.LSTM`.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: layers, each of which reads the one before.
        batch_first: whether sequences are ``[N, L, I]``, not ``[L, N, I]``.
        dropout: rate on the outputs of all layers but the last.
        eps: of the norms.

    Raises:
        ValueError: ``num_layers`` is below 1, or ``dropout`` outside of [0, 1).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.hidden_size, self.batch_first, self.dropout = hidden_size, batch_first, nn.Dropout(dropout)
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.cells = nn.ModuleList(LayerNormLSTMCell(size, hidden_size, eps) for size in sizes)

    def forward(self, input: Tensor, state: State | None = None, *, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Reads sequences.

        Args:
            input: ``[L, N, I]`` (``[N, L, I]`` with ``batch_first``); not packed.
            state: first ``(h, c)``, ``[num_layers, N, H]`` each; zeros if None.
            mask: bool, ``[L, N]`` (``[N, L]``); where it is False the state stays as it was.

        Returns:
            The outputs of the last layer, in the layout of the input, and the last ``(h, c)`` of all layers.

        Raises:
            ValueError: the input is no tensor of three dimensions, or the mask or a state does not fit it.
        """
        if not isinstance(input, Tensor) or input.ndim != 3:
            got = tuple(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"input must be a tensor of three dimensions (pad, and give a mask), got {got}")
        if mask is not None and (mask.shape != input.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(f"mask must be bool {tuple(input.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
        if self.batch_first:
            input, mask = input.transpose(0, 1), None if mask is None else mask.transpose(0, 1)
        size = len(self.cells), input.shape[1], self.hidden_size
        if state is None:
            state = input.new_zeros(size), input.new_zeros(size)
        elif any(part.shape != size for part in state):
            raise ValueError(f"state must be two tensors {size}, got {[tuple(part.shape) for part in state]}")
        last = []
        for number, (module, h, c) in enumerate(zip(self.cells, *state, strict=True)):
            cell = cast(LayerNormLSTMCell, module)
            outputs = []
            for step, projected in enumerate(cell.project(self.dropout(input) if number else input).unbind()):
                before, (h, c) = (h, c), cell.step(projected, (h, c))
                if mask is not None:
                    h, c = (torch.where(mask[step, :, None], *pair) for pair in zip((h, c), before, strict=True))
                outputs.append(h)
            input = torch.stack(outputs)
            last.append((h, c))
        h, c = (torch.stack(parts) for parts in zip(*last, strict=True))
        return input.transpose(0, 1) if self.batch_first else input, (h, c)


def _input_weight(gates: int, hidden_size: int, input_size: int) -> Tensor:
    return torch.randn(gates * hidden_size, input_size) / input_size**0.5


def _recurrent_weight(gates: int, hidden_size: int) -> Tensor:
    return torch.cat([nn.init.orthogonal_(torch.empty(hidden_size, hidden_size)) for _ in range(gates)])
