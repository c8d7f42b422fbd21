"""What the documentation shows runs: each page's Python in one module, in order, and the tests that it defines."""

import asyncio
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

import workers_module
import workers_module.testing
from tests.pages import Block, blocks, execute
from tests.servers import empty_schema, shared_redis
from tools.reference import commands, cron_expressions, settings
from workers_module import CronExpression
from workers_module.cli.app import NOUNS, app
from workers_module.cli.options import HOISTED
from workers_module.settings import variables

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MADE = {DOCS / f"reference/{name}.md" for name in ("commands", "cron-expressions", "settings")}
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page not in MADE]


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


by_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def redis_url(monkeypatch: pytest.MonkeyPatch) -> None:
    url, prefix = shared_redis()
    monkeypatch.setenv("QUEUE_URL", url)
    monkeypatch.setenv("WORKERS_QUEUE__PREFIX", f"{prefix}-docs")


def postgres_url(monkeypatch: pytest.MonkeyPatch) -> None:
    url, schema = empty_schema()
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("QUEUE_URL", f"{url}{'&' if '?' in url else '?'}schema={schema}")


SERVERS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "how-to/redis.md": redis_url,
    "how-to/postgres.md": postgres_url,
}
"""Pages whose `main` runs on a server."""


@pytest.fixture
def module(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A page's blocks in one module."""
    monkeypatch.chdir(tmp_path)
    name = f"page_{page.stem.replace('-', '_')}"
    yield execute(page, name)
    del sys.modules[name]


def run(function: Callable[[], Any]) -> None:
    async def call() -> None:
        result = function()
        if inspect.isawaitable(result):
            await result

    asyncio.run(call())


# The tutorial's blocks are files; test_tutorial plays it.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "tutorial.md"], ids=name_of)
def test_its_python_runs(page: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in list(vars(module).items()):
        if name.startswith("test_"):
            run(value)
    if server := SERVERS.get(name_of(page)):
        server(monkeypatch)
        run(module.main)


@by_page
def test_code_of_other_libraries_is_python(page: Path) -> None:
    for block in blocks(page, "py"):
        assert block.title, f"line {block.line} does not say whose code it is"
        compile(block.text, str(page), "exec")


def typed(block: Block) -> Iterator[list[str]]:
    """Yield the words of each `workers` command of a console block."""
    for line in block.text.splitlines():
        if line.startswith("$ "):
            for part in re.split(r"\s(?:&&|\||>|2>)\s", line.removeprefix("$ ").partition("  #")[0]):
                words = shlex.split(part)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    del words[0]
                if words and words[0] == "workers":
                    yield words[1:]


@by_page
def test_its_commands_exist(page: Path) -> None:
    root: Any = typer.main.get_command(app)
    for block in blocks(page, "console"):
        for words in typed(block):
            context = root.make_context("workers", list(words))
            rest = [*context._protected_args, *context.args]
            name, command, rest = root.resolve_command(context, rest)
            while hasattr(command, "list_commands"):
                context = command.make_context(name, rest, parent=context)
                name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            # Refuses what it does not know, and runs nothing.
            command.make_context(name, rest, parent=context)


class TestReference:
    def test_has_every_command_and_option(self) -> None:
        page = commands()

        assert len(re.findall(r"(?m)^## workers ", page)) == len(NOUNS)
        assert "### workers jobs requeue" in page
        for option in (*HOISTED, "--health-port", "--from-age", "--max-age"):
            assert option in page

    def test_has_every_setting(self) -> None:
        page = settings()

        for variable in variables():
            assert page.count(f"| `{variable.name}` |") == 1

    def test_has_every_pattern(self) -> None:
        page = cron_expressions()

        for expression in CronExpression:
            assert f"| `{expression.name}` | `{expression.value}` |" in page

    def test_describes_every_public_name_once(self) -> None:
        text = "".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "reference/api").glob("*.md")))
        names = re.findall(r"(?m)^::: workers_module\.(\S+)$", text)
        public = [*workers_module.__all__, "testing.plugin.workers"]
        public += [f"testing.{name}" for name in workers_module.testing.__all__]

        assert sorted(names) == sorted(public)


def test_every_page_is_in_the_navigation() -> None:
    def pages(node: object) -> Iterator[str]:
        match node:
            case str():
                yield node
            case list():
                for one in node:  # pyright: ignore[reportUnknownVariableType]
                    yield from pages(one)  # pyright: ignore[reportUnknownArgumentType]
            case dict():
                for one in node.values():  # pyright: ignore[reportUnknownVariableType]
                    yield from pages(one)  # pyright: ignore[reportUnknownArgumentType]
            case _:
                raise AssertionError(node)

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    assert sorted(pages(nav)) == sorted(map(name_of, {*PAGES, *MADE}))
