"""The formats of ``leyden export``: how a network is written, and how it is run from the file."""

import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from leyden.core import Network
from leyden.core.replace_file import replace_file
from leyden.models.exported import load_exported
from leyden.nn import merge_lora
from leyden.weights import pack_weights

__all__ = ["FORMATS", "Format", "bake_parametrizations", "write_checked"]

TOLERANCE = 1e-4  # of the largest output, or of 1: other programs add up in another order
OTHER_LAYERS = (
    "; a callback changed layers, or took weights apart that the config ties: pt2 and onnx hold the network as it is"
)
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        write: takes network, example ``[N, ...]``, metadata and file.
        read: takes the file, returns what maps inputs to outputs.
        otherwise: what to do where the outputs differ.
    """

    write: Callable[[Network, Tensor, dict[str, str], BinaryIO], None]
    read: Callable[[str], Run]
    otherwise: str = ""


@torch.no_grad()
def write_checked(form: Format, network: Network, inputs: list[Tensor], metadata: dict[str, str], path: Path) -> float:
    """Writes a network, if it gives the same outputs from the file.

    Args:
        form: one of `FORMATS`.
        network: in eval mode; loses its parametrizations and updates of low rank.
        inputs: batches ``[N, ...]`` to try it on; the first is the example that it is traced with.
        metadata: what the file says of itself.
        path: the file; on an error it is left as it was.

    Returns:
        The largest absolute difference of an output.

    Raises:
        ValueError: the format cannot hold the network, or outputs differ.
        ImportError: a package is missing.
    """
    expected = [network(x) for x in inputs]
    bake_parametrizations(network)
    with replace_file(path) as file:
        _write(form, network, inputs[0], metadata, file)
        file.flush()
        run = form.read(file.name)
        differences = [_difference(run(x), y, form.otherwise) for x, y in zip(inputs, expected, strict=True)]
    return max(differences)


def _write(form: Format, network: Network, example: Tensor, metadata: dict[str, str], file: BinaryIO) -> None:
    try:
        form.write(network, example, metadata, file)
    except (ImportError, OSError):
        raise
    except Exception as error:  # of the tracers, which have many of their own
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        reason = re.sub(r"\x1b\[\d+m", "", reason)[:200]
        raise ValueError(
            f"this format cannot hold a {type(network).__name__} with the layers that it has: {reason} "
            "(--to safetensors holds the weights alone)"
        ) from error


def bake_parametrizations(network: nn.Module) -> None:
    """Turns every parametrized tensor into a plain one of its present value, and adds updates of low rank to theirs."""
    merge_lora(network)
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            for name, parametrization in list(module.parametrizations.items()):  # type: ignore[operator, union-attr]
                value = getattr(module, name).detach().clone()
                # what lies under it may be tied to a tensor elsewhere, which must not change with it
                parametrize.remove_parametrizations(module, name, leave_parametrized=not parametrization.is_tensor)
                is_buffer = name in module._buffers
                setattr(module, name, value if is_buffer else nn.Parameter(value, requires_grad=False))


def _difference(output: Tensor, expected: Tensor, otherwise: str) -> float:
    if output.shape != expected.shape:
        raise ValueError(
            f"the exported network gives outputs of shape {tuple(output.shape)} instead of {tuple(expected.shape)}: "
            "it was not written"
        )
    difference = (output - expected).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):  # NaN too
        raise ValueError(
            f"the exported network gives other outputs, by up to {difference:.1e}: it was not written{otherwise}"
        )
    return difference


# ---- safetensors


def _write_safetensors(network: Network, example: Tensor, metadata: dict[str, str], file: BinaryIO) -> None:
    file.write(pack_weights(network.state_dict(), metadata))


def _read_safetensors(path: str) -> Run:
    try:
        return load_exported(path)
    except ValueError as error:
        raise ValueError(
            f"the network that the config describes is not the one that was trained ({error}){OTHER_LAYERS}"
        ) from error


# ---- TorchScript


def _write_torchscript(network: Network, example: Tensor, metadata: dict[str, str], file: BinaryIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # by PyTorch, in favour of torch.export
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, of its own names
        # checks of shapes are traced as if always passed: the outputs are compared in several shapes
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(network, example, check_trace=False)
        torch.jit.save(traced, file, _extra_files={f"{key}.json": text for key, text in metadata.items()})


def _read_torchscript(path: str) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(path)


# ---- torch.export


def _write_pt2(network: Network, example: Tensor, metadata: dict[str, str], file: BinaryIO) -> None:
    program = _program(network, example)
    torch.export.save(program, file, extra_files={f"{key}.json": text for key, text in metadata.items()})


def _read_pt2(path: str) -> Run:
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _program(network: Network, example: Tensor) -> Any:
    return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


# ---- ONNX


def _write_onnx(network: Network, example: Tensor, metadata: dict[str, str], file: BinaryIO) -> None:
    _require_onnx()
    # says that torchvision is not there, whose layers a network without torchvision does not need
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    program = torch.onnx.export(
        _program(network, example), input_names=["input"], output_names=["output"], dynamo=True, verbose=False
    )
    assert program is not None
    model = program.model_proto
    for key, text in metadata.items():
        model.metadata_props.add(key=key, value=text)
    file.write(model.SerializeToString())


def _read_onnx(path: str) -> Run:
    session = import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])


def _require_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(package)
        except ImportError as error:
            raise ImportError(f'{package} is not installed: pip install "leyden[onnx]"') from error


FORMATS = {
    "safetensors": Format(_write_safetensors, _read_safetensors, OTHER_LAYERS),
    "torchscript": Format(_write_torchscript, _read_torchscript),
    "pt2": Format(_write_pt2, _read_pt2),
    "onnx": Format(_write_onnx, _read_onnx),
}
