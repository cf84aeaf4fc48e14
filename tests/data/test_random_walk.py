import pytest
import torch

from leyden.data import RandomWalk


def test_values_by_hand():
    # without discount the value is the chance to leave on the right minus that on the left: linear in the place
    torch.testing.assert_close(RandomWalk(num_states=5, gamma=1.0).true_values(), torch.tensor([-4.0, -2, 0, 2, 4]) / 6)
    # with 3 states: v2 = 0 by symmetry, v3 = 0.5 * 1 + gamma * 0.5 * v2
    torch.testing.assert_close(RandomWalk(num_states=3, gamma=0.5).true_values(), torch.tensor([-0.5, 0.0, 0.5]))
    torch.testing.assert_close(RandomWalk(num_states=1).true_values(), torch.tensor([0.0]))


def test_the_stream_is_of_whole_episodes():
    walk = RandomWalk(num_states=5, num_episodes=30, seed=1)
    stream = walk.dataset("train").tensors
    here, there = stream["input"], stream["next_input"]
    ends = stream["terminated"]
    assert ends.sum() == 30
    assert ends[-1]
    assert torch.equal(stream["reward"] != 0.0, ends)
    assert torch.equal(there[:-1][~ends[:-1]], here[1:][~ends[:-1]])  # one state after the other
    assert here[0].argmax() == 2
    assert (here[1:][ends[:-1]].argmax(1) == 2).all()
    assert not there[ends].any()
    assert ((here[~ends].argmax(1) - there[~ends].argmax(1)).abs() == 1).all()
    assert torch.equal(here[ends].argmax(1), torch.where(stream["reward"][ends] > 0, 4, 0))


def test_mean_return_agrees_with_the_values():
    walk = RandomWalk(num_states=5, num_episodes=4000, gamma=0.9)
    stream = walk.dataset("train").tensors
    returns, total = [], 0.0
    for reward, ended in zip(reversed(stream["reward"].tolist()), reversed(stream["terminated"].tolist()), strict=True):
        total = reward + 0.9 * (0.0 if ended else total)
        returns.append(total)
    returns = torch.tensor(returns[::-1])
    means = torch.stack([returns[stream["input"][:, state] == 1.0].mean() for state in range(5)])
    torch.testing.assert_close(means, walk.true_values(), rtol=0.0, atol=0.03)


def test_seeds_and_evaluation():
    one, same, other = (RandomWalk(seed=seed).dataset("train").tensors["input"] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert len(one) != len(other) or not torch.equal(one, other)
    walk = RandomWalk()
    [batch] = walk.val_dataloader()
    torch.testing.assert_close(batch["target"].squeeze(-1), walk.true_values())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_states": 0}, "num_states and num_episodes must be at least 1, got 0 and 50"),
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\], got 1.1"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        RandomWalk(**arguments)
