"""What the tests of a notebook's own functions share."""

import ast
from types import SimpleNamespace

import pytest

from lib import profile


def defined(stem: str, *names: str) -> SimpleNamespace:
    """What a notebook's source defines under these names, behind its imports."""
    if not (path := profile.ROOT / "notebooks" / f"{stem}.py").exists():
        pytest.skip(f"notebook {stem} was taken out", allow_module_level=True)
    tree, space = ast.parse(path.read_text(encoding="utf-8")), {}
    for node in tree.body:
        assigned = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else getattr(node, "name", "")
        if isinstance(node, ast.Import | ast.ImportFrom) or assigned in names:
            exec(ast.unparse(node), space)
    return SimpleNamespace(**{name: space[name] for name in names})
