"""Measuring: against a token-by-token computation."""

import math

import pytest
import torch

from folio.cli import UserError
from folio.machine import Machine
from folio.tokenizer import Tokenizer
from model import GPT, GPTConfig
from prepare import open_corpus
from tools import measure

CPU = Machine(torch.device('cpu'))


def one_by_one(model, ids, context, stride):
    """The sums of `measure`, each prediction with the past that its window gives it."""
    nats = right = among_5 = 0
    for i in range(1, len(ids)):
        window = max(0, -(-(i - context) // stride))  # the first that reaches so far
        past = torch.tensor([ids[window * stride:i]])
        logits = model(past)[0, -1].double()
        nats -= logits.log_softmax(-1)[ids[i]].item()
        order = logits.argsort(descending=True).tolist()
        right += order[0] == ids[i]
        among_5 += ids[i] in order[:5]
    return nats, right, among_5


@pytest.mark.parametrize('limit', [None, 2, 16, 17, 18, 50])
@pytest.mark.parametrize('context, stride', [(None, None), (16, 4), (5, 5), (7, 3), (1, 1)])
@torch.no_grad()
def test_each_token_is_predicted_once_with_its_window_s_past(
        home, monkeypatch, limit, context, stride):
    _, tokens, meta = open_corpus('tiny')
    tokenizer = Tokenizer(meta['tokenizer'])
    lengths = torch.tensor([len(token) for token in tokenizer.token_bytes])
    tokens = measure.TextTokens(tokens.read(0, 150))
    model = GPT(GPTConfig(16, meta['vocab_size'], n_layer=1, n_embd=16)).eval()
    ids = tokens.ids[:limit].tolist()
    nats, right, among_5 = one_by_one(model, ids, context or 16, stride or 16)
    monkeypatch.setattr(measure, 'sequences_at_once', lambda length, vocab_size: 3)
    windows = measure.windows_over(len(ids) - 1, context or 16, stride or 16)
    sums = measure.measure(model, tokens, CPU, windows, lengths)
    numbers = measure.summary(sums[0])
    count = len(ids) - 1
    assert numbers['tokens'] == count and numbers['loss'] == pytest.approx(nats / count, abs=1e-5)
    assert numbers['perplexity'] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert numbers['bits_per_byte'] == pytest.approx(
        nats / math.log(2) / lengths[ids[1:]].sum().item(), abs=1e-5)
    assert (numbers['accuracy'], numbers['top5_accuracy']) == (right / count, among_5 / count)


def test_of_equal_logits_the_lower_id_comes_first():
    logits = torch.zeros(8, 8, dtype=torch.bfloat16)
    assert measure.score(logits, torch.arange(8))[1].tolist() == list(range(8))


def test_what_is_no_number_is_never_right():
    nats, ranks = measure.score(torch.full((2, 8), math.nan), torch.tensor([0, 3]))
    assert nats.isnan().all() and ranks.tolist() == [8, 8]
    assert measure.summary(torch.tensor([1e4, 1, 0, 0, 0]))['perplexity'] == math.inf


def test_groups_have_sums_of_their_own(home):
    model, tokens = GPT(GPTConfig(8, 40, n_layer=1, n_embd=8)), open_corpus('tiny')[1]
    groups, windows = torch.arange(101) // 30, measure.windows_over(100, 8, 8)
    sums = measure.measure(model, tokens, CPU, windows, groups=groups)
    assert sums[:, 1].tolist() == [29, 30, 30, 11]
    assert torch.allclose(sums.sum(dim=0), measure.measure(model, tokens, CPU, windows)[0])


def test_a_text_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / 'latin.txt').write_bytes(b'a\xff')
    for name in ('latin.txt', 'nowhere.txt'):
        with pytest.raises((UserError, OSError), match=name):
            measure.read_text(tmp_path / name)


def test_a_text_is_read_as_data_are(tmp_path, capsys):
    (tmp_path / 'text.txt').write_bytes('\ufeffa\r\n\r\nb\rc\n'.encode())
    assert measure.read_text(tmp_path / 'text.txt') == 'a\n\nb\rc\n'
    assert capsys.readouterr().err.endswith('text.txt: 2 \\r\\n became \\n\n')
    assert measure.read_text(tmp_path / 'text.txt').count('\n') == 3
    (tmp_path / 'text.txt').write_text('a\nb')
    capsys.readouterr()
    assert measure.read_text(tmp_path / 'text.txt') == 'a\nb' and not capsys.readouterr().err
