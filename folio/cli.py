"""What every script shares: how it starts, how it ends, and how it shows progress and paths."""

import contextlib
import importlib
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


def first_line(error):
    """The first line of an exception's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def import_library(name, purpose):
    """The module of this name; UserError without it, which says what it is for."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f'{purpose}: pip install {name.partition(".")[0]}') from None


def progress_bar(wanted=True, **options):
    """A tqdm bar with these options, to be used in a `with`; it is disabled where nobody watches,
    and one that shows nothing where tqdm is absent, which is said."""
    watched = wanted and sys.stderr.isatty() and os.get_terminal_size(2).columns > 0
    try:
        from tqdm import tqdm
    except ImportError:
        if watched:
            print('no progress bar: pip install tqdm')
        return NoBar(**options)
    return tqdm(dynamic_ncols=True, disable=not watched, **options)


class NoBar:
    """Stands in for a tqdm bar and shows nothing."""
    disable = True

    def __init__(self, total=None, initial=0, **options):
        self.total, self.n = total, initial

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, n=1):
        self.n += n

    def set_description_str(self, text):
        pass

    def write(self, text):
        print(text)
