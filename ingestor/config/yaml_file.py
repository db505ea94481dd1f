"""A YAML file as text with places: every scalar stays as it is written, every key and item knows its line.

YAML 1.1 reads the tickers `ON` and `NO` as booleans, `NULL` as nothing, `000001` as 1 and `12:30` as 750.
PyYAML's BaseLoader leaves all of them text, and its composed nodes carry their places.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import yaml

from ingestor.errors import ConfigError

_MAX_BYTES = 1 << 20
_MAX_NODES = 100_000
_TAB_INDENT = re.compile(r"^ *\t\s*[^\s#]", re.MULTILINE)

KeyPath = tuple[str | int, ...]
"""The way to a value: keys of mappings, indices of lists."""


class Place(NamedTuple):
    """Where in a file; both count from 1."""

    line: int
    column: int


class Mistake(NamedTuple):
    place: Place
    sentence: str


@dataclass(frozen=True, slots=True)
class YamlFile:
    path: Path
    data: dict[str, object]
    """Mappings, lists and text."""
    places: dict[KeyPath, Place]
    """Of each mapping's key and each list's item."""
    mistakes: list[Mistake]
    """What the text says twice or unclearly; `data` holds the rest."""

    def place(self, path: KeyPath) -> Place:
        """Where `path` stands, or the nearest thing above it that does."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place(1, 1))

    def complaint(self, mistake: Mistake) -> str:
        """`config/ingestor.yaml:9:5: …`"""
        # What a terminal would obey, and what no encoding takes, is escaped.
        sentence = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in mistake.sentence)
        return f"{self.path}:{mistake.place.line}:{mistake.place.column}: {sentence}"


def read_yaml(path: Path) -> YamlFile:
    """The mapping in this file. Raises ConfigError where there is none to read."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file: `ingestor init` writes one, --config names another") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{path}: larger than 1 MB: this is no settings file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = error.object[: error.start].decode()
        _refuse(path, _place_of(good, len(good)), "not UTF-8 from here: save the file as UTF-8")
    if tab := _TAB_INDENT.search(text):
        _refuse(path, _place_of(text, tab.start() + tab[0].index("\t")), "a tab indents this line: use blanks")
    node = _compose(path, text)
    if node is None:
        raise ConfigError(f"{path}: the file is empty: `ingestor init` writes one that works")
    if not isinstance(node, yaml.MappingNode):
        _refuse(path, _place(node), "the file must be a mapping: lines of `key: value`")
    walk = _Walk(path)
    try:
        data = walk.mapping(node, ())
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    return YamlFile(path, data, walk.places, walk.mistakes)


def _compose(path: Path, text: str) -> yaml.Node | None:
    """The tree of the one document. A syntax error ends the parse, so it comes alone."""
    try:
        return yaml.BaseLoader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        keyless = error.problem == "could not find expected ':'"  # noticed only on the line after
        mark = error.context_mark if keyless else error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        problem = error.problem or str(error)
        known = next((sentence for words, sentence in _SYNTAX.items() if words in problem), "{problem}")
        _refuse(path, place, known.replace("{problem}", problem))
    except yaml.reader.ReaderError as error:
        _refuse(path, _place_of(text, error.position), "a control character: delete it")
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except (ValueError, OverflowError):  # PyYAML passes on what `chr` says
        raise ConfigError(f"{path}: an escape (\\U…) in quotes that is no character") from None


_SYNTAX = {
    "found character '\\t'": "a tab: use blanks",
    "cannot start any token": "{problem}: put the value in quotes",
    "undefined alias": "{problem}: put the value in quotes",
    "could not find expected ':'": "no colon follows: write `key: value`, or `- value` in a list",
    "mapping values are not allowed": "a second `key: value` here: quote the value or mend the indentation",
    "expected <block end>": "the indentation doesn't match the lines above",
    "but found another document": "a second document (`---`) begins: one file, one document",
}
"""What PyYAML's words mean, and what to do."""


class _Walk:
    """Turns nodes into plain data and writes down where each came from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[KeyPath, Place] = {}
        self.mistakes: list[Mistake] = []
        self._above: set[yaml.Node] = set()

    def mapping(self, node: yaml.MappingNode, at: KeyPath) -> dict[str, object]:
        self._enter(node)
        found: dict[str, object] = {}
        for key, value in node.value:
            place = _place(key)
            name = self._text(key) if isinstance(key, yaml.ScalarNode) else None
            if name is None:
                self.mistakes.append(Mistake(place, "a key must be text"))
            elif name in found:
                first = self.places[*at, name].line
                self.mistakes.append(Mistake(place, f"duplicate key `{name}`: line {first} has it too"))
            else:
                found[name] = self._value(value, (*at, name), place)
        self._above.remove(node)
        return found

    def _value(self, node: yaml.Node, at: KeyPath, place: Place) -> object:
        self.places[at] = place
        if len(self.places) > _MAX_NODES:
            _refuse(self.path, place, "too many values: anchors that repeat anchors?")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, at)
        if isinstance(node, yaml.ScalarNode):
            return self._text(node)
        self._enter(node)
        items = [self._value(item, (*at, index), _place(item)) for index, item in enumerate(node.value)]
        self._above.remove(node)
        return items

    def _text(self, node: yaml.ScalarNode) -> str:
        text = str(node.value)
        if node.style is None and node.end_mark.line > node.start_mark.line:
            runs_on = "the value runs into the next line: is a `-` or `:` missing there?"
            self.mistakes.append(Mistake(_place(node), runs_on))
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.mistakes.append(Mistake(_place(node), "an escape (\\u…) in quotes that is half a character"))
            return ascii(text)
        return text

    def _enter(self, node: yaml.Node) -> None:
        if node in self._above:
            _refuse(self.path, _place(node), "an anchor that holds itself")
        self._above.add(node)


def _place(node: yaml.Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def _place_of(text: str, index: int) -> Place:
    before = text[:index]
    return Place(before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1)


def _refuse(path: Path, place: Place, sentence: str) -> NoReturn:
    raise ConfigError(f"{path}:{place.line}:{place.column}: {sentence}") from None
