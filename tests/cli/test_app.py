"""The root: its options, its exit codes, and what it costs to ask for help."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from workers_module import __version__
from workers_module.cli.app import NOUNS
from workers_module.cli.options import hoist
from workers_module.cli.session import known

LINES = [
    *("start", "run", "stats", "queues", "jobs", "cron", "workers", "locks"),
    *("check", "doctor", "health", "config", "generate", "migrations", "shell"),
]


class TestHelp:
    def test_names_every_command(self, bare: Cli) -> None:
        text = bare.ok("--help")

        assert list(NOUNS) == LINES
        assert all(f"  {name} " in text for name in NOUNS)

    @pytest.mark.parametrize("name", LINES)
    def test_each_command_has_some(self, bare: Cli, name: str) -> None:
        assert "Usage: " in bare.ok(f"{name} -h")

    @pytest.mark.parametrize("line", ["start", "jobs list", "queues clean", "cron next", "jobs purge"])
    def test_calls_values_by_words_and_not_by_types(self, bare: Cli, line: str) -> None:
        options = [part for part in bare.ok(f"{line} -h").split() if part.startswith("<")]

        assert not options

    def test_version(self, bare: Cli) -> None:
        assert bare.ok("-V") == f"workers_module {__version__}\n"

    def test_imports_nothing_that_takes_time(self) -> None:
        code = (
            "import sys; sys.argv = ['workers', '--help']\n"
            "from workers_module.cli.app import app\n"
            "try: app()\n"
            "except SystemExit: pass\n"
            "slow = {'pydantic', 'dishka', 'redis', 'croniter', 'rich', 'yaml', 'uvicorn'} & sys.modules.keys()\n"
            "sys.exit(', '.join(sorted(slow)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

        assert done.stderr.strip() == ""
        assert "Commands:" in done.stdout


class TestOptionsOfEveryCommand:
    @pytest.mark.parametrize(
        ("line", "becomes"),
        [
            ("jobs list --json", "--json jobs list"),
            ("jobs list --url sqlite:///a.db --limit 3", "--url sqlite:///a.db jobs list --limit 3"),
            ("start -w -e production", "-e production start --worker="),
            ("start --worker gpu,cpu --only a", "start --worker=gpu,cpu --only a"),
            ("stats --watch", "stats --watch=2s"),
            ("stats --watch --wide", "stats --watch=2s --wide"),
            ("stats --watch 1s", "stats --watch=1s"),
            ("start --worker=gpu --app=a:b", "--app=a:b start --worker=gpu"),
            ("jobs add a b -- --json", "jobs add a b -- --json"),
            ("stats --url", "--url stats"),
        ],
    )
    def test_may_stand_behind_it(self, line: str, becomes: str) -> None:
        assert hoist(line.split()) == becomes.split()

    def test_url_wins_over_the_environment(self, cli: Cli, here: Path) -> None:
        cli.add("mail", "send", {"to": "ann"})
        cli.ok("migrations up", "--url", f"sqlite:///{here}/other.db")

        assert cli("jobs list --json", "--url", f"sqlite:///{here}/other.db").json == []
        found = cli("config show --json", "--url", f"sqlite:///{here}/other.db").json
        assert next(one for one in found if one["variable"] == "QUEUE_URL")["source"] == "--url"

    def test_environment_chooses_files(self, bare: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (here / "workers.staging.toml").write_text('concurrency = 7\n[queue]\nuri = "sqlite:///staging.db"\n')

        found = {one["variable"]: one for one in bare("config show --changed --json -e staging").json}

        assert found["WORKERS_CONCURRENCY"]["value"] == "7"
        assert found["WORKERS_CONCURRENCY"]["source"].endswith("workers.staging.toml)")


class TestErrors:
    @pytest.mark.parametrize(
        ("line", "code", "says"),
        [
            ("", 2, "Usage"),
            ("jibs", 2, "Did you mean 'jobs'?"),
            ("strat", 2, "Did you mean 'stats' or 'start'?"),
            ("xyz", 2, "There are: start, run"),
            ("jobs liszt", 2, "Did you mean 'list'?"),
            ("jobs list --colour", 2, "--colour"),
            ("jobs list", 3, "set QUEUE_URL, or pass --url"),
            ("stats", 3, "set QUEUE_URL, or pass --url"),
            ("check", 3, "pass --app module:attribute"),
            ("start --worker", 3, "pass --app module:attribute"),
            ("check --app shop", 3, "expected 'module:attribute'"),
            ("check --app nowhere:app", 3, "no module 'nowhere'"),
            ("check --app json:dumps", 3, "is called without arguments"),
            ("check --app tests.cli.shop:nothing", 3, "containers there: broken, make_container"),
            ("check --app tests.cli.shop:broken", 3, "cannot be built: RuntimeError: the database has no host"),
            ("jobs list --url mysql://host/db", 3, "unknown scheme 'mysql'"),
            ("jobs list --url redis://127.0.0.1:1/0", 4, "127.0.0.1:1"),
            ("jobs list --url sqlite:////nowhere/at/all.db", 4, "/nowhere/at/all.db: there is no such file"),
            ("jobs add mail send --url sqlite:////nowhere/at/all.db", 3, "make it first"),
            ("health", 3, "set WORKERS_HEALTH__PORT"),
            ("health --port 1 --timeout 0.5", 1, "no worker answers on 127.0.0.1:1"),
            ("health --probe dead", 2, "live, ready, startup"),
        ],
    )
    def test_are_a_line_and_an_exit_code(
        self, bare: Cli, line: str, code: int, says: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))

        done = bare(line)

        assert done.code == code, done.err
        assert says in done.err + done.out
        assert "Traceback" not in done.err

    def test_have_a_traceback_when_asked(self, bare: Cli) -> None:
        assert "Traceback" in bare("check --app nowhere:app -v").err

    def test_of_a_broken_project_file(self, bare: Cli, here: Path) -> None:
        (here / "pyproject.toml").write_text("[tool.workers\n")

        done = bare("check")

        assert (done.code, "pyproject.toml: cannot be read" in done.err) == (3, True)

    def test_names_that_are_nearly_right(self) -> None:
        with pytest.raises(Exception, match=r"no queue 'maill'; did you mean 'mail'\?"):
            known("queue", "maill", ["mail", "slow"])


class TestTarget:
    @pytest.mark.parametrize(
        ("file", "text", "line", "source"),
        [
            ("pyproject.toml", '[tool.workers]\napp = "tests.cli.shop:make_container"\n', "", "pyproject.toml"),
            (
                "workers.toml",
                'app = "tests.cli.shop:make_container"\n',
                "",
                "WORKERS_APP (app in workers.toml)",
            ),
            ("notes.txt", "", "--app tests.cli.shop:make_container", "--app"),
        ],
    )
    def test_is_told_with_its_source(
        self, bare: Cli, here: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, line: str, source: str
    ) -> None:
        monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
        (here / file).write_text(text)

        found = {one["variable"]: one for one in bare(f"config show --changed --json {line}").json}

        assert (found["WORKERS_APP"]["value"], found["WORKERS_APP"]["source"]) == (
            "tests.cli.shop:make_container",
            source,
        )

    def test_may_stand_in_the_project_file(self, url: str, bare: Cli, here: Path) -> None:
        (here / "pyproject.toml").write_text('[tool.workers]\napp = "tests.cli.shop:make_container"\n')

        assert "all in order" in bare.ok("check", "--app-dir", str(Path(__file__).parents[2]))


class TestWithoutTheExtra:
    def test_one_line_says_how_to_install_it(self, here: Path) -> None:
        code = (
            "import sys, importlib.util as util; real = util.find_spec\n"
            "util.find_spec = lambda name, *rest: None if name == 'typer' else real(name, *rest)\n"
            "from workers_module.__main__ import main; main()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

        assert done.returncode == 3
        assert done.stderr == "workers needs typer; install it: pip install 'workers_module[cli]'\n"


class TestAStoreThatIsNotThere:
    """A mistyped URL is found out; a new, empty store behind it would look like lost jobs."""

    LOOKS = (
        *("stats", "stats --watch 1s", "queues list", "jobs list", "jobs show 1", "jobs watch", "workers list"),
        *("locks list", "cron list", "doctor", "jobs retry 1", "jobs tidy", "jobs purge", "jobs dump --folder d"),
        *(
            "jobs requeue --from-age 1m",
            "jobs import --file d.json --dry-run",
            "queues pause mail",
            "cron pause nightly",
        ),
    )

    @pytest.mark.parametrize("line", LOOKS)
    def test_is_not_made_by_a_look(self, cli: Cli, here: Path, line: str) -> None:
        before = sorted(here.iterdir())

        done = cli(line, "--url", "sqlite:///jbos.db")

        assert done.code == 4
        assert "jbos.db: there is no such file" in done.err
        assert "workers config show" in done.err
        assert sorted(here.iterdir()) == before

    def test_nor_are_tables_in_a_file_of_others(self, cli: Cli, here: Path) -> None:
        with closing(sqlite3.connect(here / "shop.db")) as db:
            db.execute("CREATE TABLE wares (id)")
            db.commit()
        before = (here / "shop.db").read_bytes()

        done = cli("stats --url sqlite:///shop.db")

        assert (done.code, "shop.db: has no tables of workers_module" in done.err) == (4, True)
        assert (here / "shop.db").read_bytes() == before

    @pytest.mark.parametrize("line", ['jobs add mail send \'{"to": "ann"}\'', "cron sync", "migrations up"])
    def test_is_made_by_what_writes_to_it(self, cli: Cli, line: str) -> None:
        cli.ok(line, "--url", "sqlite:///fresh.db")

        assert cli("queues list --json --url sqlite:///fresh.db").code == 0
