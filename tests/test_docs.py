"""What is written is so: the commands of README and docs/, the example settings, the changelog. What is, is written."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from documents import DOCUMENTS, GUIDES, REPOSITORY, blocks, read, shell_lines, split_sections
from dotenv import dotenv_values

import ingestor
from ingestor.cli.main import COMMANDS, cli
from ingestor.config import Settings, load_settings
from ingestor.config.yaml_file import read_yaml
from ingestor.texts import parse_duration

EXAMPLE = REPOSITORY / "config/ingestor.yaml"
OTHERS = ("enable.idempotence", "enable.gapless.guarantee", "message.timeout.ms", "security.protocol")
"""Options of librdkafka."""
_OPTION_LINE = re.compile(r"^(\s*)#(\w+:)", re.MULTILINE)


def calls(line: str, programs: tuple[str, ...]) -> Iterator[list[str]]:
    """The arguments of each call of one of these programs in a shell line, without redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for token in lexer:
        if set(token) <= set("|&;()<>"):
            commands.append([])
        else:
            commands[-1].append(token)
    for command in commands:
        while command and re.match(r"[A-Z_]+=|(sudo|time|nohup)$", command[0]):
            command.pop(0)
        if command and Path(command[0]).name in programs:
            yield command[1:]


def parse_call(arguments: list[str]) -> None:
    """Reads the arguments as the command line would, and runs nothing. Raises what it would say."""
    name = next((word for word in arguments[:1] if not word.startswith("-")), None)
    try:
        context = cli.make_context("ingestor", list(arguments))
        command = cli.get_command(context, name or "")
        if command is None:
            raise click.UsageError(f"no command {name}")
        command.make_context(name, arguments[1:], parent=context)
    except click.exceptions.Exit:
        return  # --help, --version


def options(command: click.Command) -> set[str]:
    names = {name for parameter in command.params for name in parameter.opts}
    return {name for name in names if name.startswith("--")} - {"--help"}


# README and the code


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_that_is_shown_exists(document: str) -> None:
    for line in shell_lines(read(document)):
        for arguments in calls(line, ("ingestor", "finnhub-ingestor")):
            parse_call(arguments)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_that_is_shown_exists(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for line in shell_lines(read(document)):
        for arguments in calls(line, ("make",)):
            assert {word for word in arguments if "=" not in word} <= targets


def anchors(document: str) -> set[str]:
    """Of its headings, as both GitHub and MkDocs spell them."""
    headings = re.findall(r"^#+ (.+)$", read(document), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", read(document)):
        if link.startswith("https:"):
            continue
        path, _, anchor = link.partition("#")
        target = ((REPOSITORY / document).parent / path).resolve() if path else REPOSITORY / document
        assert target.exists(), link
        assert not anchor or anchor in anchors(str(target.relative_to(REPOSITORY))), link


def test_the_docs_show_what_make_screenshots_makes_in_few_bytes() -> None:
    texts = "\n".join(map(read, GUIDES))
    shown = set(re.findall(r"\]\((?:docs/)?pictures/(\w+\.\w+)\)", texts)) - {"figures.png"}  # of make bench
    assert shown == set(re.findall(r'PLACE / "(\w+\.\w+)"', read("docs/pictures/screenshots.py")))
    assert all((REPOSITORY / "docs/pictures" / name).stat().st_size < 150_000 for name in shown)


def test_readme_is_read_in_some_minutes() -> None:
    assert len(read("README.md").split()) <= 1200


def test_every_page_is_in_the_navigation() -> None:
    site = read("mkdocs.yml")
    pages = [guide.removeprefix("docs/") for guide in GUIDES[1:]]
    assert [page for page in pages if not re.search(rf"- {page}$", site, re.MULTILINE)] == []


@pytest.mark.long
@pytest.mark.needs("mkdocs")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    pages = [page.read_text() for page in (tmp_path / "site").rglob("*.html")]
    assert len(pages) > len(GUIDES)
    loaded = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"?(https?:[^\s\">]+)", "\n".join(pages))
    assert loaded == [], "from the network"


def test_what_make_demo_does_is_shown_by_hand() -> None:
    command = ["make", "--dry-run", "--always-make", "PYTHON=python3", "demo"]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    by_hand = [line for line in shell_lines(split_sections(read("README.md"))["Two commands"]) if ".venv" in line]
    assert len(by_hand) == 3
    for line in by_hand:
        assert any(set(shlex.split(line)) <= set(shlex.split(real)) for real in done.splitlines() if ".venv" in real)


def test_the_service_starts_a_command_that_exists() -> None:
    found = 0
    for line in re.findall(r"^Exec\w+=(.*)$", read("systemd/ingestor.service"), re.MULTILINE):
        for arguments in calls(line, ("ingestor", "finnhub-ingestor")):
            parse_call(arguments)
            found += 1
    assert found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_docs(name: str) -> None:
    lines = [line for guide in GUIDES for line in shell_lines(read(guide))]
    assert [line for line in lines if re.search(rf"\bingestor {name}\b", line)] != []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    text = "\n".join(read(document) for document in (*GUIDES, "ARCHITECTURE.md", "config/ingestor.yaml"))
    missing = {option for option in options(command) if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)}
    assert missing == set()


YAML = [(guide, number, block) for guide in GUIDES for number, block in enumerate(blocks(read(guide), "yaml"), 1)]


@pytest.mark.parametrize(("guide", "number", "block"), YAML, ids=lambda value: str(value)[:30])
def test_settings_that_are_shown_are_accepted(guide: str, number: int, block: str, tmp_path: Path) -> None:
    path = tmp_path / f"{Path(guide).stem}-{number}.yaml"
    for name in re.findall(r"\w+\.txt", block):  # lists of tickers
        (tmp_path / name).write_text("AAPL\n")
    path.write_text(block if "tickers:" in block else f"tickers: [A]\n{block}", encoding="utf-8")
    load_settings(path)


def test_settings_are_shown() -> None:
    assert len(YAML) >= 3


# Troubleshooting


def seen() -> list[str]:
    """What its tables quote in their first column."""
    rows = re.findall(r"^\| ?(.+?) \| ", read("docs/troubleshooting.md"), re.MULTILINE)
    return [quoted.strip() for row in rows for quoted in re.findall(r"`((?:[^`]|`[^`|]+` )+)`", row)]


@pytest.fixture(scope="module")
def source() -> str:
    """The code, with the texts joined that it writes in several lines or with values between."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "ingestor").rglob("*.py"))
    return re.sub(r'"\s*\n\s*f?"', "", code)


@pytest.mark.parametrize("text", seen())
def test_what_troubleshooting_quotes_is_said(text: str, source: str) -> None:
    """Each part between the … that stand for names and numbers."""
    for part in text.split("…"):
        words = part.strip(" :.")
        assert words in source, words


@pytest.mark.parametrize("guide", GUIDES)
def test_settings_facts_and_log_lines_that_are_named_exist(guide: str, source: str) -> None:
    """Whatever is written like `journal.linger`."""
    api = read("tests/public_api.txt")
    named = re.findall(r"`(?!pd\.)([a-z_]+(?:\.[a-z_]+)+)`", read(guide))
    assert [name for name in named if name not in api and name not in source and name not in OTHERS] == []


def test_troubleshooting_quotes() -> None:
    assert len(seen()) > 40


def test_the_changelog_begins_with_this_version() -> None:
    """Below what is not released yet."""
    sections = re.findall(r"^## \[?([^\s\]]+)", read("CHANGELOG.md"), re.MULTILINE)
    assert next(one for one in sections if one != "Unreleased") == ingestor.__version__


# The example settings


def flat(section: dict[str, Any], above: str = "") -> set[str]:
    """`storage.rotate.age` of each setting."""
    found: set[str] = set()
    for key, value in section.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}"}
    return found


def test_the_example_is_the_defaults() -> None:
    settings = load_settings(EXAMPLE)
    assert settings == Settings(tickers=settings.tickers)


def test_the_example_holds_every_setting_with_its_default(tmp_path: Path) -> None:
    uncommented = tmp_path / "ingestor.yaml"
    uncommented.write_text(_OPTION_LINE.sub(r"\1\2", EXAMPLE.read_text()))
    settings = load_settings(uncommented)
    assert settings == Settings(tickers=settings.tickers)
    assert flat(read_yaml(uncommented).data) == flat(settings.model_dump(mode="json"))


def test_the_profile_for_sd_cards_states_its_loss_bound(tmp_path: Path) -> None:
    story, block = re.findall(r"(# Profile for SD cards.*?)\n#\n(.*)", EXAMPLE.read_text(), re.DOTALL)[0]
    profile = tmp_path / "ingestor.yaml"
    profile.write_text("tickers: [A]\n" + re.sub(r"^# {3}", "", block, flags=re.MULTILINE))
    journal = load_settings(profile).journal
    assert journal.sync_interval > Settings(tickers=("A",)).journal.sync_interval
    stated = [parse_duration(bound) for bound in re.findall(r"\blose[s]?\s(?:up to )?(\d+s)", story)]
    assert stated == [journal.linger + journal.sync_interval, journal.linger]


def test_the_example_key_is_empty_and_has_the_name_that_is_read() -> None:
    assert dotenv_values(REPOSITORY / "config/.env.example") == {"FINNHUB_API_KEY": ""}


# That the checks can fail


def test_what_a_reader_would_type() -> None:
    markdown = "```console\n$ make x\nwrote y\n```\n```bash\na \\\n  b  # c\n```\n```python\nno\n```\n"
    assert list(shell_lines(markdown)) == ["make x", "a    b  # c"]
    line = "KEY='a b' .venv/bin/ingestor run --root x > log 2>&1 & ingestor tail | head  # ingestor no"
    assert list(calls(line, ("ingestor",))) == [["run", "--root", "x"], ["tail"]]


@pytest.mark.parametrize("line", ["nope", "check --nope", "init extra", "check --config"])
def test_a_call_that_the_command_line_refuses(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse_call(line.split())


@pytest.mark.parametrize("line", ["--version", "check --help", "check --root x --symbols A,B", "init"])
def test_a_call_that_it_takes(line: str) -> None:
    parse_call(line.split())
