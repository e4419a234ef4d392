from collections.abc import Iterable
from pathlib import Path

import pytest

from coditect.local.servers import link_modules

PLUGIN = "rabbitmq_management"


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A RabbitMQ of a package, and the Erlang that it runs on."""
    erlang = tmp_path / "usr/lib/erlang"
    an_application(erlang / "lib/kernel-8.5.3")
    an_application(erlang / "lib/ssl-10.8.7", needs=["kernel", "crypto_that_is_not_here"])
    an_application(erlang / "lib/mnesia-4.21.3", needs=["kernel"])
    an_application(erlang / "lib/wx-2.2")
    (erlang / "bin").mkdir()
    (erlang / "bin/erl").touch(mode=0o755)
    home = tmp_path / "usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8"
    an_application(home / "plugins/rabbit-3.10.8", needs=["ranch", "ssl"])
    an_application(home / "plugins/ranch-2.1.0")
    an_application(home / f"plugins/{PLUGIN}-3.10.8", needs=["rabbit", "cowboy", "mnesia"])
    an_application(home / "plugins/cowboy-2.8.0", needs=["ranch"])
    an_application(home / "plugins/rabbitmq_mqtt-3.10.8", needs=["rabbit"])
    return home / "sbin/rabbitmq-server"


def test_modules_of_a_plugin_are_linked_and_gone_at_a_start_without_it(server: Path, tmp_path: Path) -> None:
    modules, plugins = linked(server, tmp_path, plugins=[PLUGIN])

    assert modules == ["cowboy", "kernel", "mnesia", "rabbit", PLUGIN, "ranch", "ssl"]
    assert plugins == ["cowboy-2.8.0", "rabbit-3.10.8", f"{PLUGIN}-3.10.8"]

    assert linked(server, tmp_path, plugins=[]) == (["kernel", "mnesia", "rabbit", "ranch", "ssl"], ["rabbit-3.10.8"])


def test_broker_that_is_no_package_may_bring_an_erlang_of_its_own(server: Path, tmp_path: Path) -> None:
    modules, _ = linked(server, tmp_path, plugins=[], packaged=tmp_path / "elsewhere")

    assert modules == ["rabbit", "ranch"]


def test_plugin_that_is_not_found_leaves_the_search_to_the_broker(server: Path, tmp_path: Path) -> None:
    assert link_modules(server, "", plugins=[], folder=tmp_path / "node")
    assert not link_modules(server, "", plugins=["in_an_archive"], folder=tmp_path / "node")

    assert not list((tmp_path / "node").iterdir())


def an_application(folder: Path, *, needs: Iterable[str] = ()) -> None:
    name = folder.name.partition("-")[0]
    (folder / "ebin").mkdir(parents=True)
    (folder / f"ebin/{name}.beam").touch()
    needed = ",".join(needs)
    (folder / f"ebin/{name}.app").write_text(f"{{application, {name}, [\n {{applications, [{needed}]}}]}}.\n")


def linked(
    server: Path, tmp_path: Path, *, plugins: Iterable[str], packaged: Path | None = None
) -> tuple[list[str], list[str]]:
    """The modules and the plug-ins that the broker is shown."""
    path, node = str(tmp_path / "usr/lib/erlang/bin"), tmp_path / "node"
    assert link_modules(server, path, plugins=plugins, folder=node, packaged=packaged or tmp_path / "usr/lib/rabbitmq")
    assert all(link.exists() for link in node.glob("*/*"))
    modules, shown = (sorted(link.name for link in (node / name).iterdir()) for name in ("modules", "applications"))
    return [module.removesuffix(".beam") for module in modules], shown
