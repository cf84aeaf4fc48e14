"""Accuracy against dependence on protected attributes, over the weight of `leyden.callbacks.FairnessPenalty`.

On the table of ProPublica's COMPAS analysis (``compas-scores-two-years.csv``, or some of its columns) an MLP predicts
who is charged again within two years, from prior charges and the degree of the present one. Sex, race and age are
protected: they are not in the input.

    python benchmarks/fairness.py compas-scores-two-years.csv [--seeds 3] [--plot docs/assets/fairness.svg]
"""

import argparse
import csv
import logging
import statistics
import warnings
from functools import partial
from pathlib import Path
from typing import cast

import matplotlib.pyplot as plt
import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from numpy.typing import NDArray
from sklearn.neighbors import KernelDensity
from torch.utils.data import Dataset

from leyden.callbacks import FairnessPenalty
from leyden.data import CSVTable, TensorDictDataset
from leyden.losses import distance_correlation
from leyden.methods import Classification
from leyden.models import MLP
from leyden.optim import WarmupCosine

INPUTS = ["juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count", "c_charge_degree"]
ATTRIBUTES = ["sex", "race", "age"]
WEIGHTS = [0.0, 10.0, 20.0, 30.0, 50.0, 100.0]
MEASURES = {"ccdcov": "CCdCov", "jdcov": "JdCov"}


class Compas(CSVTable):
    """The table, with the protected attributes beside the input: sex and race as categories, age standardised."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "two_year_recid", columns=INPUTS, batch_size=256, eval_batch_size=1024)
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.attributes = {
            name: torch.from_numpy(np.unique([row[name] for row in rows], return_inverse=True)[1])
            for name in ATTRIBUTES
        }
        self.attributes["age"] = torch.tensor([float(row["age"]) for row in rows])

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        parts: dict[str, Dataset] = {}
        for name, part in super().datasets().items():
            rows = torch.tensor(cast(TensorDictDataset, part).sources)
            tensors = {key: values[rows] for key, values in self.attributes.items()}
            if name == "train":
                mean, std = tensors["age"].mean(), tensors["age"].std()
            tensors["age"] = (tensors["age"] - mean) / std
            parts[name] = TensorDictDataset(cast(TensorDictDataset, part).tensors | tensors)
        return parts


def train(path: str, measure: str, weight: float, seed: int, epochs: int) -> dict[str, float]:
    """What the test says after training."""
    seed_everything(seed, verbose=False)
    data = Compas(path)
    method = Classification(
        MLP(data.num_features, 2, (32,)),
        optimizer=partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.05),
        scheduler=partial(WarmupCosine, warmup=0.05),
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[FairnessPenalty(ATTRIBUTES, weight, measure=measure)],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(method, datamodule=data)
    test = cast(TensorDictDataset, data.dataset("test")).tensors
    with torch.no_grad():
        logits = method.network.eval()(test["input"])
    prediction = logits.softmax(-1)[:, 1]
    older = (test["age"] > test["age"].median()).to(torch.int64)
    groups = torch.stack([test["sex"], test["race"], older], 1).unique(dim=0, return_inverse=True)[1]
    return {
        "accuracy": (logits.argmax(-1) == test["target"]).double().mean().item(),
        "all": distance_correlation(prediction, [test[name] for name in ATTRIBUTES]).item(),
        **{name: distance_correlation(prediction, test[name]).item() for name in ATTRIBUTES},
        "divergence": divergence(prediction.double().numpy(), groups.numpy()),
    }


def divergence(prediction: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """Jensen-Shannon divergence, in bits, of the densities of groups of 30 or more, weighted by their sizes."""
    grid = np.linspace(0.0, 1.0, 201)[:, None]
    sizes = np.bincount(groups)
    large = np.flatnonzero(sizes >= 30)
    densities = np.stack(
        [np.exp(KernelDensity(bandwidth=0.05).fit(prediction[groups == g][:, None]).score_samples(grid)) for g in large]
    )
    densities /= densities.sum(1, keepdims=True)
    shares = sizes[large] / sizes[large].sum()

    def entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
        return -(p * np.log2(np.maximum(p, 1e-300))).sum(-1)

    return float(entropy(shares @ densities) - shares @ entropy(densities))


def plot(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draws accuracy against the correlation that is left."""
    figure, axes = plt.subplots(figsize=(5.0, 3.4), layout="constrained")
    for measure, points in curves.items():
        x, y = [point["all"] for point in points], [100.0 * point["accuracy"] for point in points]
        axes.plot(x, y, marker="o", label=MEASURES[measure])
    for weight, point in list(zip(WEIGHTS, curves["ccdcov"], strict=True))[1:]:
        axes.annotate(f"{weight:g}", (point["all"], 100.0 * point["accuracy"]), (4, -11), textcoords="offset points")
    axes.set_xlabel("squared distance correlation with sex, race and age")
    axes.set_ylabel("test accuracy, %")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Prints a table in Markdown, and draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="the table, a CSV file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--plot", type=Path, help="file of the plot")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    plt.rcParams["svg.hashsalt"] = "leyden"
    print("| measure | weight | accuracy, % | all three | sex | race | age | divergence, bits |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    curves: dict[str, list[dict[str, float]]] = {measure: [] for measure in MEASURES}
    for measure, points in curves.items():
        for weight in WEIGHTS:
            if weight == 0.0 and points is not curves["ccdcov"]:
                points.append(curves["ccdcov"][0])  # the same without a penalty
                continue
            runs = [train(arguments.path, measure, weight, seed, arguments.epochs) for seed in range(arguments.seeds)]
            point = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
            points.append(point)
            spread = 100.0 * statistics.stdev(run["accuracy"] for run in runs)
            cells = [f"{100.0 * point['accuracy']:.1f} ± {spread:.1f}"]
            cells += [f"{point[name]:.4f}" for name in ("all", *ATTRIBUTES, "divergence")]
            name = MEASURES[measure] if weight else "none"
            print("| " + " | ".join([name, f"{weight:g}", *cells]) + " |", flush=True)
    if arguments.plot:
        plot(curves, arguments.plot)


if __name__ == "__main__":
    main()
