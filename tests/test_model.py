"""The network: invariants, and generation against its written rule."""

import itertools
import math
import random
import warnings

import pytest
import torch
import torch.nn.functional as F

import model as model_module
from model import (
    GPT,
    MLP,
    GPTConfig,
    KVCache,
    attend_explicitly,
    choose,
    cross_entropy,
    draw_tokens,
    from_checkpoint,
    penalize,
)

SMALL = dict(vocab_size=50, block_size=16, n_layer=2, n_head=4, n_embd=32)
SHAPES = [dict(zip(('position', 'norm', 'mlp', 'n_kv_head', 'qk_norm', 'bias', 'tied',
                         'token_shift'), values,
                   strict=True))
          for values in itertools.product(('learned', 'rope', 'none'), ('layernorm', 'rmsnorm'),
                                          ('gelu', 'gelu_erf', 'swiglu', 'relu2', 'none'),
                                          (None, 1, 2), *4 * [(True, False)])][::13]
BIGRAM = dict(n_layer=0, position='none', tied=False)
WIDE_HEADS = dict(n_head=3, n_kv_head=1, head_size=14)


def make(**shape):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SMALL | shape)).eval()
    for p in model.parameters():  # larger than at initialization, so that differences show
        torch.nn.init.normal_(p, std=0.2)
    return model


def some_ids(*shape):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('shape', [*SHAPES, BIGRAM, WIDE_HEADS], ids=str)
def test_cached_logits_equal_uncached_ones_and_never_see_what_follows(shape):
    model, idx = make(**shape), some_ids(2, 16)
    with torch.no_grad():
        whole = model(idx)
        cache, parts = KVCache(model.config, 2), []
        for start, end in ((0, 5), (5, 6), (6, 7), (7, 12), (12, 16)):
            parts.append(model(idx[:, start:end], cache=cache))
        changed = idx.clone()
        changed[:, 9:] = (changed[:, 9:] + 1) % 50
        assert torch.equal(model(changed)[:, :9], whole[:, :9])
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    assert not torch.allclose(model(changed)[:, 9:], whole[:, 9:])


def test_the_loss_at_initialization_is_that_of_guessing():
    torch.manual_seed(0)
    model, idx = GPT(GPTConfig(**SMALL)), some_ids(8, 17)
    assert model(idx[:, :-1], idx[:, 1:]).item() == pytest.approx(math.log(50), abs=0.05)


def test_norms_with_weights_work_without_a_warning_where_products_are_in_bfloat16():
    model = make(norm_weight=True, qk_norm=True, norm='rmsnorm')
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(), torch.autocast('cpu', torch.bfloat16):
            warnings.simplefilter('error')
            model(some_ids(2, 8))
    finally:
        torch.set_warn_always(False)


def test_it_overfits_one_batch():
    torch.manual_seed(0)
    model, idx = GPT(GPTConfig(**SMALL)), some_ids(4, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05


def test_the_loss_is_the_mean_cross_entropy_and_ignores_minus_one():
    model, idx, targets = make(), some_ids(2, 8), some_ids(2, 8)
    targets[0, 3:] = -1
    probs = model(idx).detach().softmax(dim=-1)
    kept = [-math.log(probs[b, t, targets[b, t]]) for b in range(2) for t in range(8)
            if targets[b, t] >= 0]
    assert model(idx, targets).item() == pytest.approx(sum(kept) / len(kept), abs=1e-5)


def test_a_bigram_sees_one_token_only():
    model, idx = make(**BIGRAM), some_ids(1, 8)
    assert torch.allclose(model(idx)[:, -1], model(idx[:, -1:])[:, -1], atol=1e-5)


def test_a_model_of_wide_heads_has_as_many_channels_in_each():
    attention = make(**WIDE_HEADS).blocks[0].attention
    assert attention.qkv.weight.shape == ((3 + 2 * 1) * 14, 32)
    assert attention.proj.weight.shape == (32, 3 * 14)


def test_grouped_queries_with_as_many_groups_as_heads_are_multi_head_attention():
    mha, gqa = make(n_kv_head=None), make(n_kv_head=2)
    size = mha.config.n_embd // mha.config.n_head
    for ours, theirs in zip(mha.blocks, gqa.blocks, strict=True):
        q, k, v = theirs.attention.qkv.weight.split((4 * size, 2 * size, 2 * size))
        twice = [part.view(2, size, -1).repeat_interleave(2, dim=0).flatten(0, 1)
                 for part in (k, v)]  # each key head stands for two
        ours.attention.qkv.weight.data = torch.cat((q, *twice))
        ours.attention.proj.load_state_dict(theirs.attention.proj.state_dict())
        ours.shares = theirs.shares
        ours.mlp.load_state_dict(theirs.mlp.state_dict())
    mha.wte.load_state_dict(gqa.wte.state_dict())
    assert torch.allclose(mha(some_ids(2, 8)), gqa(some_ids(2, 8)), atol=1e-5)


def test_rope_makes_attention_depend_on_distances_alone():
    attention = make(block_size=16).blocks[0].attention
    rope, x = make(block_size=16).rope, torch.randn(1, 6, 32)
    near, far = (attention(x, rope[:, start:start + 6], None) for start in (0, 9))
    assert torch.allclose(near, far, atol=1e-4)


@pytest.mark.parametrize('kind, values', [  # of -2, -0.5, 0, 2
    ('gelu', [-0.045402, -0.154286, 0, 1.954598]),
    ('gelu_erf', [-0.045500, -0.154269, 0, 1.954500]),
    ('relu2', [0, 0, 0, 4]), ('swiglu', [-0.238406, -0.188770, 0, 1.761594])])
def test_each_activation_computes_its_formula(kind, values):
    mlp, x = make(mlp=kind).blocks[0].mlp, torch.tensor([[-2.0, -0.5, 0.0, 2.0]])
    if kind == 'swiglu':  # the gate is x, what it lets through 1
        x = torch.cat((x, torch.ones_like(x)), dim=1)
    assert mlp.activate(x)[0].tolist() == pytest.approx(values, abs=1e-5)


def test_swiglu_has_as_many_weights_as_the_others_up_to_a_multiple_of_8():
    sizes = [GPTConfig(**SMALL | {'mlp': mlp}).resolved().n_inner for mlp in ('swiglu', 'relu2')]
    assert sizes == [88, 128] and 88 * 3 >= 128 * 2 > 80 * 3


@pytest.mark.parametrize('mlp', ['none', 'gelu'])
def test_dropout_is_where_gpt2_has_it(mlp):
    model, idx = make(dropout=0.5, mlp=mlp).train(), some_ids(1, 9)
    with torch.no_grad():
        torch.manual_seed(3)
        dropped = model(idx)
        for part in ('dropout', 'blocks.0.dropout', 'blocks.0.attention.dropout'):
            owner, _, name = part.rpartition('.')
            owner = model.get_submodule(owner)
            kept = getattr(owner, name)
            setattr(owner, name, 0.0 if isinstance(kept, float) else torch.nn.Identity())
            torch.manual_seed(3)
            assert not torch.allclose(model(idx), dropped), f'{part} drops nothing'
            setattr(owner, name, kept)


def test_attention_may_drop_another_share_than_the_rest():
    shares = {own: make(dropout=0.5, attention_dropout=own).blocks[0] for own in (None, 0.0, 0.3)}
    assert [block.attention.dropout for block in shares.values()] == [0.5, 0.0, 0.3]
    assert all(block.dropout.p == 0.5 for block in shares.values())


@pytest.mark.parametrize('rows', [slice(0, 32), slice(32, 64)], ids=['queries', 'keys'])
def test_with_qk_norm_the_length_of_queries_and_keys_means_nothing(rows):
    for qk_norm in (True, False):
        model, idx = make(qk_norm=qk_norm), some_ids(2, 8)
        before = model(idx)
        model.blocks[0].attention.qkv.weight.data[rows] *= 10
        assert torch.allclose(model(idx), before, atol=1e-3) is qk_norm


def test_a_model_comes_back_from_a_checkpoints_dict_in_eval_mode():
    model = make(dropout=0.1, position='learned').train()
    state = {'model': model.state_dict(), 'config': vars(model.config) | {'seed': 7}}
    again = from_checkpoint(state)
    assert not again.training and again.config.dropout == 0
    assert torch.equal(again(some_ids(2, 8)), model.eval()(some_ids(2, 8)))


@pytest.mark.parametrize('tied', [True, False])
def test_a_model_out_of_a_checkpoint_has_its_weights_in_their_number_format(tied):
    model = make(tied=tied)
    for p in model.parameters():
        p.data = p.bfloat16().float()
    weights = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    state = {'model': weights, 'config': vars(model.config)}
    again = from_checkpoint(state)
    assert again.wte.weight.data_ptr() == state['model']['wte.weight'].data_ptr()
    assert (again.lm_head.weight is again.wte.weight) == tied
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert torch.equal(again.float()(some_ids(2, 8)), model(some_ids(2, 8)))


def test_stacked_matrices_are_those_of_qkv_and_of_swiglu():
    model = GPT(GPTConfig(**SMALL | {'n_kv_head': 2, 'mlp': 'swiglu', 'n_inner': 24}))
    heights = model.stacked_matrices()
    assert heights['blocks.1.attention.qkv.weight'] == [32, 16, 16]
    assert heights['blocks.0.mlp.up.weight'] == [24, 24] and len(heights) == 4
    for name, rows in heights.items():
        assert sum(rows) == len(model.get_parameter(name))
    assert len(make(mlp='relu2').stacked_matrices()) == 2


def test_an_activation_without_a_formula_is_an_error():
    model = make()
    model.blocks[0].mlp.kind = 'relu3'
    with pytest.raises(AssertionError, match='mlp=relu3 has no formula'):
        model(some_ids(1, 4))


def test_an_unknown_activation_is_refused_by_the_mlp_itself():
    config = GPTConfig(**SMALL).resolved()
    config.mlp = 'relu3'
    with pytest.raises(ValueError, match='relu3'):
        MLP(config)


def test_gpt2_has_its_number_of_parameters():
    with torch.device('meta'):
        model = GPT(GPTConfig(block_size=1024, vocab_size=50257, n_layer=12, n_head=12, n_embd=768,
                              position='learned', norm='layernorm', norm_weight=True, mlp='gelu',
                              qk_norm=False, bias=True, tied=True,
                              token_shift=False))
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_every_residual_projection_starts_narrower():
    model = GPT(GPTConfig(**SMALL | {'n_layer': 8, 'n_embd': 128}))
    for block in model.blocks:
        assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
        for layer in (block.attention.proj, block.mlp.proj):
            assert layer.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)


@pytest.mark.parametrize('most', [1, 50, 150, 350])
def test_the_loss_in_parts_is_the_loss_with_its_gradients(most):
    torch.manual_seed(0)
    x, weight = torch.randn(8, 6, requires_grad=True), torch.randn(50, 6, requires_grad=True)
    targets = torch.tensor([3, 49, -1, 0, 7, -1, 7, 20])
    results = []
    for limit in (most, 10 ** 6):
        loss = cross_entropy(x, weight, targets, limit)
        results.append([loss, *torch.autograd.grad(3 * loss, (x, weight))])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(cross_entropy(x, weight, targets, most), results[1][0], atol=1e-6)


def test_the_loss_in_parts_has_its_gradients_once():
    x, weight = torch.randn(8, 6, requires_grad=True), torch.randn(50, 6, requires_grad=True)
    loss = cross_entropy(x, weight, torch.arange(8), 100)
    loss.backward(retain_graph=True)
    with pytest.raises(TypeError):
        loss.backward()


def test_recomputing_changes_nothing(dropout=0.2):
    gradients = []
    for recompute in (False, True):
        model, idx = make(dropout=dropout, recompute=recompute).train(), some_ids(2, 9)
        torch.manual_seed(5)
        model(idx[:, :-1], idx[:, 1:]).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize('size', [1, 4, 5, 10, 256])
@pytest.mark.parametrize('heads, key_heads', [(4, 4), (4, 2), (3, 1)])
def test_explicit_attention_and_sdpa_are_the_same(heads, key_heads, size):
    q, k, v = (torch.randn(2, n, 10, 8, requires_grad=True) for n in (heads, key_heads, key_heads))
    results = []
    for y in (attend_explicitly(q, k, v, size=size), F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True)):
        results.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v))])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize('shape, message', [
    ({'n_embd': 30}, 'n_embd=30 is not divisible by n_head=4'),
    ({'n_kv_head': 3}, 'n_head=4 is not divisible by n_kv_head=3'),
    ({'n_embd': 36}, 'even head_size, not 9'), ({'dropout': 1.0}, 'dropout'),
    ({'head_size': 0}, 'head_size=0'), ({'head_size': 2 ** 24}, 'block_size=16 x head_size='),
    ({'block_size': 0}, 'block_size'), ({'vocab_size': None}, 'vocab_size'),
    ({'n_layer': -1}, 'n_layer=-1'), ({'mlp': 'relu3'}, 'mlp=relu3'),
])
def test_an_impossible_shape_is_named(shape, message):
    with pytest.raises(ValueError, match=message):
        GPT(GPTConfig(**SMALL | shape))


def test_too_long_an_input_is_refused_with_both_numbers():
    with pytest.raises(AssertionError, match='17 .*16'):
        make()(some_ids(1, 17))


# --- generation ----------------------------------------------------------------------------------

@pytest.mark.parametrize('block_size', [1, 2, 7, 16])
@pytest.mark.parametrize('position', ['learned', 'rope', 'none'])
def test_generation_past_the_context_is_the_written_rule_with_and_without_a_cache(
        block_size, position):
    model, prompt = make(block_size=block_size, position=position), some_ids(2, 20)
    cached, uncached = (torch.stack(list(model.generate(prompt, 40, 0, use_cache=use)), dim=1)
                        for use in (True, False))
    window, expected = prompt[:, -block_size:], []
    for _ in range(40):
        expected.append(model(window)[:, -1].argmax(dim=-1))
        window = torch.cat((window, expected[-1][:, None]), dim=1)
        if window.size(1) > block_size:
            window = window[:, -max(1, block_size // 2):]
    assert torch.equal(cached, uncached) and torch.equal(cached, torch.stack(expected, dim=1))


def test_ids_at_or_above_the_vocabulary_are_never_drawn():
    model = make()
    model.lm_head.weight.data[30:] = 0
    model.lm_head.weight.data[:30] *= 0.01  # all are about as likely
    tokens = list(model.generate(some_ids(64, 4), 20, temperature=5.0, vocab_size=30))
    assert max(token.max() for token in tokens) == 29


def draws(logits, n=4000, **options):
    stream = random.Random(0)
    numbers = [stream.random() for _ in range(n)]
    return draw_tokens(torch.tensor([logits]).expand(n, -1), numbers, **options)


PROBS = [0.4, 0.3, 0.2, 0.1]
LOGITS = [math.log(p) for p in PROBS]


@pytest.mark.parametrize('options, kept', [
    ({'top_k': 1}, 1), ({'top_k': 2}, 2), ({'top_k': 4}, 4), ({'top_k': 9}, 4),
    ({'top_p': 0.39}, 1), ({'top_p': 0.41}, 2), ({'top_p': 0.69}, 2), ({'top_p': 0.71}, 3),
    ({'top_p': 1.0}, 4), ({'top_p': 1e-9}, 1), ({'top_k': 2, 'top_p': 0.58}, 2),
    ({'top_k': 2, 'top_p': 0.56}, 1), ({'min_p': 0.76}, 1), ({'min_p': 0.74}, 2),
    ({'min_p': 0.24}, 4), ({'min_p': 0.49, 'top_k': 2}, 2), ({'min_p': 1.0}, 1),
])
def test_the_filters_keep_the_likeliest_in_proportion(options, kept):
    found = draws(LOGITS, **options).bincount(minlength=4) / 4000
    expected = torch.tensor([p if i < kept else 0 for i, p in enumerate(PROBS)]) / sum(PROBS[:kept])
    assert torch.allclose(found, expected, atol=0.03) and (found > 0).sum() == kept


@pytest.mark.parametrize('options', [{'top_k': 3}, {'top_p': 0.374}])
def test_the_filters_keep_no_more_than_they_should_of_equals(options):
    assert len(set(draws([0.0] * 8, **options).tolist())) == 3


def test_temperature_scales_logits_and_zero_is_the_likeliest():
    hot = draws(LOGITS, temperature=2.0).bincount(minlength=4) / 4000
    expected = torch.tensor(PROBS).sqrt() / torch.tensor(PROBS).sqrt().sum()
    assert torch.allclose(hot, expected, atol=0.03)
    assert set(draws(LOGITS, temperature=0).tolist()) == {0}
    assert set(draws(LOGITS, temperature=1e-30).tolist()) == {0}


def test_a_repetition_penalty_moves_logits_of_either_sign_down():
    logits = torch.tensor([[2.0, -2.0, 1.5, -3.0, 0.0]])
    seen = torch.tensor([[0, 1, 0]])
    assert penalize(logits, seen, 2.0).tolist() == [[1.0, -4.0, 1.5, -3.0, 0.0]]
    assert draw_tokens(logits, [0.5], temperature=0, repetition_penalty=2.0, seen=seen) == 2


FILTERS = [{'temperature': 0.7}, {'temperature': 1.5, 'top_k': 50}, {'top_p': 0.9},
           {'temperature': 3.0, 'top_p': 0.99}, {'temperature': 0.5, 'min_p': 0.05},
           {'temperature': 2.0, 'top_k': 200, 'top_p': 0.8, 'min_p': 0.02,
            'repetition_penalty': 1.3}]


@pytest.mark.parametrize('vocab_size', [300, 50257])
@pytest.mark.parametrize('options', FILTERS, ids=str)
def test_the_filters_are_those_of_transformers(options, vocab_size, monkeypatch):
    processors = pytest.importorskip('transformers.generation.logits_process')
    kinds = {'repetition_penalty': 'RepetitionPenaltyLogitsProcessor',
             'temperature': 'TemperatureLogitsWarper', 'top_k': 'TopKLogitsWarper',
             'top_p': 'TopPLogitsWarper', 'min_p': 'MinPLogitsWarper'}  # in their order
    generator = torch.Generator().manual_seed(1)
    expected = logits = 3 * torch.randn(4, vocab_size, generator=generator)
    seen = torch.randint(vocab_size, (4, 40), generator=generator)
    for name, kind in kinds.items():
        if name in options:
            expected = getattr(processors, kind)(options[name])(seen, expected)
    drawn = {}
    monkeypatch.setattr(model_module, 'choose', lambda logits, numbers: drawn.update(
        logits=logits) or torch.zeros(4, dtype=torch.int64))
    draw_tokens(logits, [0.5] * 4, seen=seen, **options)
    probs = drawn['logits'].softmax(dim=-1)
    if 'top_k' in options:  # they come sorted
        expected = expected.sort(dim=-1, descending=True).values[:, :options['top_k']]
    assert torch.allclose(probs, expected.softmax(dim=-1), atol=1e-6)


@pytest.mark.parametrize('options', [{}, *FILTERS[:-1]], ids=str)
def test_draws_have_the_probabilities_of_the_filtered_logits(options, n=100_000):
    logits = 2 * torch.randn(60, generator=torch.Generator().manual_seed(2))
    probs = draw_probs(logits, options)
    found = torch.zeros(60)
    for begin in range(0, n, 10_000):
        stream = random.Random(begin)
        numbers = [stream.random() for _ in range(10_000)]
        found += draw_tokens(logits.expand(10_000, -1), numbers, **options).bincount(minlength=60)
    assert (found[probs == 0] == 0).all()
    rare = probs * n < 10  # too few for a chi-squared test by themselves
    found, expected = (torch.cat((x[~rare], x[rare].sum()[None])) for x in (found, probs * n))
    chi_squared = ((found - expected) ** 2 / expected.clamp(min=1e-9)).sum().item()
    freedom = (expected > 0).sum().item() - 1
    assert chi_squared < freedom + 5 * (2 * freedom) ** 0.5


def draw_probs(logits, options):
    """The probabilities that the options leave, written as plainly as can be: (V,)."""
    probs = (logits / options.get('temperature', 1.0)).softmax(dim=-1)
    order = probs.argsort(descending=True)
    likelier = probs[order].cumsum(dim=-1) - probs[order]
    out = torch.zeros(len(probs), dtype=torch.bool)
    out[order[options.get('top_k', 60):]] = True
    out[order[likelier >= options.get('top_p', 2.0)]] = True
    out |= probs < options.get('min_p', 0.0) * probs.max()
    return probs.masked_fill(out, 0) / probs[~out].sum()


@pytest.mark.parametrize('number', [0.0, 1 - 2 ** -53, 0.5])
def test_no_number_draws_what_has_no_probability(number):
    logits = torch.full((1, 1000), -math.inf)
    logits[:, 300:700] = torch.randn(400)
    assert 300 <= choose(logits, [number]).item() < 700


@pytest.mark.parametrize('options', [{}, {'temperature': 0}, {'top_k': 3}, {'top_p': 0.5},
                                     {'min_p': 0.1}], ids=str)
def test_no_number_is_drawn_from_logits_that_are_no_numbers(options):
    logits = torch.zeros(2, 7)
    logits[1, 4] = math.nan
    sound, broken = draw_tokens(logits, [0.5, 0.5], **options).tolist()
    assert sound < 7 and broken == 7


def test_the_same_seed_draws_the_same_text():
    model, prompt = make(), some_ids(2, 4)
    first, again, other = (torch.stack(list(model.generate(prompt, 30, seed=seed)))
                           for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize('use_cache', [True, False])
def test_a_sample_does_not_depend_on_how_many_others_there_are(use_cache):
    model, prompt = make(), some_ids(1, 20)
    several = torch.stack(list(model.generate(prompt, 40, samples=5, use_cache=use_cache)))
    for n in (1, 3):
        fewer = torch.stack(list(model.generate(prompt, 40, samples=n, use_cache=use_cache)))
        assert torch.equal(fewer, several[:, :n])
    assert len({tuple(text) for text in several.t().tolist()}) == 5


def test_samples_of_several_texts_follow_one_another():
    model, prompts = make(), some_ids(2, 6)
    both = torch.stack(list(model.generate(prompts, 9, 0, samples=2)), dim=1)
    alone = [torch.stack(list(model.generate(prompt[None], 9, 0)), dim=1)[0] for prompt in prompts]
    assert torch.equal(both, torch.stack(alone).repeat_interleave(2, dim=0))


@pytest.mark.parametrize('use_cache', [True, False])
def test_a_sample_that_has_ended_leaves_the_batch_and_the_others_as_they_were(
        use_cache, monkeypatch):
    model, prompt, sizes = make(), some_ids(1, 4), []
    whole = torch.stack(list(model.generate(prompt, 30, samples=4)))
    hidden = GPT.hidden
    monkeypatch.setattr(GPT, 'hidden', lambda self, idx, cache=None: sizes.append(
        len(idx)) or hidden(self, idx, cache))
    running, steps = [True] * 4, []
    for step, ids in enumerate(model.generate(prompt, 30, samples=4, running=running,
                                              use_cache=use_cache)):
        steps.append(ids)
        running[2] = running[2] and step < 5
        running[0] = running[0] and step < 17
    expected = whole.clone()
    expected[6:, 2] = expected[18:, 0] = -1
    assert torch.equal(torch.stack(steps), expected)
    assert sizes == [1, *5 * [4], *12 * [3], *12 * [2]]


def test_generation_ends_with_its_last_sample():
    model, running = make(), [True, True]
    for count, _ in enumerate(model.generate(some_ids(1, 4), 30, samples=2, running=running)):
        running[:] = [count < 3, False]
    assert count == 3


def test_a_trace_has_the_logits_of_each_step():
    model, prompt, trace = make(), some_ids(1, 4), []
    ids = torch.stack(list(model.generate(prompt, 5, 0, samples=2, trace=trace, top_k=1)))
    assert torch.equal(torch.stack(trace).argmax(dim=-1), ids)
    assert torch.allclose(trace[0][0], model(prompt)[0, -1], atol=1e-5)


@pytest.mark.parametrize('block', [1, 3, 100])
def test_a_cache_grows_by_whole_blocks_up_to_the_context(block, monkeypatch):
    monkeypatch.setattr(model_module, 'CACHE_BLOCK', block)
    model, idx = make(), some_ids(2, 16)
    cache, rooms = KVCache(model.config, 2), []
    parts = []
    for i in range(16):
        parts.append(model(idx[:, i:i + 1], cache=cache))
        rooms.append(cache.kv.size(4))
    assert torch.allclose(torch.cat(parts, dim=1), model(idx), atol=1e-5)
    assert rooms == [min(16, block * math.ceil((i + 1) / block)) for i in range(16)]


def test_the_head_reads_the_last_token_of_a_prompt_only(monkeypatch):
    model, sizes = make(tied=False), []
    model.lm_head.register_forward_hook(lambda head, x, y: sizes.append(y.shape))
    list(model.generate(some_ids(2, 9), 2))
    assert sizes == [(2, 50)] * 2
