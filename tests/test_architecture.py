"""What holds for the project as a whole: which way imports run, what is public, and what no file may say."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import workers_module
from workers_module.settings import WorkersSettings, variables

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / ".env.example"


def test_imports_keep_their_contracts() -> None:
    lint = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache', '--no-logo'])"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


class TestPublicNames:
    def test_are_those_the_stub_tells_type_checkers(self) -> None:
        stub = ast.parse((ROOT / "src/workers_module/__init__.pyi").read_text(encoding="utf-8"))
        homes = {
            name.name: f"{node.module}.{name.name}"
            for node in stub.body
            if isinstance(node, ast.ImportFrom)
            for name in node.names
        }

        assert homes.keys() == set(workers_module.__all__)
        for name, home in homes.items():
            module, _, attribute = home.rpartition(".")
            assert getattr(workers_module, name) is getattr(importlib.import_module(module), attribute), name

    def test_one_that_is_not_there_is_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'proccessor'"):
            workers_module.proccessor  # type: ignore[attr-defined]  # noqa: B018

    def test_a_package_of_the_same_name_does_not_hide_the_decorator(self) -> None:
        importlib.import_module("workers_module.job.outcome")

        assert workers_module.job is importlib.import_module("workers_module.di.decorators").job

    def test_are_listed_once(self) -> None:
        assert len(workers_module.__all__) == len(set(workers_module.__all__))

    def test_are_described(self) -> None:
        for name in workers_module.__all__:
            value = getattr(workers_module, name)
            if inspect.isclass(value) or inspect.isroutine(value):
                assert value.__doc__, name


IMPORT = """
import os, sys

class Watched(dict):
    read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.read.add(name)
        return super().get(name, default)

    def __contains__(self, name):
        self.read.add(name)
        return super().__contains__(name)

os.environ = Watched(os.environ)
{statement}
print(*sorted(sys.modules) if "{show}" == "modules" else sorted(Watched.read))
"""


def words_printed(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


class TestImport:
    EXTRAS = (
        "aiosqlite asyncpg fastapi hiredis httpx jinja2 litestar opentelemetry pytest redis rich sqlalchemy starlette "
        "typer uvicorn uvloop yaml"
    )

    def test_brings_no_extra_and_no_driver(self) -> None:
        modules = words_printed(IMPORT.format(statement="import workers_module", show="modules"))

        assert "workers_module" in modules
        assert set(self.EXTRAS.split()) & modules == set()

    def test_reads_no_setting(self) -> None:
        known = {name for variable in variables() for name in variable.names}

        read = words_printed(IMPORT.format(statement="import workers_module, workers_module.settings", show="read"))

        assert known & read == set()

    def test_would_be_seen_to_read_a_setting(self) -> None:
        read = words_printed(IMPORT.format(statement="os.getenv('QUEUE_URL'); 'WORKERS' in os.environ", show="read"))

        assert {"QUEUE_URL", "WORKERS"} <= read


class TestExampleFile:
    LINE = re.compile(r"#?(?P<name>[A-Z][A-Z_]*)=(?P<default>.*)")

    def lines(self) -> list[tuple[str, str, str]]:
        """Name, default and the comment above, of each assignment."""
        text = EXAMPLE.read_text().splitlines()
        return [
            (match["name"], match["default"], text[number - 1])
            for number, line in enumerate(text)
            if (match := self.LINE.fullmatch(line))
        ]

    def test_names_every_variable_once(self) -> None:
        assert sorted(name for name, _, _ in self.lines()) == sorted(variable.name for variable in variables())

    def test_has_the_defaults(self) -> None:
        defaults = {variable.name: variable.default for variable in variables()}
        defaults["QUEUE_URL"] = "sqlite:///jobs.db"

        assert {name: default for name, default, _ in self.lines()} == defaults

    def test_says_what_each_is_for(self) -> None:
        text = EXAMPLE.read_text()

        for variable in variables():
            assert f"# {variable.description}" in text

    def test_names_every_alias(self) -> None:
        text = EXAMPLE.read_text()

        for variable in variables():
            own = f"WORKERS_{variable.path.replace('.', '__').upper()}"
            for name in variable.names:
                assert name == own or re.search(rf"\b{name}\b", text), name

    def test_activates_the_url_alone(self) -> None:
        assert WorkersSettings(_env_file=EXAMPLE).origins == {"queue.uri": f"QUEUE_URL ({EXAMPLE})"}

    def test_says_the_same_with_every_line_active(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        expected = WorkersSettings(queue={"uri": "sqlite:///jobs.db"})
        (tmp_path / ".env").write_text(re.sub(r"(?m)^#(?=[A-Z_]+=)", "", EXAMPLE.read_text()))

        assert WorkersSettings(_env_file=tmp_path / ".env").model_dump() == expected.model_dump()
        assert caplog.text == ""


def files() -> Iterator[Path]:
    """The files of the project: no environments, caches or build results."""
    for path in sorted(ROOT.iterdir()):
        if path.is_file() and path.name != ".git" and (not path.name.startswith(".env") or path == EXAMPLE):
            yield path
        elif path.is_dir() and (path.name in {".ci", ".github"} or not path.name.startswith((".", "build", "dist"))):
            yield from (
                file
                for file in sorted(path.rglob("*"))
                if file.is_file() and not {"__pycache__", "node_modules"} & set(file.parts)
            )


@pytest.mark.parametrize(
    "word",
    # Put together here, or this file would hold them.
    [f"/{'root'}/", f"/{'work'}/", f"pypi{'.org'}", f"pythonhosted{'.org'}", f"npmjs{'.org'}"],
)
def test_no_file_names_this_machine_or_a_package_index(word: str) -> None:
    guilty = [str(file.relative_to(ROOT)) for file in files() if word.encode() in file.read_bytes()]

    assert guilty == []
