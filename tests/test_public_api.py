"""What others build on, written down in `public_api.txt`: a change of it is a decision, and a line in a diff.

`PYTHONPATH=tests python tests/test_public_api.py` writes it anew; CHANGELOG then tells what changed.
"""

import ast
import difflib
import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from prepared import prepared_recording
from prometheus_client.core import Metric

import ingestor
from ingestor import errors
from ingestor.cli.main import COMMANDS, cli
from ingestor.config import Settings
from ingestor.feeds.binance import BINANCE_TRADES
from ingestor.ledger import now_us
from ingestor.live.api import HubCollector, describe_api
from ingestor.live.hub import Hub
from ingestor.live.journal_source import JournalSource
from ingestor.live.subscriptions import Limits
from ingestor.operations.collector import Watch
from ingestor.operations.health import StatusMetrics
from ingestor.schema import FORMAT_VERSION, ORIGIN, TRADES, recorded

GOLDEN = Path(__file__).with_name("public_api.txt")
PACKAGE = Path(ingestor.__file__).parent


def describe_public_api(folder: Path) -> str:
    """All of it as text; `folder` is empty, and gets a recording."""
    sections = {
        "import ingestor": list_functions(),
        "commands": list_commands(),
        "errors and their exit codes": list_errors(),
        "settings": list_settings(Settings.model_json_schema()),
        f"columns (format {FORMAT_VERSION})": list_columns(),
        "facts of the ledger": sorted(set(find_facts())),
        "metrics": list_metrics(folder),
        "paths of ingestor serve": [f"GET {path}" for path in describe_api()["paths"]],
    }
    return "\n\n".join("\n".join([f"# {name}", *lines]) for name, lines in sections.items()) + "\n"


def list_functions() -> Iterator[str]:
    """Names, their parameters and defaults; types are mypy's business."""
    for name in sorted(ingestor.__all__):
        found = getattr(ingestor, name)
        if not callable(found):
            yield name
            continue
        parameters = inspect.signature(found).parameters.values()
        plain = [one.replace(annotation=inspect.Parameter.empty) for one in parameters]
        yield f"{name}{inspect.Signature(plain)}"


def list_commands() -> Iterator[str]:
    for name in sorted(COMMANDS):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        yield " ".join(["ingestor", name, *(_show_parameter(one) for one in command.params)])


def _show_parameter(parameter: click.Parameter) -> str:
    choices = "|".join(parameter.type.choices) if isinstance(parameter.type, click.Choice) else ""
    if isinstance(parameter, click.Argument):
        return parameter.human_readable_name
    names = "/".join([*parameter.opts, *parameter.secondary_opts])
    return f"[{names}{choices and f' {choices}'}]"


def list_errors() -> list[str]:
    found = (one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.IngestorError))
    return sorted(f"{one.exit_code} {one.__name__}" for one in found)


def list_settings(schema: dict[str, Any]) -> list[str]:
    """`storage.rotate.age` of each setting, of a venue's with its type: `feed(binance).stream`."""
    return sorted(set(_walk_settings(schema, schema["$defs"], "")))


def _walk_settings(node: dict[str, Any], definitions: dict[str, Any], path: str) -> Iterator[str]:
    if "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    alternatives = node.get("anyOf", node.get("oneOf", []))
    if "properties" not in node and not any("$ref" in one for one in alternatives):
        yield path
        return
    for one in alternatives:
        if "$ref" in one:
            yield from _walk_settings(one, definitions, path)
    kind = node.get("properties", {}).get("type", {}).get("const")
    place = path and f"{path}({kind})." if kind else path and f"{path}."
    for key, value in node.get("properties", {}).items():
        yield from _walk_settings(value, definitions, f"{place}{key}")


def list_columns() -> Iterator[str]:
    """Of each venue; a feed's own columns stand behind those of all."""
    yield from (f"{field.name} {field.type}" for field in TRADES)
    own = [field for field in recorded(BINANCE_TRADES) if field.name not in TRADES.names]
    yield from (f"{field.name} {field.type} (binance)" for field in own)
    yield f"{ORIGIN.name} {ORIGIN.type} (filled)"


def find_facts() -> Iterator[str]:
    """What the code writes into the ledger, read from the code."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(attr="record"), args=[ast.Constant(value=str(fact)), *_]):
                    yield fact
                case ast.Dict(keys=keys, values=values):
                    pairs = [(_text(key), _text(value)) for key, value in zip(keys, values, strict=True)]
                    yield from (fact for name, fact in pairs if name == "fact" and fact is not None)


def _text(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def list_metrics(folder: Path) -> list[str]:
    """Name, type and labels."""
    lines = []
    for family in collect_metrics(folder):
        labels = sorted({name for sample in family.samples for name in sample.labels if name != "le"})
        lines.append(f"{family.name} {family.type} {' '.join(labels)}".rstrip())
    return sorted(lines)


def collect_metrics(folder: Path) -> list[Metric]:
    """Those of the recorder and of `ingestor serve`, where everything that has a label has a value."""
    with prepared_recording(folder) as recording:
        recording.observed.saw_trades({"AAPL": 1}, now_us())
        recording.gaps.open("connection", now_us())
        recording.gaps.close(now_us())
        recording.recorder.reasons["bad_price"] += 1
        hub = Hub(JournalSource(recording.layout), Limits(1, 1, 1))
        collectors = (StatusMetrics(Watch(recording)), HubCollector(hub))
        return [family for collector in collectors for family in collector.collect()]


def test_the_public_api_is_what_is_written_down(tmp_path: Path) -> None:
    written, found = GOLDEN.read_text(encoding="utf-8"), describe_public_api(tmp_path)
    changes = "\n".join(difflib.unified_diff(written.splitlines(), found.splitlines(), lineterm="", n=0))
    accept = "PYTHONPATH=tests python tests/test_public_api.py"
    assert found == written, f"{changes}\nOthers build on this. If they are to live with the change: {accept}"


def test_the_ledger_says_of_each_fact_what_is_in_it() -> None:
    from ingestor import ledger

    assert ledger.__doc__ is not None
    assert {fact for fact in find_facts() if fact not in ledger.__doc__} == set()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        GOLDEN.write_text(describe_public_api(Path(empty)), encoding="utf-8")
