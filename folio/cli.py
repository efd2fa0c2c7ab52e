"""What every script shares: how it starts, how it ends, how it shows progress and paths."""

import contextlib
import os
import sys


class UserError(Exception):
    """What a user can mend, said in one line; printed by rank 0 only, unless any_rank is set."""
    any_rank = False


def run(main):
    """Call main(argv) as a script; a UserError ends it with its line and exit code 1."""
    sys.stdout.reconfigure(errors='replace')  # a model may say what a terminal can't show
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:  # nobody reads on, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (UserError, OSError) as error:
        rank_0 = os.environ.get('RANK', '0') == '0'
        sys.exit(f'error: {error}' if rank_0 or getattr(error, 'any_rank', True) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def short(path):
    """A path as a user would type it: from where they are, if it lies below."""
    with contextlib.suppress(ValueError):  # another drive
        path = min(os.path.relpath(path), str(path), key=lambda text: text.startswith('..'))
    return str(path)


def progress_bar(wanted=True, **options):
    """A context with a tqdm bar, or with None where nobody watches or (it says) tqdm is absent."""
    if not (wanted and sys.stderr.isatty() and os.get_terminal_size(2).columns):
        return contextlib.nullcontext()
    try:
        from tqdm import tqdm
    except ImportError:
        return contextlib.nullcontext(print('no progress bar: pip install tqdm'))
    return tqdm(dynamic_ncols=True, **options)
