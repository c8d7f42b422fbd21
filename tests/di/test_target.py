"""``module:attribute``: what it may be, and what is said when it is not."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dishka import AsyncContainer

from workers_module.di.target import build_container, child_command, load_target, open_handlers
from workers_module.errors import ConfigurationError

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return what writes a module into the current directory; it is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = set(sys.modules)

    def write(text: str, name: str = "target_app") -> None:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from dishka import AsyncContainer, Container, make_async_container, make_container\n" + text)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("target_"):
            del sys.modules[name]


class TestFinding:
    @pytest.mark.parametrize(
        ("text", "attribute"),
        [
            ("container = make_async_container()", "container"),
            ("def make(): return make_async_container()", "make"),
            ("async def make() -> AsyncContainer: return make_async_container()", "make"),
            ("def make(name='x', *more): return make_async_container()", "make"),
            ("class App:\n    @staticmethod\n    def make(): return make_async_container()", "App.make"),
            ("class App:\n    class Parts:\n        one = make_async_container()", "App.Parts.one"),
        ],
    )
    async def test_a_container_or_what_makes_one(self, write: Write, text: str, attribute: str) -> None:
        write(text)
        container = await build_container(f"target_app:{attribute}")
        assert isinstance(container, AsyncContainer)
        await container.close()

    async def test_modules_in_packages_are_found(self, write: Write) -> None:
        write("", "target_package.__init__")
        write("container = make_async_container()", "target_package.main")
        await (await build_container("target_package.main:container")).close()

    async def test_a_function_makes_one_each_time(self, write: Write) -> None:
        write("def make(): return make_async_container()")
        build = load_target("target_app:make", anew=True)
        assert await build() is not await build()

    def test_the_current_directory_is_put_on_the_path_once(self, write: Write, tmp_path: Path) -> None:
        write("container = make_async_container()")
        load_target("target_app:container")
        load_target("target_app:container")
        assert sys.path.count(str(tmp_path)) == 1

    def test_a_child_is_told_the_target(self) -> None:
        assert child_command("app:make") == (sys.executable, "-m", "workers_module.di.child", "app:make")


class TestFaults:
    async def refused(self, target: str) -> str:
        with pytest.raises(ConfigurationError) as caught:
            await build_container(target)
        return str(caught.value)

    @pytest.mark.parametrize("target", ["app", "app:", ":container", "", "app:c:d", "a-b:c", ".app:c", "app:c()"])
    async def test_another_form_shows_the_right_one(self, target: str) -> None:
        expected = f"{target!r}: expected 'module:attribute', e.g. app.main:container"
        assert await self.refused(target) == expected

    async def test_a_missing_attribute_names_what_is_there(self, write: Write) -> None:
        write(
            "container = make_async_container()\n"
            "def build() -> AsyncContainer: return make_async_container()\n"
            "def unreadable(x: 'Nowhere') -> 'Nothing': ...\n"
        )
        expected = "'target_app:c': target_app has no 'c'; containers there: build, container"
        assert await self.refused("target_app:c") == expected

    async def test_a_missing_attribute_in_an_empty_module(self, write: Write) -> None:
        write("")
        assert (
            await self.refused("target_app:a.b") == "'target_app:a.b': target_app has no 'a.b'; containers there: none"
        )

    async def test_a_missing_module(self, write: Write, tmp_path: Path) -> None:
        text = await self.refused("target_nowhere:c")
        assert text == f"'target_nowhere:c': no module 'target_nowhere' in {tmp_path} or among the installed ones"

    async def test_a_missing_submodule(self, write: Write) -> None:
        write("", "target_package.__init__")
        assert "no module 'target_package.gone'" in await self.refused("target_package.gone:c")

    async def test_a_module_that_misses_another(self, write: Write) -> None:
        write("import target_gone")
        text = await self.refused("target_app:c")
        assert text == "'target_app:c': target_app imports 'target_gone', which is not installed"

    async def test_a_module_that_fails(self, write: Write) -> None:
        write("1 / 0")
        with pytest.raises(ConfigurationError, match="cannot be imported: ZeroDivisionError") as caught:
            await build_container("target_app:c")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("it = 5", "is of type int; expected an AsyncContainer, or a function without parameters"),
            ("it = make_container()", "is a Container (make it with make_async_container)"),
            ("def it(name): ...", "is called without arguments: missing a required argument: 'name'"),
            ("def it(): return 5", "returned of type int"),
            ("async def it(): return make_container()", "returned a Container (make it"),
        ],
    )
    async def test_what_is_no_container(self, write: Write, text: str, words: str) -> None:
        write(text)
        assert words in await self.refused("target_app:it")

    def test_one_container_is_not_built_anew(self, write: Write) -> None:
        write("container = make_async_container()")
        with pytest.raises(ConfigurationError, match="give the name of a function that makes one"):
            load_target("target_app:container", anew=True)

    async def test_an_error_of_the_function_is_its_own(self, write: Write) -> None:
        write("def make(): raise OSError('no disk')")
        with pytest.raises(OSError, match="no disk"):
            await build_container("target_app:make")


APP = """
from collections.abc import AsyncIterator
from dishka import Provider, Scope, provide
from workers_module.di.decorators import job, processor
from workers_module.job.job import Job
from workers_module.module import WorkersModule

closed = []

class Things(Provider):
    @provide(scope=Scope.APP)
    async def thing(self) -> AsyncIterator[str]:
        yield "thing"
        closed.append("thing")

@job(queue="shop")
async def sell(job: Job[int]) -> int: ...

@processor("any")
async def anything(job: Job[None]) -> None: ...

made = []

def make():
    made.append(make_async_container(Things(), WorkersModule.for_root(processors=[sell, anything])))
    return made[-1]

def bare():
    return make_async_container(Things())
"""


class TestHandlers:
    async def test_they_are_found_by_queue_and_name(self, write: Write) -> None:
        write(APP)
        async with open_handlers("target_app:make") as handlers:
            found = await handlers.find("shop", "sell")
            assert found is not None
            assert found.spec.label == "sell"
            catch_all = await handlers.find("any", "whatever")
            assert catch_all is not None
            assert catch_all.spec.label == "anything"
            assert await handlers.find("shop", "buy") is None

    async def test_references_name_kinds(self, write: Write) -> None:
        write(APP)
        async with open_handlers("target_app:make") as handlers:
            assert handlers.kind_of("shop.sell").full_name == "shop.sell"

    async def test_the_container_is_closed_at_the_end(self, write: Write) -> None:
        write(APP)
        async with open_handlers("target_app:make"):
            module = sys.modules["target_app"]
            [container] = module.made
            await container.get(str)
            assert module.closed == []
        assert module.closed == ["thing"]

    async def test_a_container_without_workers_is_refused(self, write: Write) -> None:
        write(APP)
        with pytest.raises(ConfigurationError, match=r"'target_app:bare': its container has no WorkersModule"):
            async with open_handlers("target_app:bare"):
                pass
