import pytest
import torch

from leyden.data import PydocTopics, TextFile, TokenWindows

TEXT = "The quick brown fox jumps over the lazy dög. " * 20  # 45 letters, 46 bytes


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return str(path)


def test_windows():
    windows = TokenWindows(torch.arange(12, dtype=torch.uint8), context=4, stride=3)
    assert len(windows) == 3  # starts 0, 3, 6; the next, 9, would end at 13
    batch = windows.__getitems__([2, 0])
    assert batch["input"].tolist() == [[6, 7, 8, 9], [0, 1, 2, 3]]
    assert batch["target"].tolist() == [[7, 8, 9, 10], [1, 2, 3, 4]]
    assert batch["input"].dtype == torch.int64
    assert windows[1]["target"].tolist() == [4, 5, 6, 7]


def test_the_last_whole_window_counts():
    assert len(TokenWindows(torch.zeros(9), context=4, stride=4)) == 2
    assert len(TokenWindows(torch.zeros(8), context=4, stride=4)) == 1


@pytest.mark.parametrize(
    ("context", "stride", "message"),
    [(0, 1, "at least 1, got 0 and 1"), (2, 0, "at least 1, got 2 and 0"), (12, 1, "12 tokens are too few")],
)
def test_bad_windows_are_refused(context, stride, message):
    with pytest.raises(ValueError, match=message):
        TokenWindows(torch.zeros(12), context, stride)


@pytest.mark.parametrize(("tokenizer", "length", "vocab_size"), [("byte", 920, 256), ("char", 900, len(set(TEXT)))])
def test_a_file_is_cut_into_three(path, tokenizer, length, vocab_size):
    data = TextFile(path, context=8, tokenizer=tokenizer, val_fraction=0.1, test_fraction=0.2, stride=2)
    assert data.vocab_size == vocab_size
    assert data.bytes_per_token == pytest.approx(920 / length)
    pieces = [data.dataset(name).tokens for name in ("train", "val", "test")]
    assert [len(piece) for piece in pieces] == [length * 7 // 10, length // 10, length // 5]
    assert pieces[0].dtype == torch.uint8
    assert data.decode(torch.cat(pieces)) == TEXT
    assert len(data.dataset("train")) == (length * 7 // 10 - 9) // 2 + 1
    assert len(data.dataset("val")) == (length // 10 - 9) // 8 + 1
    assert data.dataset("train")[0]["target"].shape == (8,)


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_encode_and_decode(path, tokenizer):
    data = TextFile(path, context=8, tokenizer=tokenizer)
    tokens = data.encode("dög the")
    assert tokens.dtype == torch.int64
    assert len(tokens) == (8 if tokenizer == "byte" else 7)
    assert data.decode(tokens) == "dög the"


def test_characters_are_numbered_in_the_order_of_unicode(path):
    data = TextFile(path, context=8, tokenizer="char")
    assert data.encode("".join(sorted(set(TEXT)))).tolist() == list(range(len(set(TEXT))))
    with pytest.raises(ValueError, match="the character 'Q' is not among the"):
        data.encode("Q")


def test_a_cut_character_decodes_to_the_replacement(path):
    assert TextFile(path, context=8).decode(torch.tensor([100, 195])) == "d\ufffd"


def test_more_than_256_characters(tmp_path):
    path = tmp_path / "text.txt"
    text = "".join(chr(0x4E00 + i) for i in range(300))
    path.write_text(text, encoding="utf-8")
    data = TextFile(str(path), context=4, tokenizer="char")
    assert data.dataset("train").tokens.dtype == torch.int32
    assert data.decode(data.dataset("test").tokens) == text[-15:]


def test_pydoc_topics():
    data = PydocTopics(context=64)
    assert data.batch_size == 32
    assert sum(len(data.dataset(name).tokens) for name in ("train", "val", "test")) > 300_000
    assert "assert" in data.decode(data.dataset("train").tokens)
    before = data.dataset("test")[3]["input"]
    assert torch.equal(PydocTopics(context=64).dataset("test")[3]["input"], before)


def test_errors(tmp_path, path):
    with pytest.raises(ValueError, match=r"no file .*nowhere"):
        TextFile(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="tokenizer must be 'byte' or 'char', got 'bpe'"):
        TextFile(path, tokenizer="bpe")
    with pytest.raises(ValueError, match="the val part has 46 of 920 tokens, but a window takes context \\+ 1 = 65"):
        TextFile(path, context=64)
    (tmp_path / "latin").write_bytes("ö".encode("latin-1") * 1000)
    assert TextFile(str(tmp_path / "latin"), context=4).vocab_size == 256
    with pytest.raises(ValueError, match="needs UTF-8"):
        TextFile(str(tmp_path / "latin"), context=4, tokenizer="char")
    (tmp_path / "empty").write_bytes(b"")
    for tokenizer in ("byte", "char"):
        with pytest.raises(ValueError, match="the train part has 0 of 0 tokens"):
            TextFile(str(tmp_path / "empty"), context=4, tokenizer=tokenizer)
