"""The blocks of code in README.md and docs/, which tests run."""

import re

from tests.support.commands import ROOT


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)


def command_lines(document: str) -> list[str]:
    """The lines of all blocks of bash."""
    return [line for block in blocks(document, "bash") for line in block.splitlines() if line.strip()]
