import pytest
import torch

from leyden.data import DigitQuestions


def test_answers_and_false_ones():
    data = DigitQuestions(answer_noise={"odd": 0.3})
    for name, flipped in (("train", round(0.3 * 1258)), ("val", 0), ("test", 0)):
        tensors = data.dataset(name).tensors
        digit = tensors["target"]
        assert torch.equal(tensors["large"], (digit >= 5).long())
        assert (tensors["odd"] != digit % 2).sum() == flipped
        assert tensors["odd"].unique().tolist() == [0, 1]


def test_bad_noise():
    for noise in ({"even": 0.1}, {"odd": 1.5}):
        with pytest.raises(ValueError, match="answer_noise must map 'odd' or 'large' to shares"):
            DigitQuestions(answer_noise=noise)
