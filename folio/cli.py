"""What every script shares: how it starts, how it ends, and how it shows progress and paths."""

import contextlib
import errno
import importlib
import os
import platform
import signal
import sys
from types import SimpleNamespace


class UserError(Exception):
    """What a user can mend, said in one line; printed by rank 0 only, unless any_rank is set."""
    any_rank = False


def launched():
    """Whether torchrun, or another launcher, started this process as one of several."""
    return {'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'} <= os.environ.keys()


def run(main):
    """Call main(argv) as a script; a UserError ends it with its line and exit code 1."""
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        setattr(sys, name, getattr(sys, name) or open(os.devnull, mode))  # it was closed
    if hasattr(sys.stdout, 'reconfigure'):  # a notebook's has none
        sys.stdout.reconfigure(errors='replace')  # a model may say what a terminal can't show
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:  # nobody reads on, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + 13)  # as SIGPIPE would
    except (UserError, OSError, MemoryError) as error:
        sys.exit(error_line(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def error_line(error):
    """What this process prints of an error, or its exit code where another one prints it."""
    rank = os.environ['RANK'] if launched() else '0'
    text = one_line(str(error) or 'out of memory')
    if getattr(error, 'any_rank', True) and launched():
        return f'error: rank {rank} ({platform.node()}): {text}'
    return f'error: {text}' if rank == '0' else 1


def one_line(text):
    """A text on one line that does nothing to a terminal: an escape in it becomes \\x1b."""
    return ''.join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:2000])


def end_quietly(kind, error, trace):
    """An interrupt while torch is still being loaded needs no traceback."""
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = end_quietly  # at import, for what is imported next takes seconds


@contextlib.contextmanager
def locked(folder):
    """Hold the lock of a folder, a file beside it, so that nobody else writes into the folder;
    UserError if somebody does, or a file is in the way. Where the file system has no locks, that is
    said."""
    import filelock
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f'{short(folder)} cannot be a folder: {short(there)} is a file')
    path = folder.parent / f'.{folder.name}.lock'
    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        path.write_text(f'process {os.getpid()} on {platform.node()}', encoding='utf-8')
    except filelock.Timeout:
        owner = path.read_text(encoding='utf-8') or 'another process'
        raise UserError(f'{short(folder)} is in use by {owner}') from None
    except (OSError, NotImplementedError) as error:  # a file system without locks, or read-only
        print(f'{short(folder)} can\'t be locked ({first_line(error)}); start nothing else there')
    try:
        yield
    finally:
        lock.release()


# --- what people see -----------------------------------------------------------------------------

class LastingStream:
    """A text stream that outlives its reader: when nobody can read it any more, the process gets
    SIGHUP, and what is written goes nowhere."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:  # a full disk, for one, is no reason to stop
            if error.errno in (errno.EPIPE, errno.EIO):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
                signal.raise_signal(getattr(signal, 'SIGHUP', signal.SIGTERM))

    def flush(self):
        """Nothing is left to do."""


@contextlib.contextmanager
def lasting_output():
    """Standard output and error as LastingStreams, for a run that must not die with its reader."""
    with contextlib.redirect_stdout(LastingStream(sys.stdout)), \
            contextlib.redirect_stderr(LastingStream(sys.stderr)):
        yield


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
    try:
        from tqdm import tqdm
    except ImportError:
        if wanted and sys.stderr.isatty():
            print('no progress bar: pip install tqdm')
        return contextlib.nullcontext(SimpleNamespace(
            disable=True, total=options.get('total'), n=0, write=print,
            update=lambda n=1: None, set_description_str=lambda text: None))
    return tqdm(dynamic_ncols=True, disable=None if wanted else True, **options)
