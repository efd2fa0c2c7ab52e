"""The contenders: each trains what it should; nanoGPT's is a stand-in with the same interface."""

import json

import numpy as np
import pytest
import torch

import model
from folio.cli import UserError
from tools import bench
from tools.measure import TextTokens

CPU = torch.device('cpu')
SHAPE = {'n_layer': 1, 'n_head': 2, 'n_embd': 16, 'block_size': 8, 'vocab_size': 32,
         'batch_size': 4}
NANOGPT = '''
import collections
import json
import pathlib
import torch

GPTConfig = collections.namedtuple(
    'GPTConfig', 'block_size vocab_size n_layer n_head n_embd dropout bias')

def tell(what):
    with open(pathlib.Path(__file__).parent / 'made.jsonl', 'a') as file:
        file.write(json.dumps(what) + '\\n')

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        print('number of parameters')
        tell(config)
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.SGD(self.parameters(), 5.0)

    def forward(self, x, y):
        logits = self.table(x)
        loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1))
        tell([x.tolist(), y.tolist(), loss.item()])
        return logits, loss
'''


@pytest.fixture
def tokens():
    return TextTokens(np.arange(1000) % 32)


@pytest.mark.parametrize('name', bench.OURS)
def test_each_of_our_ways_learns(tokens, monkeypatch, name):
    monkeypatch.setattr(model, 'attend', model.attend)
    monkeypatch.setattr(model.GPT, 'compile', lambda network: None)
    losses, train_step = [], bench.train.train_step
    monkeypatch.setattr(bench.train, 'train_step',
                        lambda *arguments: losses.append(train_step(*arguments)[0].item()))
    step = bench.our_step(name, SHAPE, tokens, CPU, torch.float32)
    for _ in range(20):
        step()
    assert losses[-1] < losses[0] - 0.1


def test_the_encoder_of_torch_takes_the_place_of_all_blocks(tokens, monkeypatch):
    networks = []
    monkeypatch.setattr(bench.train, 'train_step', lambda *arguments: networks.append(arguments[0]))
    bench.our_step('nn.TransformerEncoder', SHAPE | {'n_layer': 2}, tokens, CPU, torch.float32)()
    [encoder] = networks[0].blocks
    assert isinstance(encoder, bench.Encoder) and len(encoder.encoder.layers) == 2


def test_the_encoder_of_torch_sees_no_later_token():
    torch.manual_seed(1)
    options = model.GPTConfig(**{k: v for k, v in SHAPE.items() if k != 'batch_size'})
    encoder, x = bench.Encoder(options).eval(), torch.randn(1, 8, 16)
    later = torch.cat((x[:, :5], torch.randn(1, 3, 16)), dim=1)
    one, other = (encoder(y, None, None)[0] for y in (x, later))
    assert torch.allclose(one[:5], other[:5], atol=1e-6) and not torch.allclose(one[5:], other[5:])


def test_explicit_attention_and_sdpa_are_the_same():
    q, k, v = torch.randn(3, 2, 4, 8, 16)
    one, other = (attend(q, k, v, 0.0) for attend in bench.ATTENTION.values())
    assert torch.allclose(one, other, atol=1e-5)


def test_nanogpt_learns_the_next_tokens_and_prints_nothing(tokens, tmp_path, capsys):
    (tmp_path / 'model.py').write_text(NANOGPT)
    torch.manual_seed(1)
    step = bench.nanogpt_step(SHAPE, tmp_path, tokens, CPU)
    for _ in range(5):
        step()
    assert capsys.readouterr().out == ''
    made = [json.loads(line) for line in (tmp_path / 'made.jsonl').read_text().splitlines()]
    assert made[0] == [8, 32, 1, 2, 16, 0.0, False]
    losses = [loss for *_, loss in made[1:]]
    assert len(losses) == 5 and losses[-1] < losses[0]
    for x, y, _ in made[1:]:
        assert torch.tensor(x).shape == (4, 8)
        assert torch.equal(torch.tensor(y), (torch.tensor(x) + 1) % 32)


@pytest.mark.parametrize('argv, message', [
    (['--sizes=huge'], "sizes must be 'nanogpt_cpu' or .*, not 'huge'"),
    (['--against=nowhere'], '--against=nowhere: there is no model.py')])
def test_what_cannot_be_measured_is_one_line(argv, message):
    with pytest.raises(UserError, match=message):
        bench.main(argv)


@pytest.mark.slow
def test_contenders_take_turns_and_one_that_fails_is_named(tmp_path, capsys):
    argv = ['--ours=float32 eager', '--rounds=2', '--device=cpu', f'--against={tmp_path}']
    (tmp_path / 'model.py').write_text(NANOGPT)
    bench.main(argv)
    *_, ours, theirs, empty, best = capsys.readouterr().out.splitlines()
    assert not empty and best == 'fastest on this machine: float32 eager'
    assert ours.startswith('| float32 eager |') and theirs.startswith('| nanoGPT |')
    assert theirs.endswith('| 1.00 |')
    (tmp_path / 'model.py').write_text(NANOGPT.replace('print(', 'raise ValueError('))
    with pytest.raises(UserError, match='nanogpt_cpu: nanoGPT failed: number of parameters'):
        bench.main(argv)
