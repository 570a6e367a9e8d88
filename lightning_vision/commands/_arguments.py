"""The parser of subcommands that need no model."""

import argparse
from typing import NoReturn

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """An argparse parser whose refusal is a ValueError of one sentence instead of an exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` tells more")
