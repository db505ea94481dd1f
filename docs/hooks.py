"""The site shows what its pages link to outside docs/: it gets a copy, and the links are turned to that."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[1]
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """MkDocs calls it with the files in docs/."""
    pages = [file for file in files if file.src_uri.endswith(".md")]
    linked = {name for page in pages for name in _linked(page.content_string, f"docs/{page.src_uri}")}
    for name in sorted(name for name in linked if not name.startswith("docs/")):
        files.append(File.generated(config, name, abs_src_path=str(REPOSITORY / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs calls it with each page."""
    uri = page.file.src_uri
    source = f"docs/{uri}" if (REPOSITORY / "docs" / uri).exists() else uri

    def turn(link: re.Match[str]) -> str:
        target = _resolve(link[1], source).removeprefix("docs/")
        return posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return _LINK.sub(turn, markdown)


def _linked(markdown: str, source: str) -> set[str]:
    return {_resolve(link, source) for link in _LINK.findall(markdown)}


def _resolve(link: str, source: str) -> str:
    """The path in the repository that a link of this document leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
