"""What the documents show: their sections, and the commands and snippets in them."""

import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
GUIDES = (
    "README.md",
    *sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "docs").rglob("*.md")),
)
"""What users read."""
DOCUMENTS = (*GUIDES, "ARCHITECTURE.md", "CONTRIBUTING.md")
_BLOCK = re.compile(r"^```(console|bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def split_sections(markdown: str) -> dict[str, str]:
    """Title and text of each part that `## `, `### ` or `#### ` begins, in their order."""
    parts = re.split(r"^#{2,4} (.+)\n", markdown, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(markdown: str, language: str) -> list[str]:
    """The code blocks of this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)


def shell_lines(markdown: str) -> Iterator[str]:
    """What a reader would type: each line of a shell block, of a console block only those after `$ `."""
    for language, block in _BLOCK.findall(markdown):
        for line in block.replace("\\\n", " ").splitlines():
            if language != "console":
                yield line.strip()
            elif line.startswith("$ "):
                yield line.removeprefix("$ ").strip()
