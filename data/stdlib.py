# The Python standard library's own source, by bytes: about 10 MB of text that every machine has.
import sysconfig
from pathlib import Path

_root = Path(sysconfig.get_path('stdlib'))
_without = {'test', 'tests', 'idle_test', 'lib2to3', 'encodings', 'site-packages', 'dist-packages'}

input = [str(path) for path in sorted(_root.rglob('*.py'))
         if not _without & set(path.relative_to(_root).parts)]
tokenizer = 'byte'
val_fraction = 0.01
