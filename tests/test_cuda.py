"""On a GPU: the same results as on a CPU in float32, within the formats' tolerance."""

import pytest
import torch
from conftest import TINY

import sample
import train
from folio.journal import read_log

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
ON_GPU = [argument for argument in TINY if not argument.startswith(('--device', '--dtype'))]


def losses(folder):
    return [record['train_loss'] for record in read_log(folder)]


@pytest.mark.parametrize('dtype, tolerance', [
    ('float32', 1e-3), ('bfloat16', 0.05), ('float16', 0.05)])
@pytest.mark.parametrize('compile', [False, True])
def test_training_on_a_gpu_follows_the_cpu(home, dtype, tolerance, compile):
    length = ['--max_steps=10', '--log_interval=1']
    train.main([*TINY, *length, '--out_dir=cpu'])
    train.main([*ON_GPU, *length, '--out_dir=gpu', '--device=cuda', f'--dtype={dtype}',
                f'--compile={compile}'])
    assert losses(home / 'gpu') == pytest.approx(losses(home / 'cpu'), abs=tolerance)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_a_run_on_a_gpu_goes_on_and_can_be_sampled(home, capsys, dtype):
    argv = [*ON_GPU, '--device=cuda', f'--dtype={dtype}', '--min_lr=4e-3', '--compile=False']
    train.main([*argv, '--max_steps=8', '--out_dir=whole'])
    train.main([*argv, '--max_steps=4', '--out_dir=parts'])
    train.main([*argv, '--max_steps=8', '--out_dir=parts', '--resume=True'])
    assert losses(home / 'parts') == pytest.approx(losses(home / 'whole'), abs=1e-2)
    sample.main(['--out_dir=parts', '--device=cuda', '--start=the', '--max_new_tokens=40'])
    assert 'the' in capsys.readouterr().out
