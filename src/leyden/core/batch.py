"""The batch: a plain dict of tensors with agreed keys."""

from torch import Tensor

__all__ = ["Batch", "Terms", "require_keys"]

# Keys: `input`, `target` (int64 [N] or float [N, C]), `index` (int64 [N], position in the training set) and, where they
# exist, `mask`, `domain`, `group`, `source`, `mix_target` [N, 2] and `mix_lam` (classes of two samples that were mixed,
# and the share of the first one in `target`), `labeled` (bool [N]; `target` is -1 where False),
# views `input_2`, `input_strong`, pairs `positive`, `negative`, `boxes` [N, M, 4] and `labels` [N, M] padded with -1;
# of bags of instances `input` [N, M, ...], `mask` [N, M] and `instance_target` [N, M] padded with -1.
Batch = dict[str, Tensor]
# Named scalars, already weighted: their sum is the loss.
Terms = dict[str, Tensor]


def require_keys(batch: Batch, *keys: str, user: str) -> None:
    """Checks that a batch holds what a part needs.

    Args:
        batch: the batch.
        keys: the names that must be there.
        user: who needs them, for the message.

    Raises:
        ValueError: a key is missing.
    """
    missing = [key for key in keys if key not in batch]
    if missing:
        raise ValueError(f"{user} needs the batch keys {missing}, but the batch has only {sorted(batch)}")
