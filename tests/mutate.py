"""Change one line of a module at a time, and see whether the tests of its room notice.

    python tests/mutate.py                  all, about three quarters of an hour on two cores
    python tests/mutate.py model optim      those of some modules
    python tests/mutate.py --list

Each mutation is made in a copy of the repository, where the tests of its module alone run until one
fails, a minute at most. What is printed are the mutations that survive; the exit code is their
number. A mutation whose text is not in the source just once is an error: it has to follow the code.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SECONDS = 60
MUTATIONS = {  # module: [(its text, what stands there instead)]
    'model.py': [
        ('triu(1 + S - T)', 'triu(2 + S - T)'),
        ('ctx.inputs = ctx.inputs, None', 'ctx.inputs = ctx.inputs, ctx.inputs'),
        ('return *(each.mul_(grad) for each', 'return *(each for each'),
        ('k[:, :, :end], v[:, :, :end], dropout)', 'k[:, :, :end], v[:, :, :end], 0.0)'),
        ('alpha=D ** -0.5', 'alpha=D ** -1.0'),
        ('second * cos + first * sin', 'second * cos - first * sin'),
        ('nn.Linear(self.n_head * self.head_size, ', 'nn.Linear(config.n_embd, '),
        ('F.dropout(scores.softmax(dim=-1), dropout)', 'scores.softmax(dim=-1)'),
        ('x.lerp(before, self.shares[sublayer].to(x.dtype))', 'x'),
        ('self.last[layer, sublayer] = x[:, -1:]', 'pass'),
        ('self.last[layer, sublayer] if self.length else torch.zeros_like(x[:, :1])',
         'self.last.get((layer, sublayer), torch.zeros_like(x[:, :1]))'),
        ('x = self.dropout(x)\n', ''),
        ('x = x + self.dropout(self.attention(', 'x = x + (self.attention('),
        ("F.gelu(x, approximate='tanh')", 'F.gelu(x)'),
        ('F.relu(x).square()', 'F.relu(x)'),
        ('F.silu(gate) * x', 'F.silu(x) * gate'),
        ('0.02 / (2 * self.config.n_layer) ** 0.5', '0.02'),
        ('q, k = self.q_norm(q), self.k_norm(k)', 'q = self.q_norm(q)'),
        ('reduction=\'sum\')', 'reduction=\'sum\') * 1.001'),
        ('-max(1, self.limit // 2):]', '-self.limit:]'),
        ('likelier >= p,', 'likelier > 2 * p,'),
        ('logits.topk(min(top_k, logits.size(1)))', 'logits.topk(min(top_k + 1, logits.size(1)))'),
        ("f'{seed}, {row}'", "f'{seed}'"),
        ('before / penalty, before * penalty', 'before / penalty, before'),
        ('keepdim=True) + math.log(p)', 'keepdim=True) - 1'),
        ('[q, kv, kv]', '[q + 2 * kv]'),
        ('return model.eval()', 'return model'),
        ('        model.lm_head.weight = model.wte.weight\n', '        pass\n'),
    ],
    'train.py': [
        ('x ^ (x >> 30)', 'x'),
        ('offset + block_size * permute', 'block_size * permute'),
        ('windows[:, :-1], windows[:, 1:]', 'windows[:, :-1], windows[:, :-1]'),
        ('(sequences + size) / (warmup + size)', '1.0'),
        ('(1 + math.cos(math.pi * min(1, done))) / 2', '(1 - min(1, done))'),
        ('rise - rise % start', 'rise'),
        ('longest or math.inf', 'math.inf'),
        ('loss = runner(x, y) / (size // micro)', 'loss = runner(x, y)'),
        ('first = progress.sequences + machine.rank * size', 'first = progress.sequences'),
        ('random_key(options.seed, progress.step, i, ', 'random_key(options.seed, i, '),
        ('best, progress.best_loss = loss < progress.best_loss,',
         'best, progress.best_loss = True,'),
        ('    model.train()\n    nats, n_bytes', '    nats, n_bytes'),
        ('- 1  # all but the first', '- 2'),
        ('number = first + machine.rank', 'number = first'),
        ('if number < len(batches):', 'if True:'),
        ('tokens = (run.progress.sequences', 'tokens = (2 * run.progress.sequences'),
        ("load_states(run.optimizers, state['optimizers'])", 'pass'),
        ('0.8, seed=seed', '0.8, seed=0'),
        ('(1 + 0 * loss.detach())', '1'),
        ('optimizer.found_inf = 1 - norm.isfinite().float()', 'pass'),
        ("if run.bad_steps >= run.options.max_bad_steps", 'if False'),
        ('run.bad_steps + 1 if is_bad else 0', 'run.bad_steps + is_bad'),
        ('if machine.maximum(signals.stop)[0]:', 'if False:'),
        ('progress.evaluated = progress.step', 'pass'),
        ('>= 60 * options.save_minutes', '> 1e9'),
        ('if failed:', 'if False:'),
        ('if seen != run.data[split]:', 'if seen[0] != run.data[split][0]:'),
        ('machine.on_rank_0(until_the_end.enter_context, cli.locked(folder_of(options)))', 'pass'),
        ('    machine.check_same({\n', '    dict({\n'),
        ('until_the_end.enter_context(cli.lasting_output())', 'pass'),
        ('Path(options.dataset).name', 'options.dataset'),
        ('if best else {}', 'if True else {}'),
        ("group['lr'] = rate * group['peak_lr']", "group['lr'] = group['peak_lr']"),
        ('machine.on_rank_0(checkpoint.move_old_run, run.folder)', 'pass'),
    ],
    'prepare.py': [
        ('if foreign:', 'if False:'),
        ("    for name in names[1:]:\n        (folder / name).unlink(missing_ok=True)\n", ''),
        ('int(characters * (1 - fraction))', 'int(characters * 0.9)'),
        ('first < WHOLE_DOCUMENTS_FROM', 'first <= WHOLE_DOCUMENTS_FROM'),
        ('if lengths[digest] < 2 * (wanted - taken):', 'if taken < wanted:'),
        ("!= folder.resolve() / 'meta.json'", '!= folder'),
        ('if len(fingerprints) == LARGE:', 'if True:'),
        ('functools.lru_cache(256)(', 'functools.cache('),
        ("re.split('[?#]', url)[0]", 'url'),
        ("    texts.check_libraries(names)  # before hours of fetching\n", ''),
        ("yield number, 'val', text[cut:]", "yield number, 'val', text"),
        ("counts[ord('\\n')] = counts.max() + 1", 'pass'),
        ('> 2 * workers:\n                yield running.popleft()',
         '> 2 * workers:\n                yield running.pop()'),
        ('texts.separated(passages, by_words)', 'texts.separated(passages, False)'),
        ('tokenizer.vocab_size <= 1 << 16', 'tokenizer.vocab_size <= 1 << 17'),
        ('if not all(tokens.values()):', 'if False:'),
        ('if wanted | made_with != wanted:', 'if False:'),
        ("np.searchsorted(self.ends, start, 'right')", "np.searchsorted(self.ends, start, 'left')"),
        ('-(-self.character_counts.sum() // BPE_SAMPLE)', '1'),
        ('if taken >= BPE_SAMPLE or', 'if'),
        (' or words >= BPE_WORDS:', ':'),
        ('if size != offset + count * dtype.itemsize:', 'if False:'),
        ("set(re.findall(r'\\w+|[^\\w\\s]+', text)) - seen", "set(re.findall(r'\\w+', text))"),
        ("raise pickle.UnpicklingError(f'it names", "return super().find_class(module, name)  # ("),
        ('if not chars.encode() or meta != {', 'if not chars.encode() and meta != {'),
    ],
    'folio/optim.py': [
        ('betas=(options.beta1, options.beta2)', 'betas=(options.beta2, options.beta1)'),
        ('return p.grad.lerp(average, momentum)', 'return average'),
        ("1 - group['lr'] * group['weight_decay']", "1 - group['weight_decay']"),
        ('evened * (size / (evened_size + 1e-8))', 'evened'),
        ('torch.where(self.found_inf > 0, kept, new)', 'new'),
        ('updates / (average.sqrt() + 1e-8)', 'updates'),
        ('max(1, height / width) ** 0.5', '1.0'),
        ("'weight_decay': 0.0}]", "'weight_decay': options.weight_decay}]"),
        ("optimizer.state_dict() | {'state': state['state']}", 'state'),
        ('range(steps)', 'range(steps - 4)'),
        ('stacked.get(name, [len(p)])', '[len(p)]'),
    ],
    'folio/shard.py': [
        ('ours.detach().copy_(deal(theirs, mesh))', 'pass'),
        ('rows=value.dim() > 0)', 'rows=True)'),
        ('            del optimizer.state[p]\n', ''),
        ('    model.reshard()\n    return model', '    return model'),
        ("torch.compiler.set_stance('force_eager')", 'contextlib.nullcontext()'),
    ],
    'folio/texts.py': [
        ('return Path(name.stem).suffix, name.suffix', 'return name.suffix, name.suffix'),
        ('Path(path.name.lower())', 'Path(path.name)'),
        ("held = '\\r' if text.endswith('\\r') else ''", "held = ''"),
        ('counts[path, EMPTY] += not text', 'counts[path, EMPTY] += 1'),
        (" or b'\\0' in head", ''),
        ("decoder.decode(b'', final=True)", "decoder.decode(b'')"),
        (".encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')", ''),
        (r"r'(?<=\S) |", r"r' |"),
        (r"(?<=\S\n)(?=[^\W_])", r"(?<=\n)(?=[^\W_])"),
        (r"(?=[^\W_])", r"(?=.)"),
        ('found.start() if found else size', 'size'),
    ],
    'folio/download.py': [
        ('    if size_of(part) < total:\n', '    if False:\n'),
        ("'ab' if had else 'wb'", "'wb'"),
        ('had if response.status == 206 else 0', 'had'),
        ('            check_sum(there, sha256)\n', ''),
        ("if '://' in mirror else [url]", 'if False else [url]'),
        ('elif size_of(part) <= had:', 'elif size_of(part) > had:'),
    ],
    'folio/tokenizer.py': [
        ('self.start = next(starts, 0)', 'self.start = 0'),
        ('disallowed_special=()', "allowed_special='all'"),
        ('self.text_lengths[[*self.special.values()]] = 0', 'pass'),
        ('        if i in added:\n', '        if False:\n'),
        ('if size > 1 << 24:', 'if False:'),
        ('if ids.min(initial=0) < 0:', 'if False:'),
        ('np.full(codes.max(initial=0) + 2', 'np.full(codes.max(initial=0) + 1'),
        ("if text.endswith('\\ufffd') or", 'if'),
        ("getincrementaldecoder('utf-8')('replace')", "getincrementaldecoder('utf-8')('ignore')"),
        ("    tokens |= {rank: text.encode() for text, rank in spec['special'].items()}\n", ''),
        ('    library.no_truncation()\n', ''),
        ("twice[len(once):].encode()", "once.encode()"),
        ('list(past)', '[]'),
        ('BYTES.keys() >= set(token)', 'True'),
        ('before.FixedLength(LONG_WORD)', 'before.FixedLength(10 ** 9)'),
        ('if token.special}', '}'),
        ('return added[i].content.encode()', "return b''"),
        ("model.get('unk_id', ", "model.get('', "),
        ('at_words(cut_up(text))', 'cut_up(text)'),
    ],
    'folio/speed.py': [
        ('MARGIN * seconds', 'seconds'),
        ("if answers.get(question) not in list(FORMATS):", 'if True:'),
        ("    size = min(size, WIDEST)\n", ''),
        ("    rows = min(rows, LARGEST // (4 * size * size))\n", ''),
    ],
    'folio/options.py': [
        ('value is not None and not COMPARISONS', 'value is not None and COMPARISONS'),
        ("return path if path.exists() or", 'return path if'),
        ("elif equals or key not in valued:", 'elif equals:'),
        ("elif words and not words[0].startswith('--'):", 'elif words:'),
        ('NANOGPT.get(word, word)', 'word'),
        ("path.name.removesuffix('.py')", 'path.name'),
        ('if kind in (InPath, OutPath) and not typed', 'if kind in (InPath, OutPath)'),
        ('if type(value) is kind:', 'if isinstance(value, kind):'),
        ("key.startswith('_') or ", ''),
    ],
    'folio/cli.py': [
        ("getattr(error, 'any_rank', True) and launched()", 'launched()'),
        ('sys.exit(128 + signal.SIGINT)', 'sys.exit(0)'),
        ('lock.acquire(timeout=0)', 'pass'),
        ('(errno.EPIPE, errno.EIO)', '(errno.EPIPE,)'),
        ('splitlines()[0]', 'splitlines()[-1]'),
    ],
    'folio/checkpoint.py': [
        ("('best.pt', *RESUMABLE)", '(*RESUMABLE,)'),
        ("os.replace(path, path.with_name('ckpt.prev.pt'))", 'pass'),
        ('if id(value) not in copies:', 'if True:'),
        ("to(device, copy=True)", "to('cpu')"),
        ('self.failed.add(path)', 'pass'),
        ('self.failed.discard(path)', 'pass'),
        ('zipfile.is_zipfile(path):  # else', 'True:  # else'),
        ('or file.testzip()', ''),
        ('        if self.keeps:\n', '        if True:\n'),
        ('folder = folder.resolve()', 'folder = folder.absolute()'),
        ('path.parent.mkdir(parents=True, exist_ok=True)', 'pass'),
        ('os.replace(temporary, path)', 'shutil.copy(temporary, path)'),
        ('temporary.unlink(missing_ok=True)', 'pass'),
        ("map_location='cpu', weights_only=True", "map_location='cpu', weights_only=False"),
        ('not same_tokenizer(ours, spec)', 'False'),
        ("vocab_size < meta['vocab_size']", "vocab_size < meta['vocab_size'] - 1"),
        ('if given.get(name) not in (None, saved.get(name))', 'if False'),
        ("(*RESUMABLE, 'best.pt', 'log.jsonl')", "('ckpt.pt',)"),
    ],
    'folio/journal.py': [
        ('tokens < 4 * options.vocab_size and', ''),
        ('if latest <= step and', 'if latest < step and'),
        ('if what not in self.failing:', 'if True:'),
        ('data[file.write(data):]', "data[file.write(data) and len(data):]"),
        ('        if self.folder:\n', '        if True:\n'),
        ("records.get(record['step'], {}) | record", 'record'),
        (' or \'"val_loss"\' in line', ''),
        ('if self.module not in self.failing:', 'if True:'),
        ("settings |= {by: self.tracked, 'resume': 'allow'}", 'pass'),
        ('if not self.module.isidentifier():', 'if False:'),
        ("and line.endswith(b'\\n')", ''),
        ("self.tracker.log, numbers, record['step'])", 'self.tracker.log, numbers, 0)'),
        ("if 'val_loss' in record]", ']'),
    ],
    'folio/machine.py': [
        ('dist.all_reduce(values, dist.ReduceOp.MAX)', 'pass'),
        ('if ours[name] != theirs.get(name)', 'if False'),
        ('error.any_rank = set(errors) != {str(error)}', 'pass'),
        ('elif self.stop and number == signal.SIGINT:', 'elif number == signal.SIGINT:'),
        ('self.stop = self.stop or number', 'self.stop = number'),
        ('if handler != signal.SIG_IGN or', 'if True or'),
        ('enabled=self.dtype != torch.float32', 'enabled=False'),
        ('            raise KeyboardInterrupt\n', '            return\n'),
    ],
    'tools/measure.py': [
        ('np.minimum(starts + context, last)', 'starts + context'),
        ('(ids >= targets)', '(ids > targets)'),
        ('key=lambda window: window[1:]', 'key=lambda window: window[1]'),
        ('torch.arange(length + 1)[-new:]', 'torch.arange(length)[-new:]'),
        ('np.diff(ends, prepend=0)', 'ends - starts'),
    ],
    'tools/lambada.py': [
        ('lengths.cumsum() - lengths, lengths - 1', 'lengths.cumsum() - lengths, counts'),
        ('ids[-context - 1:]', 'ids[-context:]'),
        ('len(ids) > context + 1', 'len(ids) > context'),
        ('(right == words)', '(right > 0)'),
        ('.repeat(lengths)', '.repeat(counts)'),
    ],
    'tools/evaluate.py': [
        ("names=['dtype', 'dataset']", "names=['dataset']"),
        ('if (options.file or options.task) and tokenizer is None:', 'if False:'),
        ("[0, *newlines[:-1]]", "newlines"),
        ("tokenizer.token_bytes[i].count(b'\\n')", "tokenizer.token_bytes[i].endswith(b'\\n')"),
        ("key=lambda record: record['val_loss']", "key=lambda record: record['step']"),
    ],
    'tools/layouts.py': [
        ("'layer_norm_epsilon': 1e-5", "'layer_norm_epsilon': 1e-6"),
        ("'gelu_pytorch_tanh': 'gelu', 'gelu': 'gelu_erf'}", "'gelu_new': 'gelu', 'gelu': 'gelu'}"),
        ("activations={'gelu': 'gelu_erf'}", "activations={'gelu': 'gelu'}"),
        ("'mlp.gate_proj mlp.up_proj'", "'mlp.up_proj mlp.gate_proj'"),
        ("{'norm_weight': True, 'bias': True, 'tied': False}", "{'bias': True, 'tied': False}"),
        ('min(known ^ tensors.keys(), ', 'min(known - tensors.keys(), '),
        ("float(key.endswith('weight'))", '1.0'),
        ('halves.flip(1)', 'halves'),
        ("(small ** 2 * shape.norm_eps ** 0.5)", "(small ** 2 * shape.norm_eps)"),
        ("'head_dim': 128, ", ''),
        ("rope.get('rope_theta', description.get('rope_theta', 10000.0))",
         "rope.get('rope_theta', 10000.0)"),
        ('key=lambda name: len(wrong[name])', 'key=None'),
    ],
    'tools/hf_tokenizer.py': [
        ("re.sub(r'(\\{[\\d,]+\\})\\+', r'\\1', pattern)", 'pattern'),
        ("'ignore_merges': True", "'ignore_merges': False"),
        ('rank >= ranks[token]', 'rank > ranks[token]'),
        ("sorted(ranks, key=ranks.get)", 'sorted(ranks)'),
        ("return spec | {'unknown': unknown} if unknown in chars else spec", 'return spec'),
        ("content.get('normalizer'),", 'None,'),
        ("model.get('dropout')]", 'None]'),
        ("token['id'], token['special']]", "token['id'], True]"),
        ('if token in library.get_vocab()]', ']'),
    ],
    'tools/convert.py': [
        ('if size > shape.vocab_size', 'if size > 2 * shape.vocab_size'),
        ('yield Path(folder, dest.name)', 'yield dest'),
        ('allow_patterns=HUB_FILES', 'allow_patterns=None'),
        ("'split_special_tokens': True", "'split_special_tokens': False"),
        ("if kind == 'gpt2' and (folder", 'if (folder'),
        ("glob('model*.safetensors')", "glob('model.safetensors')"),
        ('if dest.exists():', 'if dest.is_file():'),
        ("key.removeprefix('_orig_mod.')", 'key'),
        ('max_shard_size=LARGEST', "max_shard_size='5GB'"),
        ("| {'dtype': dtype}", "| {'dtype': 'float32'}"),
        ('in (50257, 50304)', '== 50257'),
    ],
    'tools/gguf_file.py': [
        ('.transpose(1, 2).flatten(0, 2)', '.flatten(0, 2)'),
        ('        return tensor.T\n', '        return tensor\n'),
        ("(cut == 'llama-bpe') and", "(cut == 'llama-bpe') and False and"),
        ('CONTROL if token.special else', 'NORMAL if token.special else'),
    ],
    'tools/bench.py': [
        ('windows[:, 1:].contiguous()', 'windows[:, :-1].contiguous()'),
        ('x, mask, is_causal=True', 'x'),
        ('        optimizer.step()\n', ''),
        ('is_causal=True)\n\n\nATTENTION', 'is_causal=False)\n\n\nATTENTION'),
        ('network.blocks = nn.ModuleList([Encoder(options)])', 'pass'),
    ],
}


def tests_of(module):
    """The file of tests next door to a module."""
    folder, name = os.path.split(module)
    return os.path.join('tests', folder, f'test_{name}')


def survives(module, text, other):
    """Whether no test of the module's room fails, within a minute, when `other` replaces `text`."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, 'folio')
        shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(
            '.git', 'out', '__pycache__', '.venv', '*.bin.tmp'))
        source = (copy / module).read_text(encoding='utf-8')
        if source.count(text) != 1:
            raise SystemExit(f'{module} has {source.count(text)} times: {text}')
        (copy / module).write_text(source.replace(text, other, 1), encoding='utf-8')
        command = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider',
                   tests_of(module)]
        try:
            return subprocess.run(command, cwd=copy, capture_output=True, timeout=SECONDS,
                                  env=os.environ | {'OMP_NUM_THREADS': '1'}).returncode == 0
        except subprocess.TimeoutExpired:
            return True


def main(argv):
    modules = [module for module in MUTATIONS if not set(argv) - {'--list'}
               or Path(module).stem in argv]
    survivors, count = [], 0
    for module in modules:
        for text, other in MUTATIONS[module]:
            count += 1
            name = f'{module}: {text.strip()!r} -> {other.strip()!r}'
            if '--list' in argv:
                print(name)
            elif survives(module, text, other):
                survivors.append(name)
                print(f'survived  {name}', flush=True)
    print(f'{count} mutations' + ('' if '--list' in argv else f', {len(survivors)} survived'))
    return len(survivors)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
