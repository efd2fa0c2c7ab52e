"""A GPT: token ids in; logits, a loss or new tokens out. The network and nothing else.

    model = GPT(GPTConfig(vocab_size=256, n_layer=4, n_head=4, n_embd=128))
    logits = model(idx)                     # (B, T) int64 -> (B, T, V)
    loss = model(idx, targets)              # the mean cross entropy in nats
    for token in model.generate(idx, 100):  # (B,) ids, one token after another
        ...

The letters of the shapes: B batch, T time, S time with the cached past, C channels (n_embd),
H heads, K key/value heads, D head size, V vocabulary.
"""

import dataclasses
import math
import operator
import random
from dataclasses import dataclass
from typing import Annotated, Literal, get_args, get_type_hints

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


@dataclass
class GPTConfig:
    """The shape of a GPT."""
    block_size: Annotated[int, '>= 1'] = 256  # the context: the most tokens it sees at once
    vocab_size: Annotated[int | None, '>= 1'] = None  # None: the tokenizer's
    n_layer: Annotated[int, '>= 0', '<= 4096'] = 4  # 0: a bigram model, of embedding and head
    n_head: Annotated[int, '>= 1'] = 2  # heads of attention
    n_kv_head: Annotated[int | None, '>= 1'] = None  # of keys and values, shared; None: n_head
    head_size: Annotated[int | None, '>= 1'] = None  # channels of a head; None: n_embd / n_head
    n_embd: Annotated[int, '>= 1'] = 128  # channels
    n_inner: Annotated[int | None, '>= 0'] = None  # of the MLP; None: 4 n_embd, swiglu 8/3 n_embd
    position: Literal['learned', 'rope', 'none'] = 'rope'  # how a token knows its place
    rope_theta: Annotated[float, '> 0'] = 10000.0  # base of RoPE's wavelengths
    norm: Literal['layernorm', 'rmsnorm'] = 'rmsnorm'  # before each sublayer and the head
    norm_eps: Annotated[float, '>= 0'] = 1e-5  # added to the variance
    norm_weight: bool = False  # norms have learned weights
    mlp: Literal['gelu', 'gelu_erf', 'swiglu', 'relu2', 'none'] = 'relu2'  # the MLP's kind
    qk_norm: bool = True  # normalize queries and keys
    bias: bool = False  # linear layers, and layernorms with weights, have biases
    tied: bool = True  # the head's weights are the embedding's
    token_shift: bool = True  # sublayers see a learned share of the token before, by channel
    dropout: Annotated[float, '>= 0', '< 1'] = 0.0  # of embeddings, attention and sublayers
    attention_dropout: Annotated[float | None, '>= 0', '< 1'] = None  # None: as dropout
    recompute: bool = False  # blocks' activations in the backward pass: less memory, more time

    def resolved(self):
        """A copy with the derived values filled in; ValueError where two of them don't fit."""
        config = dataclasses.replace(self, n_kv_head=self.n_kv_head or self.n_head,
                                     n_inner=self.n_inner or self.derived_n_inner())
        if config.vocab_size is None:
            raise ValueError('vocab_size is None')
        config.check_bounds()
        config.check_divisible('n_head', 'n_kv_head')
        if config.head_size is None:
            config.check_divisible('n_embd', 'n_head')
            config.head_size = config.n_embd // config.n_head
        if config.position == 'rope':
            config.check_rope()
        return config

    def check_divisible(self, name, by):
        """ValueError unless one of these fields is a multiple of the other."""
        if getattr(self, name) % getattr(self, by):
            raise ValueError(f'{name}={getattr(self, name)} is not divisible by '
                             f'{by}={getattr(self, by)}')

    def check_bounds(self):
        """ValueError for a number that is impossible by itself; no option may have brought it."""
        compare = {'>=': operator.ge, '>': operator.gt, '<=': operator.le, '<': operator.lt}
        for name, hint in get_type_hints(GPTConfig, include_extras=True).items():
            for bound in getattr(hint, '__metadata__', ()):  # such as '>= 1'
                sign, limit = bound.split()
                value = getattr(self, name)
                if value is not None and not compare[sign](value, float(limit)):
                    raise ValueError(f'{name}={value} is not {bound}')

    def check_rope(self):
        """ValueError for heads that can't be rotated, or too large a table of angles."""
        if self.head_size % 2:
            raise ValueError(f'position=rope needs an even head_size, not {self.head_size}')
        if self.block_size * self.head_size > 2 ** 27:
            raise ValueError(f'block_size={self.block_size} x head_size={self.head_size} is above '
                             '2^27, too much for a table of RoPE')

    def derived_n_inner(self):
        """The MLP's channels: 4 n_embd. SwiGLU has three matrices for two, so as many weights take
        8/3 n_embd, here rounded up to a multiple of 8."""
        if self.mlp == 'none':
            return 0
        if self.mlp == 'swiglu':
            return math.ceil(8 * self.n_embd / 3 / 8) * 8
        return 4 * self.n_embd


SHAPE = [field.name for field in dataclasses.fields(GPTConfig)  # what the weights depend on
         if field.name not in ('dropout', 'attention_dropout', 'recompute')]


CACHE_BLOCK = 256  # tokens by which a cache grows


class KVCache:
    """The keys and values of the tokens so far, so that each is computed once.

    config: a resolved GPTConfig. `length` tokens are in it; setting it to 0 empties the cache.
    `last` holds each sublayer's input for the latest token, (B, 1, C), for token_shift.
    """

    def __init__(self, config, batch_size, device=None, dtype=None):
        shape = (config.n_layer, 2, batch_size, config.n_kv_head, 0, config.head_size)
        self.kv = torch.zeros(shape, device=device, dtype=dtype)  # (layers, 2, B, K, room, D)
        self.last = {}
        self.limit, self.length = config.block_size, 0

    def update(self, layer, k, v):
        """Append k and v (B, K, T, D) of a layer; returns all of that layer's, (B, K, S, D)."""
        end = self.length + k.size(2)
        self.reserve(end)
        kv = self.kv[layer, :, :, :, :end]  # (2, B, K, S, D)
        kv[0, :, :, self.length:] = k
        kv[1, :, :, self.length:] = v
        return (kv[0], kv[1]) if self.length else (k, v)

    def token_before(self, layer, sublayer, x):
        """A sublayer's input for the token before x (B, T, C): (B, 1, C), zeros before the first.
        Keeps the input for x's last token."""
        before = self.last[layer, sublayer] if self.length else torch.zeros_like(x[:, :1])
        self.last[layer, sublayer] = x[:, -1:]
        return before

    def reserve(self, end):
        """Make room for `end` tokens, by whole blocks."""
        room = self.kv.size(4)
        if end > room:
            more = min(self.limit, math.ceil(end / CACHE_BLOCK) * CACHE_BLOCK) - room
            self.kv = F.pad(self.kv, (0, 0, 0, more))

    def select(self, rows):
        """Keep these rows of the batch, a list; one may be there several times."""
        self.kv = self.kv[:, :, rows]
        self.last = {sublayer: x[rows] for sublayer, x in self.last.items()}


def make_norm(config, size):
    """The norm of vectors (..., size), layernorm or RMSNorm (Zhang & Sennrich 2019,
    arXiv:1910.07467)."""
    if config.norm == 'layernorm':
        return nn.LayerNorm(size, config.norm_eps, config.norm_weight, bias=config.bias)
    return RMSNorm(size, config.norm_eps, config.norm_weight)


class RMSNorm(nn.RMSNorm):
    """torch's, whose fused kernels want x in the number format of the weights."""

    def forward(self, x):
        return super().forward(x if self.weight is None else x.to(self.weight.dtype))


def rotate(x, rope):
    """RoPE (Su et al. 2021, arXiv:2104.09864), the halves of a head as pairs, as in Llama.

    x: (B, H, T, D); rope: cosines and sines, (2, T, D/2).
    """
    cos, sin = rope.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(q, k, v, dropout=0.0):
    """softmax(q k' / sqrt(D)) v for q (B, H, T, D), k and v (B, K, S, D), the fastest way; the last
    query sees all S keys, each query before it one less."""
    T, S = q.size(2), k.size(2)
    longest = 1024 if q.dtype == torch.bfloat16 else 512  # for which SDPA is slower on a CPU
    if q.device.type == 'cpu' and T == S <= longest and not unsound_if_explicit(q):
        return attend_explicitly(q, k, v, dropout)
    mask = None
    if T not in (1, S):
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=T == S,
                                          enable_gqa=q.size(1) != k.size(1))


def unsound_if_explicit(q):
    """Whether torch's compiler makes bfloat16 code of wide heads: with RoPE the keys' gradient of
    the explicit form is then NaN on some Intel CPUs; that of SDPA, or of narrower heads, is not."""
    return torch.compiler.is_compiling() and q.dtype == torch.bfloat16 and q.size(-1) >= 64


def attend_explicitly(q, k, v, dropout=0.0, size=256):
    """The same for T = S, step by step: on a CPU SDPA's backward pass is slower for short texts.
    `size` queries at a time meet the keys up to theirs."""
    k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    ends = range(size, q.size(2) + size, size)
    return torch.cat([attend_some(q[:, :, end - size:end], k[:, :, :end], v[:, :, :end], dropout)
                      for end in ends], dim=2)


def attend_some(q, k, v, dropout):
    """The same for the last T queries of a text, with all matrices in sight.

    scores = q k' / sqrt(D) + mask, (B H, T, S), where the mask is -inf for keys in the future and
    else 0, so that the softmax gives those no weight.
    """
    B, H, T, D = q.shape
    q, k, v = (x.reshape(B * H, -1, D) for x in (q, k, v))
    S = k.size(1)
    mask = torch.full((T, S), float('-inf'), dtype=q.dtype, device=q.device).triu(1 + S - T)
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=D ** -0.5)
    weights = F.dropout(scores.softmax(dim=-1), dropout)  # (B H, T, S)
    return (weights @ v).view(B, H, T, D)


class Attention(nn.Module):
    """Causal self-attention (Vaswani et al. 2017, arXiv:1706.03762); with n_kv_head < n_head
    grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.dropout = layer, config.attention_dropout
        if self.dropout is None:
            self.dropout = config.dropout
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.head_size = config.head_size
        channels = (self.n_head + 2 * self.n_kv_head) * self.head_size
        self.qkv = nn.Linear(config.n_embd, channels, bias=config.bias)
        self.proj = nn.Linear(self.n_head * self.head_size, config.n_embd, bias=config.bias)
        self.proj.residual = True  # it adds to the residual stream, so it starts narrower
        self.q_norm = make_norm(config, self.head_size) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, self.head_size) if config.qk_norm else nn.Identity()

    def forward(self, x, rope, cache):
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, H + 2K, T, D)
        q, k, v = qkv.split((self.n_head, self.n_kv_head, self.n_kv_head), dim=1)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (B, K, S, D)
        y = attend(q.to(k.dtype), k, v, self.dropout if self.training else 0.0)  # (B, H, T, D)
        return self.proj(y.transpose(1, 2).flatten(2).to(x.dtype))


class MLP(nn.Module):
    """Two linear layers with an activation between; ValueError for an unknown `mlp`."""

    def __init__(self, config):
        super().__init__()
        if config.mlp not in get_args(GPTConfig.__annotations__['mlp']):
            raise ValueError(f'mlp={config.mlp} is no activation')
        self.kind = config.mlp
        gates = 1 if config.mlp == 'swiglu' else 0  # `up` holds the gate's matrix and up's
        self.up = nn.Linear(config.n_embd, (1 + gates) * config.n_inner, bias=config.bias)
        self.proj = nn.Linear(config.n_inner, config.n_embd, bias=config.bias)
        self.proj.residual = True

    def activate(self, x):
        """The activation of what `up` puts out: (B, T, n_inner), from twice as many for SwiGLU."""
        if self.kind == 'gelu':  # GPT-2's (Hendrycks & Gimpel 2016, arXiv:1606.08415)
            return F.gelu(x, approximate='tanh')
        if self.kind == 'gelu_erf':
            return F.gelu(x)
        if self.kind == 'swiglu':  # Shazeer 2020, arXiv:2002.05202
            gate, x = x.chunk(2, dim=-1)
            return F.silu(gate) * x
        assert self.kind == 'relu2', f'mlp={self.kind} has no formula here'
        return F.relu(x).square()  # So et al. 2021, arXiv:2109.08668

    def forward(self, x):
        return self.proj(self.activate(self.up(x)))


class Block(nn.Module):
    """Attention, then the MLP, each after a norm and added to what came in."""

    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = make_norm(config, config.n_embd)
        self.attention = Attention(config, layer)
        self.norm2 = make_norm(config, config.n_embd) if config.mlp != 'none' else None
        self.mlp = MLP(config) if config.mlp != 'none' else None
        self.dropout = nn.Dropout(config.dropout)
        self.layer = layer
        sublayers = 1 if self.mlp is None else 2
        zeros = torch.zeros(sublayers, config.n_embd)
        self.shares = nn.Parameter(zeros) if config.token_shift else None

    def forward(self, x, rope, cache):
        x = x + self.dropout(self.attention(self.shift(self.norm1(x), 0, cache), rope, cache))
        if self.mlp is None:
            return x
        return x + self.dropout(self.mlp(self.shift(self.norm2(x), 1, cache)))

    def shift(self, x, sublayer, cache):
        """x (B, T, C) for a sublayer, where a learned share of each channel is that of the token
        before: RWKV's token shift (Peng et al. 2023, arXiv:2305.13048)."""
        if self.shares is None:
            return x
        before = torch.zeros_like(x[:, :1])
        if cache is not None:
            before = cache.token_before(self.layer, sublayer, x)
        before = torch.cat((before, x[:, :-1]), dim=1)  # (B, T, C)
        return x.lerp(before, self.shares[sublayer].to(x.dtype))


def cross_entropy(x, weight, targets, most=2 ** 24):
    """The mean cross entropy of targets (N,), -1 ignored, and the logits x @ weight' of x (N, C);
    at most `most` of those are held at a time."""
    rows, count = max(1, most // len(weight)), (targets >= 0).sum().clamp(min=1)
    if len(x) <= rows or torch.compiler.is_compiling():  # which holds few by itself
        return total_loss(x, weight, targets) / count
    if torch.is_grad_enabled() and not in_float16(x.device.type):
        return LossByParts.apply(x, weight, targets, rows) / count
    parts = zip(x.split(rows), targets.split(rows), strict=True)
    return sum(checkpoint(total_loss, part, weight, ids, use_reentrant=False)
               for part, ids in parts) / count


def in_float16(kind):
    """Whether autocast computes products in float16 on this kind of device: its gradients vanish
    unless the loss is scaled before the backward pass."""
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16


def total_loss(x, weight, targets):
    """The sum of the cross entropies of targets (N,), -1 ignored, and the logits x @ weight'."""
    logits = F.linear(x, weight).float()
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction='sum')


class LossByParts(torch.autograd.Function):
    """total_loss of `rows` of x at a time. Its gradients are computed along with it: for the
    backward pass the logits would have to be kept, or computed again."""

    @staticmethod
    def forward(ctx, x, weight, targets, rows):
        x, weight = ctx.inputs = [each.detach().requires_grad_() for each in (x, weight)]
        total = 0
        with torch.enable_grad():
            for part, ids in zip(x.split(rows), targets.split(rows), strict=True):
                loss = total_loss(part, weight, ids)
                loss.backward()
                total += loss.detach()
        return total

    @staticmethod
    def backward(ctx, grad):
        (x, weight), ctx.inputs = ctx.inputs, None  # a second time fails: the gradients are scaled
        gradients, x.grad, weight.grad = (x.grad, weight.grad), None, None
        return *(each.mul_(grad) for each in gradients), None, None


class GPT(nn.Module):
    """A decoder-only transformer (Radford et al. 2019); ValueError for an impossible config."""

    def __init__(self, config):
        super().__init__()
        self.config = config = config.resolved()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        learned = config.position == 'learned'
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if learned else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config, config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.wte.weight
        rope = self.rope_table() if config.position == 'rope' else None
        self.register_buffer('rope', rope, persistent=False)
        self.apply(self.init_weights)

    def init_weights(self, module):
        """GPT-2's: normal, narrower where 2 n_layer sublayers add to the residual stream."""
        if isinstance(module, nn.Linear | nn.Embedding):
            residual = getattr(module, 'residual', False)
            std = 0.02 / (2 * self.config.n_layer) ** 0.5 if residual else 0.02
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def stacked_matrices(self):
        """The heights of the matrices that one parameter holds one above the other, as a list by
        the parameter's name: queries, keys and values, and SwiGLU's gate and up."""
        heights = {}
        for i, block in enumerate(self.blocks):
            attention = block.attention
            q, kv = (n * attention.head_size for n in (attention.n_head, attention.n_kv_head))
            heights[f'blocks.{i}.attention.qkv.weight'] = [q, kv, kv]
            if self.config.mlp == 'swiglu':
                heights[f'blocks.{i}.mlp.up.weight'] = 2 * [self.config.n_inner]
        return heights

    def rope_table(self):
        """Cosines and sines of each position's angles: (2, block_size, D/2)."""
        head_size = self.config.head_size
        frequencies = self.config.rope_theta ** (-torch.arange(0, head_size, 2) / head_size)
        angles = torch.arange(self.config.block_size)[:, None] * frequencies
        return torch.stack((angles.cos(), angles.sin()))

    def forward(self, idx, targets=None, cache=None):
        """idx (B, T) int64 -> logits (B, T, V); given targets (B, T), -1 ignored, the mean loss.

        With a KVCache, idx are the tokens that follow those in the cache, and are added to it.
        """
        x = self.hidden(idx, cache)
        if targets is None:
            return self.lm_head(x)  # (B, T, V)
        return cross_entropy(x.flatten(0, 1), self.lm_head.weight, targets.flatten())

    def hidden(self, idx, cache=None):
        """What the head sees of idx (B, T), as in forward: (B, T, C)."""
        past, T = cache.length if cache else 0, idx.size(1)
        end, limit = past + T, self.config.block_size
        assert end <= limit, f'{end} tokens do not fit into block_size={limit}'
        x = self.wte(idx)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe.weight[past:end]
        x = self.dropout(x)
        rope = self.rope[:, past:end] if self.rope is not None else None
        for block in self.blocks:
            if self.config.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, cache, use_reentrant=False)
            else:
                x = block(x, rope, cache)
        if cache:
            cache.length = end
        return self.norm(x)

    def generate(self, idx, max_new_tokens, temperature=1.0, samples=1, seed=0, vocab_size=None,
                 running=None, trace=None, use_cache=True, **filters):
        """Yield max_new_tokens times the next ids (B,) of texts, in eval mode: of as many `samples`
        of each row of idx (rows, T), B in all.

        temperature and filters (top_k, top_p, min_p, repetition_penalty): as in draw_tokens. seed:
        an int; each sample has a stream of random numbers of its own. vocab_size: only ids below it
        are drawn. running: a list of B truth values; a sample whose value the caller sets to False
        costs nothing more, and its ids are -1. trace: a list that each step appends its logits to,
        (running samples, V), before any filter.

        Of a longer text the last block_size tokens are seen; when the next one does not fit, the
        last max(1, block_size // 2) are kept and encoded again.
        """
        texts = Texts(self, idx, samples, seed, use_cache)
        running = running or [True] * len(texts.rows)
        for _ in range(max_new_tokens):
            with torch.inference_mode():
                logits = texts.logits()[:, :vocab_size].float()  # (running samples, V)
                tokens = draw_tokens(logits, texts.numbers(), temperature, seen=texts.idx,
                                     **filters)
                texts.append(tokens)
            if trace is not None:
                trace.append(logits)
            yield texts.spread(tokens)
            texts.keep(running)
            if not texts.rows:
                return


class Texts:
    """The texts that a GPT writes, `samples` of each row of a prompt, and what it has computed of
    them. rows: the numbers of the samples that run; idx: their ids (rows, T), at first those of the
    prompt; streams: the random numbers of each sample."""

    def __init__(self, model, idx, samples=1, seed=0, use_cache=True):
        self.model, self.limit, weight = model, model.config.block_size, model.wte.weight
        self.idx, self.samples = idx[:, -self.limit:], samples
        self.rows = list(range(len(idx) * samples))
        self.streams = [random.Random(f'{seed}, {row}') for row in self.rows]
        self.cache = None
        if use_cache:
            on_cpu = weight.device.type == 'cpu'  # whose attention is slow in bfloat16
            dtype = torch.float32 if on_cpu else weight.dtype
            self.cache = KVCache(model.config, len(idx), weight.device, dtype)

    def logits(self):
        """The logits (rows, V) of the next ids; a prompt is read once for all its samples."""
        new = self.idx[:, self.cache.length:] if self.cache else self.idx
        logits = self.model.lm_head(self.model.hidden(new, self.cache)[:, -1])
        if len(logits) == len(self.rows):
            return logits
        self.select([row // self.samples for row in self.rows])
        return logits.repeat_interleave(self.samples, dim=0)

    def numbers(self):
        """The next random number of each sample that runs, a list."""
        return [self.streams[row].random() for row in self.rows]

    def spread(self, tokens):
        """The ids (B,) of all samples, -1 for those that have ended, of tokens (rows,)."""
        ids = torch.full((len(self.streams),), -1, device=tokens.device)
        return ids.index_copy(0, torch.tensor(self.rows, device=tokens.device), tokens)

    def append(self, tokens):
        """Take the next ids (B,); where they don't fit, keep the later half of the texts."""
        self.idx = torch.cat((self.idx, tokens[:, None]), dim=1)
        if self.idx.size(1) > self.limit:
            self.idx = self.idx[:, -max(1, self.limit // 2):]
            if self.cache:
                self.cache.length = 0

    def keep(self, running):
        """Go on with the samples for which the list `running` has a true value."""
        kept = [n for n, row in enumerate(self.rows) if running[row]]
        if len(kept) < len(self.rows):
            self.rows = [self.rows[n] for n in kept]
            self.select(kept)

    def select(self, rows):
        """Keep these texts, a list; one may be there several times."""
        self.idx = self.idx[rows]
        if self.cache:
            self.cache.select(rows)


def from_checkpoint(state):
    """The GPT of a checkpoint's dict, on the CPU, in eval mode. state: 'config' has the options of
    SHAPE, 'model' the weights, which become its own, in their number format; KeyError or ValueError
    where they don't fit."""
    config = GPTConfig(**{name: state['config'][name] for name in SHAPE})
    check_weights(state['model'], config)
    with torch.device('meta'):  # where tensors take no memory
        model = GPT(config)
    model.load_state_dict(state['model'], assign=True)
    if config.tied:
        model.lm_head.weight = model.wte.weight
    if config.position == 'rope':
        model.rope = model.rope_table()
    return model.eval()


def check_weights(weights, config):
    """ValueError unless the weights, tensors by name, are those that a GPT of this config has, and
    take the memory that it will: they come from a file, and the model takes its memory first."""
    blocks = {name.split('.')[1] for name in weights if name.startswith('blocks.')}
    if len(blocks) != config.n_layer:
        raise ValueError(f'n_layer={config.n_layer}, and there are {len(blocks)} blocks')
    with torch.device('meta'):
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    for name in sorted(shapes.keys() | weights.keys()):
        theirs = weights[name].shape if name in weights else None
        if theirs != shapes.get(name):
            raise ValueError(f'{name} has the shape {theirs}, not {shapes.get(name)}')
    storages = [tensor.untyped_storage() for tensor in weights.values()]
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    if sum(tensor.nbytes for tensor in weights.values()) > 2 * sum(held.values()):  # tied: twice
        raise ValueError('the weights are copies of a few numbers')


# --- drawing the next token ----------------------------------------------------------------------

def draw_tokens(logits, numbers, temperature=1.0, top_k=None, top_p=None, min_p=None,
                repetition_penalty=1.0, seen=None):
    """One id (B,) for each row of logits (B, V); numbers: one in [0, 1) for each, by which it is
    drawn.

    temperature 0: the likeliest. top_k: one of the k likeliest. top_p: one of the fewest that are
    together at least p likely (Holtzman et al. 2020, arXiv:1904.09751). min_p: one at least
    min_p times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082).
    repetition_penalty: of the ids `seen` (B, T). They apply in the order of `transformers`, but
    top_k before the temperature: the result is the same, and the rest cheaper. V where a logit is
    not a number.
    """
    if repetition_penalty != 1:
        logits = penalize(logits, seen, repetition_penalty)
    broken = logits.isnan().any(dim=-1)
    if temperature == 0:
        return logits.argmax(dim=-1).masked_fill(broken, logits.size(1))
    ids, size = None, logits.size(1)
    if top_k is not None:
        logits, ids = logits.topk(min(top_k, logits.size(1)))
    logits = scale(logits, temperature)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    if min_p is not None:
        logits = keep_min_p(logits, min_p)
    chosen = choose(logits, numbers).clamp(max=logits.size(1) - 1)
    chosen = chosen if ids is None else ids.gather(1, chosen[:, None])[:, 0]
    return chosen.masked_fill(broken, size)


def penalize(logits, seen, penalty):
    """Make the ids seen (B, T) less likely, or with a penalty below 1 likelier: logits above 0 are
    divided by it, others multiplied (Keskar et al. 2019, arXiv:1909.05858)."""
    before = logits.gather(1, seen)
    after = torch.where(before > 0, before / penalty, before * penalty)
    return logits.scatter(1, seen, after)


def scale(logits, temperature):
    """logits / temperature, up to a constant that keeps a tiny temperature from overflowing."""
    smallest = torch.finfo(logits.dtype).tiny  # below it a temperature is rounded to 0
    return (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, smallest)


def keep_top_p(logits, p):
    """-inf for all but the likeliest of each row of logits (B, V): the fewest that are together at
    least p likely."""
    if p >= 1:
        return logits
    likeliest, order = probable(logits.softmax(dim=-1), p)
    likelier = likeliest.cumsum(dim=-1) - likeliest  # the probability of those before each
    kept = logits.gather(1, order).masked_fill(likelier >= p, -math.inf)
    return torch.full_like(logits, -math.inf).scatter(1, order, kept)


def probable(probs, p):
    """(probabilities, ids), (B, K) and sorted, of enough ids that they are together at least p
    likely; most often a few do, and to sort all of a large vocabulary takes long."""
    for most in (2 ** 8, 2 ** 12, probs.size(1)):
        likeliest, order = probs.topk(min(most, probs.size(1)))
        if (likeliest.sum(dim=-1) >= p).all():
            break
    return likeliest, order


def keep_min_p(logits, p):
    """-inf for logits (B, V) of what is less than p times as likely as the likeliest of its row."""
    least = logits.amax(dim=-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < least, -math.inf)


def choose(logits, numbers):
    """The index (B,) in each row of logits (B, V) at which their cumulative probability passes the
    row's number."""
    probs = logits.softmax(dim=-1).cumsum(dim=-1)
    numbers = torch.tensor(numbers, dtype=probs.dtype, device=probs.device)[:, None]
    numbers = numbers.clamp(max=1 - torch.finfo(probs.dtype).eps / 2)  # which rounding made 1
    return torch.searchsorted(probs, numbers * probs[:, -1:], right=True)[:, 0]
