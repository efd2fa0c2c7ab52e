"""The house: which file may import which, read from the code itself, and what runs at import time.

    python -m pytest tests/test_house.py -s

prints the import graph.
"""

import ast
import sys

import pytest
from conftest import REPOSITORY

SCRIPTS = ['model.py', 'prepare.py', 'sample.py', 'train.py']
FILES = sorted(path.relative_to(REPOSITORY) for folder in ('', 'folio', 'tools', 'docs', 'config',
                                                           'config/ladder', 'data')
               for path in (REPOSITORY / folder).glob('*.py'))
ASSIGNMENTS = [file for file in FILES if file.parts[0] in ('config', 'data')]
CODE = [file for file in FILES if file not in ASSIGNMENTS]
OURS = {'train', 'model', 'sample', 'prepare', 'folio', 'tools', 'docs', 'config', 'data'}
ALLOWED = {
    'model': set(),
    'folio': {'folio'},
    'prepare': {'folio'},
    'sample': {'model', 'folio'},
    'train': {'prepare', 'model', 'folio'},
    'tools': {'train', 'prepare', 'model', 'folio', 'tools'},
    'docs': {'train', 'prepare', 'model', 'sample', 'folio', 'tools', 'docs'},
    'config': set(),
    'data': set(),
}
TOOLS = ('bench', 'convert', 'evaluate')  # the commands of tools/, which nothing imports


def tree_of(file):
    return ast.parse((REPOSITORY / file).read_text(encoding='utf-8'))


def imports(file):
    """The modules that a file imports anywhere in it, such as 'folio.cli' or 'torch'."""
    modules = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{file}: a relative import'
            inside = node.module in ('folio', 'tools')
            modules |= {f'{node.module}.{name.name}' if inside else node.module
                        for name in node.names}
    return modules


def room(name):
    """'folio' for folio/cli.py and for folio.cli, 'train' for train.py."""
    return str(name).removesuffix('.py').replace('/', '.').split('.')[0]


def forbidden(file):
    """The modules that a file imports against the line of arrows."""
    ours = {module for module in imports(file) if room(module) in OURS}
    commands = {f'tools.{name}' for name in TOOLS} if room(file) == 'tools' else set()
    return {module for module in ours if room(module) not in ALLOWED[room(file)]} | ours & commands


@pytest.mark.parametrize('file', FILES, ids=str)
def test_no_import_points_up(file):
    ours = sorted(module for module in imports(file) if room(module) in OURS)
    print(f'{file} -> {", ".join(ours) or "nothing of ours"}')
    assert not forbidden(file)


def test_an_import_that_points_up_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f'{__name__}.REPOSITORY', tmp_path)
    (tmp_path / 'folio').mkdir()
    (tmp_path / 'folio' / 'cli.py').write_text('import os\ndef f():\n    from model import GPT\n')
    assert forbidden('folio/cli.py') == {'model'}
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'bench.py').write_text('import train\nfrom tools import convert\n')
    assert forbidden('tools/bench.py') == {'tools.convert'}


def test_the_model_imports_torch_and_the_standard_library_only():
    assert {room(module) for module in imports('model.py')} <= sys.stdlib_module_names | {'torch'}


def test_the_four_scripts_stand_alone_at_the_top():
    assert sorted(path.name for path in REPOSITORY.glob('*.py')) == SCRIPTS


LINES = 6160


def test_the_house_is_small():
    lines = {file: len((REPOSITORY / file).read_text(encoding='utf-8').splitlines())
             for file in FILES if room(file) != 'docs'}
    print('\n'.join(f'{count:6,} {file}' for file, count in lines.items()))
    assert sum(lines.values()) <= LINES, f'{sum(lines.values()):,} lines'


def is_quiet(node):
    """Whether a statement at the top of a module only defines or imports something."""
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign,
                   ast.AnnAssign)
    text = ast.unparse(node)
    return (isinstance(node, definitions) or text == "if __name__ == '__main__':\n    run(main)"
            or text == "if __name__ == '__main__':\n    cli.run(main)")


@pytest.mark.parametrize('file', CODE, ids=str)
def test_nothing_runs_at_import_time(file):
    body = tree_of(file).body
    if not body:  # an empty __init__.py
        return
    assert ast.get_docstring(tree_of(file)), 'no docstring'
    others = [ast.unparse(node) for node in body[1:] if not is_quiet(node)]
    path = 'sys.path.insert(0, str(Path(__file__).resolve().parents[1]))'
    script = room(file) in ('tools', 'docs') and has_main(file)
    assert others == ([path] if script else [])


def has_main(file):
    """Whether the file is a script."""
    return any(isinstance(node, ast.If) for node in tree_of(file).body)


def test_each_script_has_a_main_that_takes_its_arguments():
    scripts = [file for file in CODE if has_main(file)]
    names = {str(file) for file in scripts if room(file) != 'docs'}
    assert names == {'train.py', 'sample.py', 'prepare.py', *(f'tools/{name}.py' for name in TOOLS)}
    for file in scripts:
        mains = [node for node in tree_of(file).body
                 if isinstance(node, ast.FunctionDef) and node.name == 'main']
        assert [[arg.arg for arg in main.args.args] for main in mains] == [['argv']], file


def test_a_name_means_one_thing_in_the_whole_house():
    homes = {}
    for file in FILES:
        if room(file) != 'docs':
            for node in ast.parse((REPOSITORY / file).read_text(encoding='utf-8')).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != 'main':
                    homes.setdefault(node.name, []).append(file)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
