"""What the tests of lib.explore.private and lib.explore.memorise share: functions that stand in notebook 08."""

import jupytext

from lib import profile


def functions(*names: str) -> list:
    space: dict = {}
    for cell in jupytext.read(profile.ROOT / "notebooks" / "08_private_domain.py").cells:
        wanted = tuple(f"def {name}(" for name in names)
        if cell.cell_type == "code" and cell.source.startswith(("import functools", *wanted)):
            exec(cell.source, space)
    return [space[name] for name in names]
