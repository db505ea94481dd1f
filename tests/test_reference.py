"""The reference pages say what the code says: columns, facts, metrics, exit codes.

`PYTHONPATH=tests python tests/test_reference.py` writes the tables that are made from the code.
"""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import REPOSITORY, read
from test_public_api import collect_metrics

from ingestor import errors, ledger
from ingestor.feeds.binance import BINANCE_TRADES
from ingestor.schema import ORIGIN, PACKED_FRAMES, TRADES, recorded

REFERENCE = REPOSITORY / "docs/reference"


def rows(page: str) -> list[list[str]]:
    """The cells of each row of the page's tables, without headings and without backticks around a whole cell."""
    lines = re.findall(r"^\| (.*?) ?\|$", read(f"docs/reference/{page}"), re.MULTILINE)
    cells = [[cell.strip().strip("`") for cell in line.split(" | ")] for line in lines]
    headings = {"column", "fact", "exit code", "metric", "error"}
    return [row for row in cells if row[0] not in headings]


def describe_metrics(folder: Path) -> Iterator[str]:
    yield "| metric | type | labels | meaning |\n|---|---|---|---|"
    for family in sorted(collect_metrics(folder), key=lambda one: one.name):
        total = "_total" if family.type == "counter" else ""
        labels = {name for sample in family.samples for name in sample.labels if name != "le"}
        named = ", ".join(f"`{label}`" for label in sorted(labels))
        yield f"| `{family.name}{total}` | {family.type} | {named} | {family.documentation} |"


def describe_errors() -> Iterator[str]:
    yield "| error | exit code | meaning |\n|---|---|---|"
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.IngestorError):
            meaning = re.sub(r" Exit \d[^.]*\.$", "", " ".join((error.__doc__ or "").split()))
            yield f"| `{error.__name__}` | {error.exit_code} | {meaning} |"


def with_table(page: str, name: str, lines: Iterator[str]) -> str:
    """The page with this table in it."""
    table = "\n".join(lines)
    new, count = re.subn(
        rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda match: f"{match[1]}\n{table}\n\n{match[2]}",
        read(f"docs/reference/{page}"), flags=re.DOTALL,
    )  # fmt: skip
    assert count == 1
    return new


def test_the_columns_are_those_of_the_files() -> None:
    own = [field for field in recorded(BINANCE_TRADES) if field.name not in TRADES.names]
    assert [tuple(row[:2]) for row in rows("columns.md")] == [
        (one.name, str(one.type)) for one in [*TRADES, *own, ORIGIN, *PACKED_FRAMES]
    ]


def test_the_facts_are_those_that_are_recorded() -> None:
    facts = read("tests/public_api.txt").partition("# facts of the ledger\n")[2].partition("\n\n")[0].splitlines()
    assert sorted(row[0] for row in rows("facts.md")) == sorted([*facts, "symbol.proven"])


@pytest.mark.parametrize("row", rows("facts.md"), ids=lambda row: row[0])
def test_each_field_is_one_that_the_ledger_names(row: list[str]) -> None:
    assert ledger.__doc__ is not None
    assert {field for field in re.findall(r"`(\w+)`", f"`{row[1]}`") if field not in ledger.__doc__} == set()


def test_the_metrics_are_those_that_are_exposed(tmp_path: Path) -> None:
    assert with_table("metrics.md", "metrics", describe_metrics(tmp_path)) == read("docs/reference/metrics.md")


def test_the_errors_are_those_of_the_code() -> None:
    assert with_table("exit-codes.md", "errors", describe_errors()) == read("docs/reference/exit-codes.md")


def test_every_exit_code_is_explained() -> None:
    codes = {str(error.exit_code) for error in vars(errors).values() if hasattr(error, "exit_code")}
    assert codes <= {row[0] for row in rows("exit-codes.md")}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        made = with_table("metrics.md", "metrics", describe_metrics(Path(empty)))
    (REFERENCE / "metrics.md").write_text(made, encoding="utf-8")
    (REFERENCE / "exit-codes.md").write_text(with_table("exit-codes.md", "errors", describe_errors()), encoding="utf-8")
