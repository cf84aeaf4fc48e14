import pytest
import torch

from leyden.inference import consistency_sample

Z = [torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 2.0]])]


def test_one_and_two_steps_by_hand():
    sigmas = []

    def denoise(x, sigma):
        sigmas.append(sigma.tolist())
        return 0.1 * x

    assert consistency_sample(denoise, Z[:1])[0].tolist() == pytest.approx([8.0, -8.0])
    # 8 + sqrt(1.3^2 - 0.5^2) z
    two = consistency_sample(denoise, Z, (80.0, 1.3), sigma_min=0.5)
    assert two[0].tolist() == pytest.approx([0.1 * (8.0 + 1.2 * 0.5), 0.1 * (-8.0 + 1.2 * 2.0)])
    assert sigmas == [[80.0], [80.0], [pytest.approx(1.3)]]


@pytest.mark.parametrize(
    ("noise", "sigmas", "match"),
    [
        (Z, (80.0,), "one noise per sigma"),
        ([], (), "at least one"),
        (Z, (1.0, 80.0), "descend"),
        (Z, (80.0, 0.0), "below"),
    ],
)
def test_refuses(noise, sigmas, match):
    with pytest.raises(ValueError, match=match):
        consistency_sample(lambda x, s: x, noise, sigmas)
