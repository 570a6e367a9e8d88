"""The subcommands, one file each.

A file's first docstring line is its help line. It defines either `run(cli, **options)`, called with the model, the
datamodule and the trainer that the command line describes (`options` become flags), or `main(argv)`, which stands
alone. `CONTINUES = True` beside `run` says that its `ckpt_path` is a run to go on with, in that run's folder. Files
that begin with an underscore are what several of them share.
"""

import ast
from pathlib import Path

__all__ = ["help_lines"]


def help_lines() -> dict[str, str]:
    """Name and help line of every subcommand, read without importing it."""
    files = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    docs = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in files}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}
