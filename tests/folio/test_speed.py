"""Which number format a CPU is fast in."""

import math

import pytest

from folio import packed, speed
from folio.packed import PackedLinear


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """How often the CPU was asked; it answers that bfloat16 is twice as fast."""
    questions = []

    def answer(*question):
        questions.append(question)
        return {'float32': 2.0, 'bfloat16': 1.0}
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(speed, 'time_formats', answer)
    return questions


def test_a_question_is_asked_once_and_its_answer_kept(asked, monkeypatch):
    assert [speed.fastest_format(64, 32) for _ in range(3)] == ['bfloat16'] * 3
    assert len(asked) == 1
    for more in ((65, 32), (64, 33), (64, 32, 2)):
        speed.fastest_format(*more)
    assert len(asked) == 4
    monkeypatch.setattr(speed, 'kind_of_cpu', lambda: 'another')
    speed.fastest_format(64, 32)
    assert len(asked) == 5


@pytest.mark.parametrize('seconds, answer', [(1.1, 'float32'), (1.3, 'bfloat16')])
def test_bfloat16_has_to_be_clearly_faster(asked, monkeypatch, seconds, answer):
    monkeypatch.setattr(speed, 'time_formats', lambda *question: {
        'float32': seconds, 'bfloat16': 1.0})
    assert speed.fastest_format(64, 32) == answer


@pytest.mark.parametrize('content', ['', '[]', '{', '[' * 10 ** 5, '\xff', None])
def test_a_cache_that_is_damaged_or_cannot_be_written_is_no_obstacle(asked, tmp_path, content):
    if content is None:
        (tmp_path / 'folio').write_text('a file in place of the folder')
    else:
        (tmp_path / 'folio').mkdir()
        (tmp_path / 'folio' / 'formats.json').write_text(content, encoding='latin-1')
    assert speed.fastest_format(64, 32) == 'bfloat16' and len(asked) == 1


@pytest.mark.parametrize('answer', ['"float8"', '["bfloat16"]', 'null'])
def test_an_answer_that_is_no_format_is_asked_again(asked, tmp_path, answer):
    speed.fastest_format(64, 32)
    path = tmp_path / 'folio' / 'formats.json'
    path.write_text(path.read_text().replace('"bfloat16"', answer))
    assert speed.fastest_format(64, 32) == 'bfloat16' and len(asked) == 2


@pytest.mark.parametrize('question', [(64, 32, 0), (1, 32, 2), (10 ** 9, 8, 0), (1, 8192, 99),
                                      (10 ** 9, 10 ** 9, 0)])
def test_both_formats_are_timed_at_any_size(monkeypatch, question):
    monkeypatch.setattr(speed, 'SECONDS', 0)
    multiplied, linear, forward = [], speed.F.linear, PackedLinear.forward

    def count(x, weight):
        multiplied.append(x.numel() * len(weight))
        return linear(x[:1], weight)

    def count_packed(layer, x):
        multiplied.append(x.numel() * layer.weight.shape[0])
        return forward(layer, x[:1])
    monkeypatch.setattr(speed.F, 'linear', count)
    monkeypatch.setattr(PackedLinear, 'forward', count_packed)
    monkeypatch.setattr(packed, 'SMALLEST', 0)
    seconds = speed.time_formats(*question)
    assert seconds.keys() == speed.FORMATS.keys()
    assert all(0 < value < math.inf for value in seconds.values())
    assert 0 < max(multiplied) <= speed.LARGEST


def test_the_peak_of_a_gpu_is_known_by_its_name(monkeypatch):
    for name, peak in (('NVIDIA H100 80GB HBM3', 989e12), ('NVIDIA H100 PCIe', 756e12),
                       ('NVIDIA A100-SXM4-40GB', 312e12), ('Quadro 1000', None)):
        monkeypatch.setattr(speed.torch.cuda, 'get_device_name', lambda device, name=name: name)
        assert speed.peak_rate(speed.torch.device('cuda')) == peak
    assert speed.peak_rate(speed.torch.device('cpu')) is None
