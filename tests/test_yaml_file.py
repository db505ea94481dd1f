"""A YAML file as text with places. Its mistakes are in test_config, where settings are written."""

from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.config.yaml_file import Mistake, Place, read_yaml
from ingestor.errors import ConfigError

TEXT = """\
a: 012
list: [ON, {deep: ~}]
"b c":
  - 'null'
a: again
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.yaml"


def test_every_scalar_is_text_as_written(path: Path) -> None:
    path.write_text(TEXT)
    assert read_yaml(path).data == {"a": "012", "list": ["ON", {"deep": "~"}], "b c": ["null"]}


def test_a_key_and_an_item_know_their_places(path: Path) -> None:
    path.write_text(TEXT)
    assert read_yaml(path).places == {
        ("a",): Place(1, 1),
        ("list",): Place(2, 1),
        ("list", 0): Place(2, 8),
        ("list", 1): Place(2, 12),
        ("list", 1, "deep"): Place(2, 13),
        ("b c",): Place(3, 1),
        ("b c", 0): Place(4, 5),
    }


def test_what_is_not_there_is_placed_above(path: Path) -> None:
    path.write_text(TEXT)
    file = read_yaml(path)
    assert file.place(("list", 1, "missing")) == Place(2, 12)
    assert file.place(("missing",)) == Place(1, 1)


def test_a_mistake_leaves_the_rest_readable(path: Path) -> None:
    path.write_text(TEXT)
    file = read_yaml(path)
    assert file.mistakes == [Mistake(Place(5, 1), "duplicate key `a`: line 1 has it too")]
    assert file.complaint(file.mistakes[0]) == f"{path}:5:1: duplicate key `a`: line 1 has it too"


def test_an_anchor_used_twice_is_no_circle(path: Path) -> None:
    path.write_text("a: &x [1]\nb: [*x, *x]\n")
    assert read_yaml(path).data == {"a": ["1"], "b": [["1"], ["1"]]}


@given(st.binary(max_size=60) | st.text("ab:-[]{}&*!|>'\"%@,#\n\t ?\\xU", max_size=40).map(str.encode))
def test_any_bytes_are_a_mapping_or_a_config_error(content: bytes) -> None:
    with NamedTemporaryFile() as temporary:
        path = Path(temporary.name)
        path.write_bytes(content)
        try:
            file = read_yaml(path)
        except ConfigError as error:
            sentence = str(error)
        else:
            sentence = f"{path}: read"
            assert set(file.data) == {key[0] for key in file.places}
    assert sentence.startswith(f"{path}:")
