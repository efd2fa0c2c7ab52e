"""Files for llama.cpp: it computes and encodes the same, and what it can't is refused."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest
import torch
from conftest import TEXT

from folio.cli import UserError
from folio.tokenizer import Tokenizer, tiktoken_spec, train_bpe
from model import GPT, GPTConfig
from tools import convert
from tools.hf_tokenizer import CL100K, to_json

gguf = pytest.importorskip('gguf')
tokenizers = pytest.importorskip('tokenizers')
GPT2 = {'position': 'learned', 'norm': 'layernorm', 'norm_weight': True, 'bias': True,
        'mlp': 'gelu', 'qk_norm': False}
LLAMA = {'mlp': 'swiglu', 'qk_norm': False, 'norm_weight': True, 'rope_theta': 500.0}
SHAPES = {
    'GPT-2': GPT2, 'GPT-2 untied': GPT2 | {'tied': False, 'n_inner': 48},
    'GPT-2 without biases': GPT2 | {'bias': False, 'norm_eps': 1e-3},
    'Llama': LLAMA, 'Llama untied': LLAMA | {'tied': False, 'norm_eps': 1e-3},
    'Llama grouped': LLAMA | {'n_kv_head': 2, 'n_inner': 32},
    'Llama of wide heads': LLAMA | {'head_size': 24},
    'Qwen3 of wide heads': LLAMA | {'qk_norm': True, 'head_size': 24},
    'Llama with biases': LLAMA | {'bias': True, 'n_kv_head': 1},
    'Qwen3': LLAMA | {'qk_norm': True},
    'Qwen3 grouped': LLAMA | {'qk_norm': True, 'n_kv_head': 2, 'tied': False}}
TEXTS = ["it's  <a> 世界 \n\n 12345 Grüße<|endoftext|> WE'LL", ' \r\n\tx = 3.14159;\n', '',
         TEXT[:200]]


def save_ours(spec, dtype=torch.float32, **shape):
    """A random model in ours.pt, with an id more than its tokenizer has."""
    size = Tokenizer(spec).vocab_size + 1 if spec else 300
    shape = GPTConfig(**{'vocab_size': size, 'n_layer': 2, 'n_head': 4, 'n_embd': 32,
                         'block_size': 64, 'token_shift': False} | shape)
    torch.manual_seed(1)
    model = GPT(shape)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(float(p.dim() == 1), 0.3)
    model.to(dtype)
    config = dataclasses.asdict(model.config)
    torch.save({'model': model.state_dict(), 'config': config, 'tokenizer': spec}, 'ours.pt')
    return model.eval()


def export():
    convert.main(['--to=gguf', '--out_dir=ours.pt', '--dest=model.gguf'])


def run_file():
    """llama.cpp with model.gguf, which computes in float32."""
    llama_cpp = pytest.importorskip('llama_cpp')
    return llama_cpp.Llama('model.gguf', n_ctx=64, logits_all=True, verbose=False, n_threads=1,
                           type_k=0, type_v=0)


@pytest.fixture(scope='module')
def bpe():
    return train_bpe([TEXT, 'Grüße, it\'s  世界\n'] * 2, 300)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def learned(pattern, ignore_merges):
    """The dict of a tokenizer.json that cuts a text by a pattern."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=ignore_merges))
    before = tokenizers.pre_tokenizers
    library.pre_tokenizer = before.Sequence([
        before.Split(tokenizers.Regex(pattern), 'isolated'),
        before.ByteLevel(add_prefix_space=False, use_regex=False)])
    library.decoder = tokenizers.decoders.ByteLevel()
    library.train_from_iterator(TEXTS * 3, tokenizers.trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=before.ByteLevel.alphabet(),
        special_tokens=['<|begin_of_text|>', '<|end_of_text|>']))
    library.add_tokens(['<think>'])
    return {'kind': 'json', 'name': 'theirs', 'json': library.to_str()}


LLAMA3 = CL100K.replace('NUMBER', '{1,3}')
QWEN2 = CL100K.replace('NUMBER', '')


@pytest.mark.parametrize('name', SHAPES)
def test_llama_cpp_computes_what_our_model_does(folder, bpe, name):
    ours = save_ours(bpe, **SHAPES[name])
    export()
    theirs, ids = run_file(), torch.randint(290, (40,)).tolist()
    theirs.eval(ids)
    with torch.no_grad():
        logits = ours(torch.tensor(ids)[None])[0]
    most = 0.03 if 'GPT-2' in name else 1e-3  # its GELU is a table in float16
    assert logits.std() > 0.5 and np.abs(theirs.scores[:40] - logits.numpy()).max() < most


def test_llama_cpp_computes_in_bfloat16_what_is_bfloat16(folder, bpe):
    ours = save_ours(bpe, torch.bfloat16, **LLAMA).float()
    export()
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(
        'model.gguf').tensors}
    assert kinds['blk.1.attn_q.weight'] == 'BF16' and kinds['output_norm.weight'] == 'F32'
    theirs, ids = run_file(), list(range(40))
    theirs.eval(ids)
    with torch.no_grad():
        logits = ours(torch.tensor(ids)[None])[0].numpy()
    assert (theirs.scores[:40] - logits).std() < 0.02 * logits.std()  # it rounds activations, too


def assert_same_tokens(spec):
    save_ours(spec, **LLAMA)
    export()
    theirs, ours = run_file(), Tokenizer(spec)
    for text in TEXTS:
        ids = theirs.tokenize(text.encode(), add_bos=False)
        assert ids == ours.encode(text).tolist()
        assert theirs.detokenize(ids).decode() == text
    return theirs, ours


def test_llama_cpp_gives_a_text_the_ids_of_a_learned_encoding(folder, bpe):
    theirs, ours = assert_same_tokens(bpe)
    assert theirs.token_eos() == theirs.token_bos() == ours.special['<|endoftext|>']


@pytest.mark.skipif('TIKTOKEN_CACHE_DIR' not in os.environ, reason='needs TIKTOKEN_CACHE_DIR')
def test_llama_cpp_gives_a_text_the_ids_of_gpt2(folder):
    assert_same_tokens(tiktoken_spec('gpt2'))


@pytest.mark.parametrize('pattern, whole', [(LLAMA3, True), (QWEN2, False)])
def test_llama_cpp_gives_a_text_the_ids_of_llama3_s_and_qwen2_s_kinds(folder, pattern, whole):
    theirs, ours = assert_same_tokens(learned(pattern, whole))
    assert theirs.token_bos() == ours.special['<|begin_of_text|>']
    assert theirs.token_eos() == ours.special['<|end_of_text|>']
    text = 'a<think>b<|end_of_text|>'
    assert theirs.tokenize(text.encode(), add_bos=False) == ours.encode(text).tolist()


def test_the_halves_of_llama_s_heads_alternate_and_those_of_qwen3_s_do_not(folder, bpe):
    for name in ('Llama grouped', 'Qwen3 grouped'):
        model = save_ours(bpe, **SHAPES[name])
        (folder / 'model.gguf').unlink(missing_ok=True)
        export()
        theirs = {tensor.name: tensor.data for tensor in gguf.GGUFReader('model.gguf').tensors}
        q, k, v = model.blocks[1].attention.qkv.weight.detach().split([32, 16, 16])
        assert np.array_equal(theirs['blk.1.attn_v.weight'], v)
        for part, ours in ('q', q), ('k', k):
            first, second = ours.view(-1, 2, 4, 32).unbind(1)  # the halves of heads of 8
            pairs = torch.stack([first, second], dim=2).reshape(-1, 32)
            expected = pairs if name.startswith('Llama') else ours
            assert np.array_equal(theirs[f'blk.1.attn_{part}.weight'], expected)


def test_linear_layers_of_a_gpt2_lie_as_ours_do(folder, bpe):
    mlp = save_ours(bpe, **GPT2).blocks[1].mlp
    export()
    theirs = {tensor.name: tensor.data for tensor in gguf.GGUFReader('model.gguf').tensors}
    assert np.array_equal(theirs['blk.1.ffn_up.weight'], mlp.up.weight.detach())
    assert np.array_equal(theirs['blk.1.ffn_down.bias'], mlp.proj.bias.detach())


def test_the_file_names_the_shape_and_the_tokens(folder, bpe):
    save_ours(bpe, **SHAPES['Qwen3 grouped'])
    export()
    reader = gguf.GGUFReader('model.gguf')
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values['general.architecture'] == 'qwen3' and values['qwen3.block_count'] == 2
    assert values['qwen3.attention.head_count_kv'] == 2 and values['qwen3.context_length'] == 64
    assert values['tokenizer.ggml.pre'] == 'gpt-2' and not values['tokenizer.ggml.add_bos_token']
    assert values['tokenizer.ggml.tokens'][-2:] == ['<|endoftext|>', '[unused 300]']
    assert values['tokenizer.ggml.token_type'][-3:] == [1, 3, 5]
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert shapes['blk.1.attn_k.weight'] == [32, 16] and shapes['output.weight'] == [32, 301]


# --- what is refused -----------------------------------------------------------------------------

@pytest.mark.parametrize('shape, message', [
    (GPT2 | {'mlp': 'gelu_erf'}, 'no GPT2LMHeadModel with mlp=gelu_erf; --to=hf'),
    ({}, 'no NanoChatForCausalLM with mlp=relu2; --to=hf'),
    (GPT2 | {'token_shift': True}, 'token_shift=True')])
def test_a_shape_that_llama_cpp_has_not_is_refused(folder, bpe, shape, message):
    save_ours(bpe, **shape)
    with pytest.raises(UserError, match=message):
        export()
    assert [path.name for path in folder.iterdir()] == ['ours.pt']


def changed(spec, **changes):
    """A tokenizer's dict with other parts in its tokenizer.json."""
    return {'kind': 'json', 'name': 'theirs', 'json': json.dumps(to_json(spec) | changes)}


def test_a_tokenizer_that_llama_cpp_has_not_is_refused_by_name(folder, bpe):
    model = to_json(bpe)['model']
    fewer = model | {'merges': model['merges'][:-1]}  # a token that only a whole word becomes
    for spec, message in [
            ({'kind': 'char', 'chars': 'abc'}, r'\(3 different characters\)'),
            ({'kind': 'byte'}, r'\(bytes\); --to=hf'), (learned(r'\w+|\W', True), 'theirs'),
            (changed(bpe, normalizer={'type': 'Lowercase'}), 'theirs'),
            (changed(bpe, model=fewer), 'theirs'), (None, 'no tokenizer, which'),
            (bpe | {'special': {}}, 'no end of a text, <|endoftext|>'.replace('|', r'\|')),
            (changed(bpe, model={'type': 'Unigram', 'unk_id': 0, 'vocab': [['a', 0.0]]}),
             'ids of this tokenizer .theirs'),
            (bpe | {'pattern': r'\w+|\W'}, r'\(bpe:300\)')]:
        save_ours(spec, **LLAMA)
        with pytest.raises(UserError, match=message):
            export()


@pytest.mark.parametrize('failure', [OSError(28, 'No space left on device'), RuntimeError('a\nb')])
def test_a_full_disk_leaves_no_half_written_file(folder, bpe, monkeypatch, failure):
    def full(self):
        self.fout[0].write(b'half')
        raise failure
    save_ours(bpe, **LLAMA)
    monkeypatch.setattr(gguf.GGUFWriter, 'write_tensors_to_file', full)
    with pytest.raises(UserError, match='model.gguf could not be written') as error:
        export()
    assert '\n' not in str(error.value)
    assert [path.name for path in folder.iterdir()] == ['ours.pt']


def test_a_file_that_is_there_stays(folder, bpe):
    save_ours(bpe, **LLAMA)
    (folder / 'model.gguf').write_text('precious')
    with pytest.raises(UserError, match='model.gguf is there already'):
        export()
    assert (folder / 'model.gguf').read_text() == 'precious'


def test_without_gguf_the_message_says_what_to_install(folder, bpe, monkeypatch):
    save_ours(bpe, **LLAMA)
    monkeypatch.setitem(sys.modules, 'gguf', None)
    with pytest.raises(UserError, match='--to=gguf: pip install gguf'):
        export()
