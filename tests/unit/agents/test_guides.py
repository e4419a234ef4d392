"""The writers of guides, the site of their pages, and the workflow that has them at work at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.demo.docs import FLOW, introduce
from agents.documenter import Docs, DocsRequest, documenter, generate
from agents.guides import GuideRequest, deployment_writer, guide_writer, write_deployment_guide, write_user_guide
from agents.publisher import ReleaseRequest, SiteRequest, build, publish, publisher
from coditect import Context
from coditect.errors import InputError
from coditect.workflow.documents.file import load_workflow
from coditect.workflow.expressions import Scope, node_input
from coditect.workflow.render import draw_mermaid
from tests.servers import ROOT
from tests.unit.agents.conftest import Answers

SHOP = '''"""The shop: prices and carts.

More of it.
"""
import os

def total(prices: list[int]) -> int:
    """Return what a cart costs.

    Even an empty one.
    """
    return sum(prices) if os.environ.get("SHOP_OPEN") else int(os.environ["SHOP_CLOSED_TOTAL"])

def _hidden() -> None: ...
'''
PROJECT = """
[project]
name = "shop"
requires-python = ">=3.11"
dependencies = ["uvicorn>=0.54"]
scripts = {shop = "shop.main:main"}
"""


@pytest.fixture
def shop(project: Path) -> Path:
    (project / "shop").mkdir()
    (project / "shop" / "carts.py").write_text(SHOP)
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "Dockerfile").write_text("FROM scratch\n")
    return project


async def test_a_user_guide_says_what_modules_are_for_and_what_public_names_do(shop: Path, ctx: Context) -> None:
    guide = await write_user_guide(GuideRequest(path=str(shop / "shop"), root=str(shop)), ctx)

    assert guide.markdown.startswith("# Using shop\n\n## shop\n\n### carts\n\nThe shop: prices and carts.\n\n")
    assert "* `total`: Return what a cart costs.\n" in guide.markdown
    assert "_hidden" not in guide.markdown
    assert guide.items == 1


async def test_a_deployment_guide_has_requirements_commands_settings_and_files(shop: Path, ctx: Context) -> None:
    guide = await write_deployment_guide(GuideRequest(path=str(shop / "shop"), root=str(shop)), ctx)

    for line in (
        "* Python >=3.11",
        "* uvicorn>=0.54",
        "* shop: shop.main:main",
        "* SHOP_CLOSED_TOTAL, read in carts",
        "* SHOP_OPEN, read in carts",
        "* Dockerfile",
    ):
        assert f"\n{line}\n" in guide.markdown
    (shop / "pyproject.toml").unlink()
    with pytest.raises(InputError, match="no project"):
        await write_deployment_guide(GuideRequest(path=str(shop / "shop"), root=str(shop)), ctx)


async def test_each_writer_asks_for_an_introduction_if_it_is_wanted(shop: Path, ctx: Context, answers: Answers) -> None:
    answers["writers.introduction"] = lambda asked: f"About {asked['title']}."
    path = str(shop / "shop")
    request = GuideRequest(path=path, root=str(shop), introduction=True)

    user, deployment = await write_user_guide(request, ctx), await write_deployment_guide(request, ctx)
    reference = await generate(DocsRequest(path=path, introduction=True), ctx)

    assert user.markdown.startswith("# Using shop\n\nAbout Using shop.\n\n## shop")
    assert deployment.markdown.startswith("# Deploying shop\n\nAbout Deploying shop.\n\n")
    assert "\n\nAbout `" in reference.markdown


async def test_the_deployment_guide_is_about_the_project_of_the_package_and_of_no_other(
    shop: Path, ctx: Context
) -> None:
    """The fleet's folder is a project of its own."""
    (shop / "vendor" / "till" / "src" / "till").mkdir(parents=True)
    (shop / "vendor" / "till" / "src" / "till" / "__init__.py").write_text("def pay(): ...\n")
    (shop / "vendor" / "till" / "pyproject.toml").write_text('[project]\nname = "the-till"\n')
    (shop / "vendor" / "bare").mkdir()
    (shop / "vendor" / "bare" / "bare.py").write_text("def pay(): ...\n")

    titles = {
        path: (await write_deployment_guide(GuideRequest(path=str(shop / path)), ctx)).title
        for path in ("shop", "shop/carts.py", "vendor/till/src/till", "vendor/till", "vendor/bare")
    }

    assert titles == {
        "shop": "Deploying shop",
        "shop/carts.py": "Deploying shop",
        "vendor/till/src/till": "Deploying the-till",
        "vendor/till": "Deploying the-till",
        "vendor/bare": "Deploying bare",
    }
    bare = await write_deployment_guide(GuideRequest(path=str(shop / "vendor" / "bare")), ctx)
    assert "not known: the package is in no project" in bare.markdown


async def test_modules_without_docstrings_are_documented_and_broken_ones_reported(shop: Path, ctx: Context) -> None:
    (shop / "shop" / "carts.py").write_text("def total(prices): ...\nclass Cart: ...\n")
    (shop / "shop" / "old.py").write_text("print 'hello'\n")

    (shop / "shop" / "nul.py").write_bytes(b"x = 1\x00\n")
    (shop / "shop" / "table.py").write_text("TABLE = [" + "1, " * 400_000 + "]\n")

    guide = await write_user_guide(GuideRequest(path=str(shop / "shop")), ctx)
    reference = await generate(DocsRequest(path=str(shop / "shop")), ctx)

    assert "### carts\n\nIt has no description.\n\n* `total`\n* `Cart`" in guide.markdown
    assert guide.items == 2
    assert "## Left out\n\n* " in guide.markdown
    assert "old.py: " in guide.markdown
    assert (reference.objects, reference.documented, len(reference.left_out)) == (3, 0, 3)
    assert all(f"{name}.py: " in reference.markdown for name in ("nul", "old", "table"))


async def test_a_module_is_read_by_its_byte_order_mark_or_coding_line(shop: Path, ctx: Context) -> None:
    (shop / "shop" / "carts.py").write_bytes("\ufeff'Körbe.'\r\ntotal = 1\r\n".encode())
    (shop / "shop" / "old.py").write_bytes("# -*- coding: latin-1 -*-\n'Größen.'\nsize = 1\n".encode("latin-1"))

    guide = await write_user_guide(GuideRequest(path=str(shop / "shop")), ctx)

    assert "Körbe." in guide.markdown
    assert "Größen." in guide.markdown


@pytest.mark.parametrize("table", ['scripts = ["x"]', "dependencies = {a = 1}", "name = 3"])
async def test_an_invalid_project_is_refused_with_the_reason(table: str, shop: Path, ctx: Context) -> None:
    (shop / "pyproject.toml").write_text(f"[project]\n{table}\n")

    with pytest.raises(InputError, match="there is no project"):
        await write_deployment_guide(GuideRequest(path=str(shop / "shop")), ctx)


async def test_a_package_with_nothing_public_is_refused_with_the_reason(shop: Path, ctx: Context) -> None:
    (shop / "shop" / "carts.py").write_text("def _total(prices): ...\n")

    with pytest.raises(InputError, match="nothing public to document"):
        await write_user_guide(GuideRequest(path=str(shop / "shop")), ctx)


def test_pages_whose_titles_are_much_alike_are_all_there() -> None:
    titles = ["Index", "A guide", "a-guide!", "A  Guide", "é", "ö", "long " * 40]
    pages = [{"title": one, "markdown": f"# {one}"} for one in titles]
    files = build(SiteRequest.model_validate({"title": "Site", "pages": pages}))

    assert len({page.name for page in files}) == len(titles) + 1
    assert [page.text.count("<h1>") for page in files] == [1] * len(files)
    assert all(f'href="{page.name}"' in files[0].text for page in files)


def test_a_site_has_a_page_for_each_text_and_html_in_it_stays_text() -> None:
    pages = [{"title": "Using <it>", "markdown": "# Use\n\n<script>x</script>\n", "items": 3}]

    files = {page.name: page.text for page in build(SiteRequest.model_validate({"title": "Docs", "pages": pages}))}

    assert list(files) == ["index.html", "using-it.html"]
    assert 'href="using-it.html">Using &lt;it&gt;</a>' in files["index.html"]
    assert "<script>" not in files["using-it.html"]
    assert "<h1>Use</h1>" in files["using-it.html"]


async def test_the_workflow_fits_its_agents_and_its_picture_is_the_present_one(
    shop: Path, ctx: Context, tmp_path: Path
) -> None:
    agents = (documenter, guide_writer, deployment_writer, publisher)
    known = {one.name for agent in agents for one in agent.capabilities}
    flow = load_workflow(FLOW, capabilities=known)
    nodes = {node.name: node for node in flow.nodes}
    given = {"path": str(shop / "shop"), "folder": str(tmp_path / "sites")}
    scope = Scope(given, {}, {})

    reference = await generate(DocsRequest.model_validate(node_input(nodes["reference"], scope)), ctx)
    guides = GuideRequest.model_validate(node_input(nodes["deployment_guide"], scope))
    results: dict[str, object] = {"reference": Docs.model_dump(reference, mode="json")}
    results["user_guide"] = (await write_user_guide(guides, ctx)).model_dump(mode="json")
    results["deployment_guide"] = (await write_deployment_guide(guides, ctx)).model_dump(mode="json")
    merged = build(SiteRequest.model_validate(node_input(nodes["merge"], Scope(given, results, {}))))
    results["merge"] = [page.model_dump() for page in merged]
    release = publish(ReleaseRequest.model_validate(node_input(nodes["publish"], Scope(given, results, {}))), ctx)

    assert len(release.files) == 4
    assert (tmp_path / "sites" / release.name / "index.html").is_file()
    assert draw_mermaid(flow).strip() in (ROOT / "docs" / "parallel-docs.md").read_text()


def test_the_stand_in_introduces_a_page_by_its_title() -> None:
    asked = [
        {"role": "system", "content": ""},
        {"role": "user", "content": '{"title": "It", "text": "# A\\n\\nWords."}'},
    ]

    assert introduce(asked).text == "This page is about It. It begins: Words."
