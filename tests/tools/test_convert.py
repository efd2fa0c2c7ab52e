"""Weights in and out: transformers computes the same, and what cannot be converted is refused."""

import dataclasses
import hashlib
import json
import os
import pickle
import re
import sys
import threading
import warnings
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TEXT, TINY

import folio.options
import prepare
import sample
import train
from folio.checkpoint import load
from folio.cli import UserError
from folio.tokenizer import Tokenizer, tiktoken_spec, train_bpe
from model import GPT, SHAPE, from_checkpoint
from tools import convert, evaluate, layouts
from tools.hf_tokenizer import to_json

safetensors = pytest.importorskip('safetensors.torch')
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    transformers = pytest.importorskip('transformers')
transformers.utils.logging.disable_progress_bar()
CHARS = {'kind': 'char', 'chars': ''.join(map(chr, range(33, 103)))}
GPT2 = {'position': 'learned', 'norm': 'layernorm', 'norm_weight': True, 'bias': True,
        'mlp': 'gelu', 'qk_norm': False}
LLAMA = {'mlp': 'swiglu', 'qk_norm': False, 'norm_weight': True, 'rope_theta': 5e5}
QWEN3 = LLAMA | {'qk_norm': True, 'norm_eps': 1e-6}
OUT = {
    'the other defaults': {}, 'grouped': {'n_kv_head': 2, 'tied': False, 'rope_theta': 500.0},
    'GPT-2': GPT2, 'GPT-2 untied': GPT2 | {'tied': False, 'n_inner': 40},
    'GPT-2 with the exact gelu': GPT2 | {'mlp': 'gelu_erf'},
    'without biases': GPT2 | {'bias': False}, 'bare norms': GPT2 | {'norm_weight': False},
    'GPT-2 without layers': GPT2 | {'n_layer': 0},
    'Llama': LLAMA, 'Llama grouped': LLAMA | {'n_kv_head': 1, 'n_inner': 24, 'tied': False},
    'Llama with biases': LLAMA | {'bias': True, 'norm_weight': False},
    'Qwen3': QWEN3, 'Qwen3 grouped': QWEN3 | {'n_kv_head': 2, 'norm_weight': False},
    'Qwen3 of wide heads': QWEN3 | {'head_size': 16},
    'Llama of wide heads': LLAMA | {'head_size': 10}}
SMALL = {'vocab_size': 70, 'max_position_embeddings': 256, 'num_hidden_layers': 2,
         'num_attention_heads': 4, 'hidden_size': 32}
MODERN = SMALL | {'intermediate_size': 40, 'num_key_value_heads': 2}
IN = {
    'gpt2': SMALL, 'gpt2 untied': SMALL | {'tie_word_embeddings': False, 'n_inner': 24},
    'gpt2 with the exact gelu': SMALL | {'activation_function': 'gelu'},
    'llama': MODERN | {'tie_word_embeddings': True, 'rope_theta': 5e5}, 'llama untied': MODERN,
    'llama with biases': MODERN | {'attention_bias': True, 'mlp_bias': True},
    'qwen3': MODERN | {'head_dim': 8, 'tie_word_embeddings': True, 'rms_norm_eps': 1e-5},
    'qwen3 of wide heads': MODERN | {'head_dim': 16}}


def randomize(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(float(p.dim() == 1), 0.3)
    return model.eval()


def save_ours(shape, spec=CHARS, **small):
    """A random model in the folder ours."""
    options = train.TrainConfig(**{'vocab_size': 70, 'n_layer': 2, 'n_head': 4, 'n_embd': 32,
                                   'token_shift': False, **small, **shape})
    model = randomize(GPT(options))
    settings = dataclasses.asdict(options) | dataclasses.asdict(model.config)
    torch.save({'model': model.state_dict(), 'config': settings, 'tokenizer': spec}, 'ours.pt')
    return model


def save_theirs(name, folder='theirs', **options):
    kind = name.split()[0]
    settings = transformers.AutoConfig.for_model(kind, **IN[name] | options)
    model = randomize(transformers.AutoModelForCausalLM.from_config(settings))
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return model


def export(dest='theirs'):
    convert.main(['--to=hf', '--out_dir=ours.pt', f'--dest={dest}'])
    return transformers.AutoModelForCausalLM.from_pretrained(dest).eval()


def assert_same(ours, theirs, vocab_size=None):
    """Logits within 1e-4, and the same 200 tokens past a prompt."""
    idx = torch.randint(60, (2, 50))
    with torch.no_grad():
        logits, other = ours(idx), theirs(idx).logits
    assert logits.std() > 0.5 and (logits - other).abs().max() < 1e-4
    tokens = [token.item() for token in ours.generate(idx[:1], 200, 0, vocab_size=vocab_size)]
    other = theirs.generate(idx[:1], max_new_tokens=200, do_sample=False)[0, 50:].tolist()
    assert tokens == other and len(tokens) == 200


# --- the same numbers both ways ------------------------------------------------------------------

@pytest.mark.parametrize('name', OUT)
def test_transformers_computes_and_writes_what_our_model_does(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert_same(save_ours(OUT[name]), export())


@pytest.mark.parametrize('name', IN)
def test_our_model_computes_and_writes_what_transformers_does(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    theirs = save_theirs(name)
    convert.main(['--from=theirs', '--out_dir=ours'])
    assert_same(from_checkpoint(load('ours')), theirs)


@pytest.mark.parametrize('name', IN)
def test_in_out_in_brings_bit_for_bit_the_same_weights_back(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save_theirs(name)
    convert.main(['--from=theirs', '--out_dir=first'])
    convert.main(['--to=hf', '--out_dir=first', '--dest=again'])
    convert.main(['--from=again', '--out_dir=second'])
    first, second = load('first'), load('second')
    assert first['model'].keys() == second['model'].keys()
    assert all(torch.equal(first['model'][key], second['model'][key]) for key in first['model'])
    assert first['config'] | {'out_dir': 'second'} == second['config']
    one, other = (safetensors.load_file(f'{folder}/model.safetensors')
                  for folder in ('theirs', 'again'))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_exact_gelu_is_the_exact_gelu_both_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours, theirs = save_ours(GPT2 | {'mlp': 'gelu_erf'}), export('hf')
    assert json.loads((tmp_path / 'hf/config.json').read_text())['activation_function'] == 'gelu'
    convert.main(['--from=hf', '--out_dir=back'])
    idx = torch.randint(60, (2, 50))
    with torch.no_grad():
        logits, other, back = ours(idx), theirs(idx).logits, from_checkpoint(load('back'))(idx)
        ours.blocks[0].mlp.kind = 'gelu'
        assert (logits - ours(idx)).abs().max() > 1e-4
    assert load('back')['config']['mlp'] == 'gelu_erf' and torch.equal(logits, back)
    assert (logits - other).abs().max() < 1e-5


NANOGPT = {'vocab_size': 60, 'block_size': 256, 'n_layer': 2, 'n_head': 4, 'n_embd': 32,
           'bias': True, 'dropout': 0.1}


def save_nanogpt(folder, prefix='', **changes):
    """A checkpoint in nanoGPT's format with the weights of the GPT-2 of transformers which it
    returns: linear layers the other way around, the exact GELU, and maybe no biases."""
    args = NANOGPT | changes
    theirs = randomize(transformers.AutoModelForCausalLM.from_config(transformers.GPT2Config(
        vocab_size=args['vocab_size'], n_positions=256, n_layer=2, n_head=4, n_embd=32,
        activation_function='gelu', eos_token_id=None)))
    state = {}
    for name, p in theirs.state_dict().items():
        if name.endswith('.bias') and not args['bias']:
            p.zero_()
        else:
            linear = p.dim() == 2 and '.h.' in name
            state[prefix + name] = p.T.clone() if linear else p
    folder.mkdir()
    torch.save({'model': state, 'optimizer': {}, 'model_args': args, 'iter_num': 5,
                'best_val_loss': torch.tensor(1.5), 'config': {'dataset': 'plays'}},
               folder / 'ckpt.pt')
    return theirs


def save_meta(path, chars):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({'vocab_size': len(chars), 'itos': dict(enumerate(chars)),
                                   'stoi': {char: i for i, char in enumerate(chars)}}))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('prefix', ['', '_orig_mod.'])
def test_a_checkpoint_of_nanogpt_s_computes_the_same_here_and_in_transformers(
        home, bias, prefix):
    theirs = save_nanogpt(home / 'nano', prefix, bias=bias)
    save_meta(home / 'data' / 'plays' / 'meta.pkl', ' ' + CHARS['chars'][:59])
    convert.main(['--from=nano/ckpt.pt'])
    state = load(home / 'out' / 'nano')
    assert state['tokenizer']['chars'] == ' ' + CHARS['chars'][:59]
    assert (state['config']['mlp'], state['config']['bias']) == ('gelu_erf', bias)
    convert.main(['--to=hf', '--out_dir=out/nano', '--dest=hf'])
    ours, again = from_checkpoint(state), transformers.AutoModelForCausalLM.from_pretrained('hf')
    idx = torch.randint(60, (2, 50))
    with torch.no_grad():
        logits, other, out = ours(idx), theirs(idx).logits, again.eval()(idx).logits
    assert logits.std() > 0.5 and (logits - other).abs().max() < 1e-5
    assert (logits - out).abs().max() < 1e-5 and again.config.activation_function == 'gelu'
    sample.main(['--out_dir=out/nano', '--device=cpu', '--max_new_tokens=3'])


def test_the_characters_of_a_nanogpt_may_be_named_or_be_absent(home, capsys):
    save_nanogpt(home / 'nano')
    convert.main(['--from=nano/ckpt.pt', '--out_dir=bare'])
    assert load('bare')['tokenizer'] is None
    assert re.search('without a tokenizer.*plays/meta.pkl.*60 ids ', capsys.readouterr().out)
    save_meta(home / 'other.pkl', CHARS['chars'][:60])
    convert.main(['--from=nano/ckpt.pt', '--out_dir=named', '--meta=other.pkl'])
    assert load('named')['tokenizer']['chars'] == CHARS['chars'][:60]


def test_a_run_of_nanogpt_is_named_by_its_folder_and_sample_says_what_it_is(home):
    save_nanogpt(home / 'nano')
    convert.main(['--from=nano', '--out_dir=ours'])
    assert load('ours')['config']['n_layer'] == 2
    with pytest.raises(UserError, match='a checkpoint of nanoGPT: python .*convert.py --from='):
        load('nano')


@pytest.mark.skipif('TIKTOKEN_CACHE_DIR' not in os.environ, reason='needs TIKTOKEN_CACHE_DIR')
@pytest.mark.parametrize('size', [50257, 50304])
def test_a_nanogpt_with_gpt2_s_vocabulary_has_gpt2_s_tokens(home, size):
    save_nanogpt(home / 'nano', vocab_size=size)
    convert.main(['--from=nano/ckpt.pt', '--out_dir=ours'])
    assert load('ours')['tokenizer'] == tiktoken_spec('gpt2')


@pytest.mark.parametrize('changes, message', [
    ({'n_layer': 3}, 'h.2.attn.c_attn.bias is missing'),
    ({'n_layer': 1}, 'h.1.attn.c_attn.bias has no place'), ({'n_head': 5}, 'n_embd=32 is not div'),
    ({'n_embd': 16, 'n_head': 4}, r'ckpt.pt can.* has the shape .*\[32\]\), not .*\[16\]\)'),
    ({'bias': False}, 'bias has no place'), ({'vocab_size': None}, 'vocab_size is None'),
    ({'block_size': 'long'}, "block_size must be a whole number.*, not 'long'")])
def test_a_nanogpt_whose_description_and_weights_disagree_is_one_line(home, changes, message):
    save_nanogpt(home / 'nano')
    state = torch.load(home / 'nano/ckpt.pt', weights_only=True)
    torch.save(state | {'model_args': NANOGPT | changes}, home / 'nano/ckpt.pt')
    with pytest.raises(UserError, match=message) as error:
        convert.main(['--from=nano/ckpt.pt'])
    assert '\n' not in str(error.value) and not (home / 'out').exists()


class Code:
    """What a checkpoint can hold that would run."""


@pytest.mark.parametrize('content, message', [
    ({'model': {}}, 'no checkpoint of nanoGPT'), ([1], "ckpt.pt can't be read"),
    ({'model': {}, 'model_args': 1}, "can't be read"), (Code(), 'pickled code, which is not run')])
def test_another_file_than_nanogpt_s_is_one_line(home, content, message):
    torch.save(content, home / 'ckpt.pt')
    with pytest.raises(UserError, match=message) as error:
        convert.main(['--from=ckpt.pt', '--out_dir=ours'])
    assert '\n' not in str(error.value) and not (home / 'ours').exists()


def test_a_meta_pkl_goes_with_a_nanogpt_of_its_size_only(home):
    save_nanogpt(home / 'nano')
    save_meta(home / 'large.pkl', CHARS['chars'][:61])
    (home / 'bad.pkl').write_bytes(pickle.dumps({'stoi': print}))
    for argv, message in ((['--meta=large.pkl'], 'has 61 ids, its model 60'),
                          (['--meta=bad.pkl'], 'prepare the data again')):
        with pytest.raises(UserError, match=message):
            convert.main(['--from=nano/ckpt.pt', '--out_dir=ours', *argv])
    with pytest.raises(UserError, match='--meta goes with a checkpoint of nanoGPT'):
        (home / 'other').mkdir()
        convert.main(['--from=other', '--meta=large.pkl'])


def test_padding_of_the_vocabulary_is_never_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = save_ours({'vocab_size': 128})
    theirs = export()
    assert (ours(torch.arange(70)[None]).argmax(dim=-1) >= 70).any()
    assert_same(ours, theirs, vocab_size=70)


def test_weights_in_several_files_and_without_the_prefix_come_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = save_theirs('gpt2')
    theirs.transformer.save_pretrained('bare', max_shard_size='20KB')
    assert (tmp_path / 'bare/model.safetensors.index.json').exists()
    tensors = {f'h.{i}.attn.bias': torch.ones(1, 1, 4, 4) for i in range(2)}  # as in GPT-2's file
    part = next((tmp_path / 'bare').glob('*00001-of*'))
    safetensors.save_file(safetensors.load_file(part) | tensors, part)
    convert.main(['--from=bare', '--out_dir=ours'])
    assert_same(from_checkpoint(load('ours')), theirs)


@pytest.mark.parametrize('name', ['gpt2', 'llama', 'qwen3'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_weights_keep_their_number_format_in_several_files_too(tmp_path, monkeypatch, name, dtype):
    monkeypatch.chdir(tmp_path)
    save_theirs(name).to(dtype).save_pretrained('parts', max_shard_size='20KB')
    assert (tmp_path / 'parts/model.safetensors.index.json').exists()
    theirs = transformers.AutoModelForCausalLM.from_pretrained('parts', dtype=torch.float32)
    convert.main(['--from=parts', '--out_dir=ours'])
    ours = from_checkpoint(load('ours'))
    assert {p.dtype for p in ours.parameters()} == {dtype}
    assert_same(ours.float(), theirs.eval())
    monkeypatch.setattr(convert, 'LARGEST', 20_000)
    convert.main(['--to=hf', '--out_dir=ours', '--dest=again'])
    sizes = [path.stat().st_size for path in (tmp_path / 'again').glob('model-*-of-*.safetensors')]
    assert len(sizes) > 1 and max(sizes) < 25_000
    again = transformers.AutoModelForCausalLM.from_pretrained('again', dtype='auto')
    before, after = theirs.to(dtype).state_dict(), again.state_dict()
    assert again.dtype == dtype and before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_model_in_bfloat16_is_sampled_evaluated_and_trained_on(home, capsys):
    spec = json.loads((home / 'data/tiny/meta.json').read_text())['tokenizer']
    save_ours(LLAMA | {'vocab_size': 40, 'block_size': 64}, spec)
    export('hf')
    transformers.AutoModelForCausalLM.from_pretrained('hf').bfloat16().save_pretrained('hf')
    convert.main(['--from=hf'])
    assert load('out/hf')['model']['wte.weight'].dtype == torch.bfloat16
    sample.main(['--out_dir=out/hf', '--device=cpu', '--start=fox', '--max_new_tokens=20'])
    evaluate.main(['--out_dir=out/hf', '--device=cpu', '--dataset=tiny'])
    train.main(['--dataset=tiny', '--init_from=out/hf', '--device=cpu', '--dtype=float32',
                '--batch_size=4', '--block_size=32', '--max_steps=2', '--out_dir=tuned'])
    assert load('tuned')['model']['wte.weight'].dtype == torch.float32


@pytest.mark.parametrize('name, kind', [
    ('gpt2', 'GPT2'), ('shakespeare_char', 'NanoChat'), ('llama_tiny', 'Llama')])
def test_the_models_of_the_configurations_export(tmp_path, monkeypatch, name, kind):
    path = str(REPOSITORY / 'config' / f'{name}.py')
    options = folio.options.parse(
        train.TrainConfig, [path, '--n_layer=2', '--token_shift=False'])[0]
    shape = dataclasses.replace(options, vocab_size=options.vocab_size or 256).resolved()
    monkeypatch.chdir(tmp_path)
    assert layouts.LAYOUTS[layouts.choose_layout(shape)].architecture.startswith(kind)
    ours = save_ours({key: getattr(shape, key) for key in SHAPE} | {
        'n_embd': 32, 'n_head': 4, 'n_kv_head': 4 * shape.n_kv_head // shape.n_head,
        'head_size': None, 'n_inner': None, 'vocab_size': 300, 'block_size': 256}, {'kind': 'byte'})
    assert_same(ours, export(), vocab_size=256)
    description = json.loads((tmp_path / 'theirs/config.json').read_text())
    assert name != 'gpt2' or description['n_ctx'] == 256  # which llama.cpp's converter reads


# --- what comes in is an ordinary checkpoint -----------------------------------------------------

def test_what_came_in_is_sampled_trained_on_and_exported(home, capsys):
    save_ours(GPT2 | {'vocab_size': 40, 'block_size': 64}, json.loads(
        (home / 'data/tiny/meta.json').read_text())['tokenizer'])
    export('hf')
    convert.main(['--from=hf'])
    assert load('out/hf')['tokenizer']['kind'] == 'char'
    sample.main(['--out_dir=out/hf', '--device=cpu', '--start=fox', '--max_new_tokens=20'])
    assert 'fox' in capsys.readouterr().out
    with pytest.raises(UserError, match='was not trained here; name a data set'):
        evaluate.main(['--out_dir=out/hf', '--device=cpu'])
    evaluate.main(['--out_dir=out/hf', '--device=cpu', '--dataset=tiny'])
    with pytest.raises(UserError, match='out.hf has weights alone: --init_from'):
        train.main(['--out_dir=out/hf', '--resume=True'])
    tune = ['--dataset=tiny', '--init_from=out/hf', '--device=cpu', '--dtype=float32',
            '--batch_size=4', '--block_size=32', '--max_steps=2']
    train.main([*tune, '--out_dir=tuned'])
    state = load('tuned')
    assert state['model']['wpe.weight'].shape == (32, 32) and state['config']['bias']
    convert.main(['--to=hf', '--out_dir=tuned', '--dest=tuned_hf'])
    prepare.main(['--input=tiny.txt', '--tokenizer=byte', '--name=other'])
    with pytest.raises(UserError, match='tokens of other are bytes, those of the checkpoint 40'):
        train.main([*tune, '--dataset=other'])


def test_a_run_that_was_there_is_moved_out_of_the_way(home, capsys):
    train.main([*TINY, '--max_steps=2', '--out_dir=run'])
    save_theirs('gpt2')
    convert.main(['--from=theirs', '--out_dir=run'])
    assert 'is now run.1' in capsys.readouterr().out and (home / 'run.1/best.pt').exists()


def test_without_a_tokenizer_the_model_comes_in_and_sampling_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_theirs('llama')
    convert.main(['--from=theirs', '--out_dir=ours'])
    assert load('ours')['tokenizer'] is None
    with pytest.raises(UserError, match='has no tokenizer'):
        sample.main(['--out_dir=ours'])


def save_merges(folder, spec):
    """GPT-2's two files, as older folders have them, in place of a tokenizer.json."""
    model = to_json(spec)['model']
    (folder / 'vocab.json').write_text(json.dumps(model['vocab']), encoding='utf-8')
    merges = '\n'.join(['#version: 0.2', *model['merges'], ''])
    (folder / 'merges.txt').write_text(merges, encoding='utf-8')


def test_a_tokenizer_in_vocab_json_and_merges_txt_comes_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer(train_bpe([TEXT, 'Grüße, it\'s  世界\n'] * 2, 400))
    save_theirs('gpt2', vocab_size=400)
    save_merges(tmp_path / 'theirs', tokenizer.spec)
    convert.main(['--from=theirs', '--out_dir=ours'])
    ours = Tokenizer(load('ours')['tokenizer'])
    theirs = transformers.GPT2Tokenizer.from_pretrained('theirs')
    for text in (TEXT, "it's  <a> 世 \n\n 12", ''):
        assert (ours.encode(text).tolist() == theirs(text)['input_ids']
                == tokenizer.encode(text).tolist())
    assert ours.start == tokenizer.start


@pytest.mark.skipif('TIKTOKEN_CACHE_DIR' not in os.environ, reason='needs TIKTOKEN_CACHE_DIR')
def test_gpt2_s_vocab_json_and_merges_txt_are_gpt2(tmp_path):
    save_merges(tmp_path, tiktoken_spec('gpt2'))
    assert convert.read_tokenizer(tmp_path, 'x', 'gpt2') == tiktoken_spec('gpt2')


@pytest.mark.parametrize('present, kind', [
    ([], 'gpt2'), (['tokenizer.model'], 'llama'), (['vocab.json'], 'gpt2'),
    (['vocab.json', 'merges.txt'], 'qwen3')])  # which cuts a text in another way
def test_a_folder_without_a_tokenizer_that_can_be_read_is_said(tmp_path, capsys, present, kind):
    save_merges(tmp_path, {'kind': 'byte'})
    (tmp_path / 'tokenizer.model').write_bytes(b'')
    for path in tmp_path.iterdir():
        if path.name not in present:
            path.unlink()
    assert convert.read_tokenizer(tmp_path, 'x', kind) is None
    printed = capsys.readouterr().out
    assert printed.count('\n') == 1 and 'has no tokenizer that can be read' in printed


def test_a_broken_merges_txt_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_theirs('gpt2')
    save_merges(tmp_path / 'theirs', {'kind': 'byte'})
    (tmp_path / 'theirs/merges.txt').write_text('#version: 0.2\nno such tokens\n')
    with pytest.raises(UserError, match="theirs can't be read: .* merges") as error:
        convert.main(['--from=theirs', '--out_dir=ours'])
    assert '\n' not in str(error.value)


def test_training_on_from_a_model_without_a_tokenizer_is_a_warning(home, capsys):
    save_theirs('llama')
    convert.main(['--from=theirs', '--out_dir=ours'])
    options, (*_, meta) = train.TrainConfig(dataset='tiny'), prepare.open_corpus('tiny')
    capsys.readouterr()
    for state in (None, {'tokenizer': meta['tokenizer']}):
        train.fit_to_data(options, state, meta)
    assert capsys.readouterr().out == ''
    train.fit_to_data(options, load('ours'), meta)
    printed = capsys.readouterr().out
    assert 'has no tokenizer, so that of tiny is not compared' in printed


# --- the hub -------------------------------------------------------------------------------------

class Hub(BaseHTTPRequestHandler):
    """What the hub answers about the model team/small, whose files are in `folder`."""
    folder, asked = None, []

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == '/api/models/team/small/revision/main':
            body = json.dumps({'id': 'team/small', 'sha': '0' * 40}).encode()
        elif self.path.startswith('/api/models/team/small/tree/'):
            body = json.dumps([{'type': 'file', 'path': path.name, 'oid': '0',
                                'size': path.stat().st_size} for path in self.folder.iterdir()]
                              ).encode()
        elif self.path.startswith('/team/small/resolve/'):
            body = (self.folder / self.path.rsplit('/')[-1]).read_bytes()
        else:
            return self.answer(401, b'', {'X-Error-Code': 'RepoNotFound'})
        self.answer(200, body, {'ETag': hashlib.sha256(body).hexdigest(),
                                'X-Repo-Commit': '0' * 40})

    do_HEAD = do_GET

    def answer(self, code, body, headers):
        self.send_response(code)
        for name, value in (headers | {'Content-Length': len(body)}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def use_hub(monkeypatch, endpoint, cache):
    """What the environment variables HF_ENDPOINT and HF_HUB_CACHE do when a program starts."""
    constants = pytest.importorskip('huggingface_hub').constants
    monkeypatch.setattr(constants, 'ENDPOINT', endpoint)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE',
                        endpoint + '/{repo_id}/resolve/{revision}/{filename}')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(cache))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = save_theirs('gpt2')
    monkeypatch.setattr(Hub, 'folder', tmp_path / 'theirs')
    monkeypatch.setattr(Hub, 'asked', [])
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
    use_hub(monkeypatch, f'http://127.0.0.1:{server.server_port}', tmp_path / 'cache')
    yield theirs
    server.shutdown()
    server.server_close()


def test_a_model_is_fetched_from_the_hub_once(hub, tmp_path, monkeypatch):
    (tmp_path / 'theirs/tf_model.h5').write_bytes(b'not asked for')
    convert.main(['--from=team/small', '--out_dir=ours'])
    assert_same(from_checkpoint(load('ours')), hub)
    assert any('model.safetensors' in path for path in Hub.asked)
    assert not any('.h5' in path for path in Hub.asked)
    use_hub(monkeypatch, 'http://127.0.0.1:9', tmp_path / 'cache')
    convert.main(['--from=team/small', '--out_dir=again'])
    assert torch.equal(load('ours')['model']['wte.weight'], load('again')['model']['wte.weight'])


def test_what_the_hub_does_not_give_is_one_line(hub, tmp_path):
    with pytest.raises(UserError, match='RepositoryNotFoundError.*--from=FOLDER') as e:
        convert.main(['--from=team/other', '--out_dir=ours'])
    assert '\n' not in str(e.value)
    (tmp_path / 'theirs/model.safetensors').rename(tmp_path / 'theirs/pytorch_model.bin')
    with pytest.raises(UserError, match='no model.safetensors.*pytorch_model.bin, are not read'):
        convert.main(['--from=team/small', '--out_dir=ours'])
    assert not (tmp_path / 'ours').exists()


def test_a_hub_out_of_reach_is_one_line_that_names_the_alternative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use_hub(monkeypatch, 'http://127.0.0.1:9', tmp_path / 'cache')
    with pytest.raises(UserError, match='openai-community/gpt2 .* not be fetched from '
                                        'http://127.0.0.1:9: .*: --from=FOLDER') as error:
        convert.main(['--from=gpt2', '--out_dir=ours'])
    assert '\n' not in str(error.value) and not (tmp_path / 'ours').exists()


@pytest.mark.parametrize('failure', [OSError(28, 'No space left on device'), ValueError('a\nb')])
def test_whatever_fetching_raises_is_one_line(tmp_path, monkeypatch, failure):
    def fail(*_, **__):
        raise failure
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pytest.importorskip('huggingface_hub'), 'snapshot_download', fail)
    with pytest.raises(UserError, match='team/small .* not be fetched .*: --from=FOLDER') as e:
        convert.main(['--from=team/small', '--out_dir=ours'])
    assert '\n' not in str(e.value)


def test_without_huggingface_hub_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(UserError, match='no such folder; .* pip install huggingface_hub'):
        convert.main(['--from=gpt2', '--out_dir=ours'])


def test_a_model_from_elsewhere_is_trained_further_on_text_in_its_own_tokens(
        home, capsys):
    pytest.importorskip('tokenizers')
    Path('book.txt').write_text('To be, or not to be. ' * 300)
    spec = train_bpe(['To be, or not to be. '], 270)
    save_theirs('qwen3 of wide heads', vocab_size=300)
    Path('theirs/tokenizer.json').write_text(json.dumps(to_json(spec)))
    convert.main(['--from=theirs', '--out_dir=out/qwen3'])
    prepare.main(['--input=book.txt', '--tokenizer=out/qwen3/tokenizer.json', '--name=book'])
    train.main(['--dataset=book', '--init_from=out/qwen3', '--max_steps=3', '--batch_size=2',
                '--block_size=32', '--log_interval=1', '--optimizer=adamw'])
    losses = [float(loss) for loss in re.findall(r'step \d  loss (\S+)', capsys.readouterr().out)]
    assert losses[-1] < losses[0]


# --- what cannot be converted --------------------------------------------------------------------

def change(folder, name='config.json', **changes):
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v != 'gone'}))


@pytest.mark.parametrize('model, changes, message', [
    ('llama', {'model_type': 'mistral'}, 'mistral are not read; gpt2, llama, qwen3,'),
    ('llama', {'model_type': 'nanochat'}, 'nanochat'), ('llama', {'model_type': 'gone'}, 'None'),
    ('llama', {'rope_parameters': {'rope_type': 'llama3', 'factor': 8.0}}, 'scaled.*llama3'),
    ('llama', {'rope_parameters': None, 'rope_scaling': {'type': 'linear'}}, 'scaled RoPE.*linear'),
    ('llama', {'rope_parameters': 'linear'}, "theirs can't be read: Attr"),
    ('llama', {'rope_parameters': {'rope_theta': None}}, "theirs can't be read: Type"),
    ('llama', {'head_dim': 16}, r'proj.weight .*\[32, 32\]\), not .*\[32, 64\]'),
    ('llama', {'head_dim': 7}, 'needs an even head_size, not 7'),
    ('qwen3', {'use_sliding_window': True}, 'use_sliding_window=True'),
    ('llama', {'hidden_act': 'gelu'}, 'hidden_act=gelu is not read, only silu'),
    ('llama', {'mlp_bias': True}, 'mlp_bias=True is not read, only False'),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx=True'),
    ('llama', {'hidden_size': 'gone'}, 'hidden_size must be a whole number'),
    ('llama', {'hidden_size': 'many'}, "hidden_size must be .*, not 'many'"),
    ('llama', {'num_key_value_heads': 3}, 'n_head=4 is not divisible by n_kv_head=3'),
    ('llama', {'vocab_size': 71}, r'lm_head.weight .*\[70, 32\]\), not .*\[71, 32\]'),
    ('gpt2', {'n_inner': 8}, r'mlp.proj.weight .*\[32, 128\]\), not .*\[32, 8\]'),
    ('llama', {'num_hidden_layers': 3}, 'layers.2.input_layernorm.weight is missing'),
    ('llama', {'num_hidden_layers': 1}, 'model.layers.1.input_layernorm.weight has no place'),
    ('llama untied', {'tie_word_embeddings': True}, 'lm_head.weight is not the embedding')])
def test_a_description_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, model, changes,
                                                       message):
    monkeypatch.chdir(tmp_path)
    save_theirs(model)
    change(tmp_path / 'theirs', **changes)
    with pytest.raises(UserError, match=message) as error:
        convert.main(['--from=theirs', '--out_dir=ours'])
    assert '\n' not in str(error.value) and not (tmp_path / 'ours').exists()


@pytest.mark.parametrize('file, content, message', [
    ('config.json', None, 'No such file or directory: .*config.json'),
    ('config.json', b'{', "config.json can't be read: JSONDecodeError"),
    ('config.json', b'[]', 'architecture None are not read'),
    ('config.json', b'5', "config.json can't be read: TypeError"),
    ('model.safetensors', None, 'theirs has no model.safetensors'),
    ('model.safetensors', b'no', "model.safetensors can't be read: SafetensorError"),
    ('config.json', b'{"model_type": [1]}', r'architecture \[1\] are not read'),
    ('tokenizer.json', b'{"model": 1}', "theirs can't be read: TypeError"),
    ('tokenizer.json', b'{"model": {}}', "theirs can't be read: KeyError: 'vocab'")])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, file, content, message):
    monkeypatch.chdir(tmp_path)
    save_theirs('gpt2')
    (tmp_path / 'theirs' / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / 'theirs' / file).write_bytes(content)
    with pytest.raises((UserError, OSError), match=message) as error:
        convert.main(['--from=theirs', '--out_dir=ours'])
    assert '\n' not in str(error.value)


def test_weights_that_only_pickle_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_theirs('gpt2')
    (tmp_path / 'theirs/model.safetensors').rename(tmp_path / 'theirs/pytorch_model.bin')
    with pytest.raises(UserError, match=r'no model.safetensors.*pytorch_model.bin, are not read'):
        convert.main(['--from=theirs', '--out_dir=ours'])


def test_a_larger_tokenizer_than_the_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_ours(GPT2)
    export('hf')
    save_theirs('gpt2', 'hf', vocab_size=69)
    with pytest.raises(UserError, match='tokenizer has 70 ids, its model 69'):
        convert.main(['--from=hf', '--out_dir=ours'])


@pytest.mark.parametrize('shape, message', [
    ({'position': 'none'}, 'position=none'), ({'mlp': 'none'}, 'mlp=none'),
    ({'token_shift': True}, 'token_shift=True'),
    ({'qk_norm': False}, "nanochat's is the nearest, but qk_norm=False stands"),
    ({'bias': True}, 'bias=True'), ({'norm_weight': True}, 'norm_weight=True'),
    ({'norm_eps': 0.0}, 'norm_eps=0.0'), (QWEN3 | {'bias': True}, 'bias=True|qk_norm=True'),
    (GPT2 | {'n_kv_head': 2}, "gpt2's .* n_kv_head=2"),
    (GPT2 | {'qk_norm': True}, 'qk_norm=True')])
def test_a_shape_that_no_layout_holds_is_refused_with_the_option(tmp_path, monkeypatch, shape,
                                                                 message):
    monkeypatch.chdir(tmp_path)
    save_ours(shape)
    with pytest.raises(UserError, match=message) as error:
        export()
    assert '\n' not in str(error.value) and not (tmp_path / 'theirs').exists()


def test_a_part_of_the_weights_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_theirs('gpt2').save_pretrained('parts', max_shard_size='20KB')
    next((tmp_path / 'parts').glob('*00002-of*')).unlink()
    with pytest.raises(UserError, match='the tensor transformer.* is missing in a gpt2') as error:
        convert.main(['--from=parts', '--out_dir=ours'])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('argv, message', [
    ([], 'give either'), (['--from=a', '--to=hf'], 'give either'), (['--to=hf'], 'or --to=hf'),
    (['--to=hf', '--out_dir=ours.pt'], '--dest=PATH'), (['--to=hf', '--dest=x'], '--out_dir=DIR'),
    (['--to=hf', '--out_dir=nowhere', '--dest=x'], 'no such checkpoint'),
    (['--to=ggml'], "'hf'"), (['--to=gguf', '--dest=x'], 'or --to=gguf'),
    (['--from=a b'], 'a b is no folder, .*Repo id must'),
    (['--from=../x'], '../x is no folder'), (['--from=empty'], 'No such file.*empty/config.json'),
    (['--from=empty', '--out_dir=empty'], 'empty is where the weights come from'),
    (['--to=hf', '--out_dir=ours.pt', '--dest=full'], 'full is there already'),
    (['--to=hf', '--out_dir=ours.pt', '--dest=.'], 'is there already'),
    (['--to=hf', '--out_dir=ours.pt', '--dest=ours.pt'], 'ours.pt is there already')])
def test_what_cannot_be_meant_is_one_line(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    save_ours({})
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/file').touch()
    with pytest.raises((UserError, OSError), match=message) as error:
        convert.main(argv)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('failure, raised, message', [
    (OSError('No space left on device'), UserError, 'theirs could not be written: .*No space left'),
    (KeyboardInterrupt(), KeyboardInterrupt, None)])
def test_a_full_disk_or_an_interrupt_leaves_nothing_half_written(
        tmp_path, monkeypatch, failure, raised, message):
    monkeypatch.chdir(tmp_path)
    save_ours({})

    def full(tensors, path, **_):
        path.write_bytes(b'half')
        raise failure
    monkeypatch.setattr(safetensors, 'save_file', full)
    with pytest.raises(raised, match=message):
        export()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['ours.pt']


def test_without_safetensors_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_theirs('gpt2')
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(UserError, match='pip install safetensors'):
        convert.main(['--from=theirs', '--out_dir=ours'])


# --- tokenizers ----------------------------------------------------------------------------------

@pytest.mark.parametrize('spec, text', [
    (CHARS, 'ABC!!def'), ({'kind': 'byte'}, 'Grüße 世 \n\n\x00 \t x ')])
def test_the_exported_tokenizer_gives_the_same_ids_and_texts(tmp_path, monkeypatch, spec, text):
    monkeypatch.chdir(tmp_path)
    save_ours({'vocab_size': 256}, spec)
    export()
    theirs, ours = transformers.AutoTokenizer.from_pretrained('theirs'), Tokenizer(spec)
    ids = theirs(text)['input_ids']
    assert ids == ours.encode(text).tolist() and theirs.decode(ids) == text
    assert theirs.model_max_length == 256


def test_the_end_of_a_text_in_a_text_is_text_on_both_sides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec, text = train_bpe([TEXT], 300), 'one<|endoftext|>two <|endoftext|>'
    save_ours({'vocab_size': 300}, spec)
    export()
    theirs, ours = transformers.AutoTokenizer.from_pretrained('theirs'), Tokenizer(spec)
    ids = theirs(text)['input_ids']
    assert ids == ours.encode(text).tolist() and ours.start not in ids
    assert theirs.decode(ids) == text == ours.decode(ids)
    assert theirs.eos_token_id == ours.start == transformers.GenerationConfig.from_pretrained(
        'theirs').eos_token_id


def test_a_tokenizer_of_another_kind_comes_in_and_goes_out_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizers = pytest.importorskip('tokenizers')
    words = [('<unk>', 0.0), ('▁', -2.0), ('▁the', -1.0), ('▁fox', -1.0), ('o', -3.0), ('x', -3.0)]
    library = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=0))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    library.decoder = tokenizers.decoders.Metaspace()
    save_theirs('llama')
    library.save('theirs/tokenizer.json')
    convert.main(['--from=theirs', '--out_dir=ours'])
    spec = load('ours')['tokenizer']
    assert spec['kind'] == 'json' and spec['name'] == 'theirs'
    convert.main(['--to=hf', '--out_dir=ours', '--dest=again'])
    ids = transformers.AutoTokenizer.from_pretrained('again')('the fox ox')['input_ids']
    assert ids == Tokenizer(spec).encode('the fox ox').tolist() == library.encode('the fox ox').ids
    settings = transformers.GenerationConfig.from_pretrained('again')
    assert settings.suppress_tokens == list(range(6, 70))
