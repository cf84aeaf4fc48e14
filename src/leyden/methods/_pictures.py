"""Pictures in the loggers that show them."""

from collections.abc import Sequence

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.nn import functional

__all__ = ["log_pictures"]

MIN_SIDE = 32  # pixels; smaller pictures are enlarged


def log_pictures(loggers: Sequence[Logger], name: str, rows: Sequence[Tensor], *, step: int) -> None:
    """Logs images in one picture to W&B and TensorBoard; other loggers have no pictures.

    Args:
        loggers: of the fit.
        name: of the picture.
        rows: images of each row, ``[N, C, H, W]`` in [-1, 1].
        step: optimizer steps done.
    """
    images = torch.stack([torch.stack(list(row)) for row in rows]).float().cpu()  # [R, N, C, H, W]
    picture = images.movedim(2, 0).movedim(2, 3).flatten(3, 4).flatten(1, 2)  # [C, R * H, N * W]
    picture = (0.5 * picture + 0.5).clamp(0.0, 1.0)
    every = -(-MIN_SIDE // images.shape[-1])
    picture = functional.interpolate(picture[None], scale_factor=float(every))[0]
    pixels = (255.0 * picture).round().to(torch.uint8).movedim(0, -1).numpy()  # [H, W, C]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")
