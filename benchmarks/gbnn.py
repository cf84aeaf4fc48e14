"""A hidden layer of 200 units built by boosting, against the same layer trained as a whole; and what it is worth when
only its first stages are kept.

python benchmarks/gbnn.py [--seeds 5]
"""

import argparse
import logging
import warnings
from collections.abc import Callable
from functools import partial

import torch
from lightning.pytorch import Trainer
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import Tensor

from leyden.analysis import paired_difference
from leyden.data import DataModule, Diabetes, Digits, Wine
from leyden.data.dataset import all_samples
from leyden.methods import BoostedHead
from leyden.models import MLP

UNITS, STAGES = 200, 50
KEPT = (0, 1, 2, 5, 10, 20, 50)
DATA: dict[str, tuple[Callable[..., DataModule], int, int]] = {  # how it is made, and numbers of inputs and outputs
    "diabetes, R2": (Diabetes, 10, 1),
    "digits, accuracy": (partial(Digits, num_train=400), 64, 10),
    "wine, accuracy": (Wine, 13, 3),
}
SETTINGS = {  # of which validation chooses in each seed
    "boosting": [{"learning_rate": rate} for rate in (0.05, 0.15, 0.5)],
    "Adam": [{"solver": "adam", "learning_rate_init": rate, "max_iter": 100} for rate in (1e-3, 3e-3, 1e-2)],
    "L-BFGS": [{"solver": "lbfgs", "alpha": alpha, "max_iter": 200} for alpha in (1e-4, 1e-2, 1.0)],
}
Predict = Callable[[Tensor], Tensor]


def score(predict: Predict, part: dict[str, Tensor]) -> float:
    """Accuracy, or R2."""
    prediction, target = predict(part["input"].flatten(1)), part["target"]
    if target.dtype == torch.int64:
        return (prediction.argmax(1) == target).double().mean().item()
    return 1.0 - (prediction - target).square().mean().item() / target.var(correction=0).item()


def boost(data: DataModule, inputs: int, outputs: int, learning_rate: float) -> BoostedHead:
    """Returns the trained method."""
    method = BoostedHead(
        MLP(inputs, outputs, ()),
        num_stages=STAGES,
        units=UNITS // STAGES,
        learning_rate=learning_rate,
        loss="mse" if data.num_classes is None else "multiclass",
        optimizer=partial(torch.optim.SGD, lr=1.0),
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STAGES,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, data)
    return method.eval()


def train(part: dict[str, Tensor], seed: int, **settings: float) -> Predict:
    """Trains the whole layer."""
    classifies = part["target"].dtype == torch.int64
    layer = (MLPClassifier if classifies else MLPRegressor)(
        hidden_layer_sizes=(UNITS,), activation="tanh", random_state=seed, **settings
    )
    layer.fit(part["input"].flatten(1).numpy(), part["target"].flatten().numpy())
    if classifies:
        return lambda x: torch.from_numpy(layer.predict_proba(x.numpy()))
    return lambda x: torch.from_numpy(layer.predict(x.numpy())).unsqueeze(1)


@torch.no_grad()
def run(name: str, seed: int) -> tuple[dict[str, float], list[float]]:
    """Test scores by way of training, and those of the boosted layer by stages kept."""
    make, inputs, outputs = DATA[name]
    data = make(batch_size=32, split_seed=seed, seed=seed)
    parts = {split: all_samples(data.dataset(split)) for split in ("train", "val", "test")}
    scores, curve = {}, []
    for way, settings in SETTINGS.items():
        best = -float("inf")
        for setting in settings:
            with torch.enable_grad():
                method = boost(data, inputs, outputs, **setting) if way == "boosting" else None
                predict = method or train(parts["train"], seed, **setting)
            if (validation := score(predict, parts["val"])) > best:
                best, scores[way] = validation, score(predict, parts["test"])
                if method is not None:
                    curve = [(method.keep(kept), score(method, parts["test"]))[1] for kept in KEPT]
    return scores, curve


def main() -> None:
    """Prints tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    curves = {}
    print("| data | " + " | ".join(SETTINGS) + " | boosting - Adam | boosting - L-BFGS |")
    print("| --- |" + " --- |" * 5, flush=True)
    for name in DATA:
        scores, runs = zip(*(run(name, seed) for seed in seeds), strict=True)
        curves[name] = torch.tensor(runs).mean(0)
        by_way = {way: [found[way] for found in scores] for way in SETTINGS}
        cells = [f"{torch.tensor(values).mean():.3f}" for values in by_way.values()]
        for other in ("Adam", "L-BFGS"):
            found = paired_difference(by_way[other], by_way["boosting"])
            low, high = found.interval or (float("-inf"), float("inf"))  # of one seed
            cells.append(f"{found.mean:.3f} [{low:.3f}, {high:.3f}]")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\n| stages kept | " + " | ".join(map(str, KEPT)) + " |")
    print("| --- |" + " --- |" * len(KEPT))
    for name, curve in curves.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in curve) + " |")


if __name__ == "__main__":
    main()
