"""The writers of guides, the site of their pages, and the workflow that has them at work at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents import documenter as documenter_module
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


async def test_a_package_with_nothing_public_has_documents_that_say_so(shop: Path, ctx: Context) -> None:
    (shop / "shop" / "carts.py").write_text("def _total(prices): ...\n")

    guide = await write_user_guide(GuideRequest(path=str(shop / "shop")), ctx)

    assert guide.missing == ["public names, in a language that is read"]
    assert guide.markdown.endswith("## Not found\n\n* public names, in a language that is read\n")


REPOSITORIES: dict[str, tuple[dict[str, str], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "JavaScript": (
        {
            "package.json": """{"name": "till", "engines": {"node": ">=20"}, "dependencies": {"express": "^5"},
                               "scripts": {"start": "node lib/till.js"}, "bin": "lib/till.js"}""",
            "README.md": "<p>logo</p>\n\n# Till\n\nIt takes money.\n\n## Usage\n\nRun it.\n\n## License\n\nMIT\n",
            "lib/till.js": """/**
 * Adds prices.
 *
 * @param {number[]} prices
 */

export async function total(prices) {
  return process.env.TILL_CURRENCY + process.env['TILL_TAX']
}
module.exports.close = () => {}
function hidden() {}
""",
            "lib/till.test.js": "export function testTotal() {}\n",
            "node_modules/a/a.js": "export const fetched = 1\n",
        },
        ("# `lib/till.js`", "export async function total(prices)\n```\n\nAdds prices.", "## `close`"),
        ("# Using till", "## Overview\n\nIt takes money.", "## Usage\n\nRun it.", "* `npm run start`: node lib/till.js",
         "* `total`: Adds prices."),
        ("* Node.js >=20", "* express ^5", "* till: lib/till.js", "* TILL_CURRENCY, read in lib/till.js",
         "* TILL_TAX, "),
    ),
    "Go": (
        {
            "go.mod": "module example.org/till\n\ngo 1.22\n\nrequire (\n\tgithub.com/a/b v1.2.3\n"
            "\tgithub.com/c/d v0.1.0 // indirect\n)\n",
            "till.go": "package till\n\n// Total adds prices.\n//\n// Of a cart.\nfunc Total(p []int) int {\n"
            '\tos.Getenv("TILL_TAX")\n}\n\nfunc hidden() {}\n',
            "till_test.go": "func TestTotal(t *testing.T) {}\n",
            "cmd/till/main.go": "package main\n",
            "Makefile": "build: deps ## Build it\n\tgo build\nX := 1\n",
            "Dockerfile": "FROM scratch\nEXPOSE 8080 9090\n",
        },
        ("# `till.go`", "func Total(p []int) int\n```\n\nTotal adds prices.\n"),
        ("* `make build`: Build it", "* `Total`: Total adds prices.", "* a README"),
        ("* Go 1.22", "* github.com/a/b v1.2.3", "* till: go run ./cmd/till", "* TILL_TAX, read in till.go", "* 8080",
         "* Dockerfile"),
    ),
    "Rust": (
        {
            "Cargo.toml": '[package]\nname = "till"\nrust-version = "1.80"\n'
            '[dependencies]\nserde = {version = "1.0"}\n',
            "src/main.rs": "/// Adds prices.\n#[inline]\npub fn total(p: &[i32]) -> i32 {\n"
            '    env::var("TILL_TAX")\n}\nfn hidden() {}\n',
        },
        ("pub fn total(p: &[i32]) -> i32\n```\n\nAdds prices.",),
        ("# Using till",),
        ("* Rust 1.80", "* serde 1.0", "* till: src/main.rs", "* TILL_TAX, read in src/main.rs"),
    ),
    "Java": (
        {
            "pom.xml": "<project/>",
            "src/main/java/Till.java": "/** A till. */\npublic class Till {\n  /** Adds prices. */\n  @Deprecated\n"
            '  public static int total(int[] p) {\n    return System.getenv("TILL_TAX");\n  }\n  void hidden() {}\n}\n',
        },
        ("## `Till`", "A till.", "public static int total(int[] p)\n```\n\nAdds prices."),
        ("* `Till`: A till.",),
        ("## Manifests that were not read\n\n* pom.xml", "* TILL_TAX, ", "## Not found\n\n* requirements\n"),
    ),
    "C, PHP, Ruby and shell": (
        {
            "till.h": "/* Adds prices. */\nint total(const int *p, int n);\nstatic int hidden(void);\nstruct cart {\n",
            "till.php": "<?php\n// Adds prices.\nfunction sum_of($p) {\n",
            "till.rb": "# Adds prices.\ndef sum(p)\n  ENV['TILL_TAX']\nend\n",
            "till.sh": "# Adds prices.\nadd() {\n",
            "composer.json": '{"name": "a/till", "require": {"php": ">=8", "b/c": "^1"}}',
        },
        ("int total(const int *p, int n);\n```\n\nAdds prices.", "## `cart`", "## `sum_of`", "## `sum`", "## `add`"),
        ("* `add`: Adds prices.",),
        ("* PHP >=8", "* b/c ^1", "* TILL_TAX, read in till.rb"),
    ),
    "Python with tests": (
        {
            "setup.cfg": "[metadata]\nname = till\n[options]\npython_requires = >=3.8\ninstall_requires =\n  rich\n",
            "src/till/__init__.py": '"""A till."""\n\n\ndef total() -> int:\n    """Add prices."""\n',
            "tests/test_till.py": "def test_total(): ...\n",
        },
        ("# `till`", "def total() -> int"),
        ("# Using till", "A till.", "* `total`: Add prices."),
        ("* Python >=3.8", "* rich"),
    ),
    "only words": (
        {"README.rst": "Poems, by nobody.\n", ".git/HEAD": "ref"},
        ("# Not found\n\n- source with public names, in a language that is read",),
        ("## Overview\n\nPoems, by nobody.", "* public names, in a language that is read"),
        ("not known: the package is in no project", "* requirements", "* files that build, start or deploy it"),
    ),
    "only broken Python": (
        {"requirements.txt": "flask  # for the web\n-r other.txt\n", "old.py": "print 'hello'\n"},
        ("# Left out\n\n- ", "old.py: "),
        ("## Left out\n\n* ",),
        ("* flask\n",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REPOSITORIES)
async def test_a_repository_of_any_kind_is_documented(kind: str, project: Path, ctx: Context) -> None:
    files, *expected = REPOSITORIES[kind]
    for name, text in files.items():
        (project / "some" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "some" / name).write_text(text)
    path = str(project / "some")

    reference = await generate(DocsRequest(path=path), ctx)
    user, deployment = (
        await write_user_guide(GuideRequest(path=path), ctx),
        await write_deployment_guide(GuideRequest(path=path), ctx),
    )

    pages = [reference.markdown, user.markdown, deployment.markdown]
    for page, lines in zip(pages, expected, strict=True):
        assert [line for line in lines if line not in page] == []
        assert not any(word in page for word in ("hidden", "fetched", "testTotal", "TestTotal", "test_total"))
    assert "License" not in user.markdown
    assert "indirect" not in deployment.markdown


async def test_no_link_out_of_a_repository_is_followed(project: Path, ctx: Context) -> None:
    """Whoever wrote the repository must not read the agent's machine in the site."""
    repository, outside = project / "some", project / "outside"
    repository.mkdir()
    outside.mkdir()
    secret = {"package.json": '{"name": "a-secret"}', "README.md": "a-secret\n", ".env.example": "A_SECRET=1\n"}
    secret |= {"Makefile": "a-secret:\n", "Dockerfile": "EXPOSE a-secret\n", "till.js": "exports.a_secret = 1\n"}
    for name, text in secret.items():
        (outside / name).write_text(text)
        (repository / name).symlink_to(outside / name)
    (repository / "setup.py").symlink_to("/proc/self/environ")
    (repository / "go.mod").write_text("module till\n")

    request = GuideRequest(path=str(repository))
    reference = await generate(DocsRequest(path=request.path), ctx)
    user, deployment = await write_user_guide(request, ctx), await write_deployment_guide(request, ctx)

    pages = f"{reference.markdown} {user.markdown} {deployment.markdown}".lower().replace("_", "-")
    assert "a-secret" not in pages
    assert "path=" not in pages
    assert "a README" in user.missing


SLOW = {
    "README.md": f"# {'#' * 99_999}x\n",
    "till.sh": f"# {' ' * 99_999}x\ntotal() {{\n",
    "till.h": f"int total({')' * 99_999}\n",
    "go.mod": "module till\n" + "\n" * 99_999 + f" a v{'x' * 99_999} // indirect\n",
    ".env.example": "\n" * 99_999,
    "Dockerfile": "\n" * 99_999,
}


@pytest.mark.timeout(30)  # an expression that backtracks over the whole of such a text needs minutes
async def test_no_text_of_a_repository_stops_the_agent(project: Path, ctx: Context) -> None:
    for name, text in SLOW.items():
        (project / name).write_text(text)
    (project / "README.md").write_text(SLOW["README.md"] + f"# Usage ##\n\nRun {'it ' * 999}again.\n")
    (project / "much.js").write_text("exports.much = 1\n" * 99_999)
    request = GuideRequest(path=str(project))

    reference = await generate(DocsRequest(path=request.path), ctx)
    user = await write_user_guide(request, ctx)
    await write_deployment_guide(request, ctx)

    assert "## `total`" in reference.markdown
    assert "## Usage\n\nRun it it " in user.markdown
    assert "it again." in user.markdown
    assert reference.left_out == ["much.js: larger than 1048576 bytes"]


async def test_a_title_of_any_length_fits_into_the_site(project: Path, ctx: Context) -> None:
    (project / "package.json").write_text(f'{{"name": "{"a" * 300}"}}')

    guide = await write_user_guide(GuideRequest(path=str(project)), ctx)

    assert SiteRequest.model_validate({"title": "Site", "pages": [guide.model_dump()]})


async def test_a_long_reference_is_brief_and_then_cut(
    shop: Path, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (shop / "shop" / f"{name}.py").write_text(SHOP)
    whole = await generate(DocsRequest(path=str(shop / "shop")), ctx)
    monkeypatch.setattr(documenter_module, "_MAX_MARKDOWN_BYTES", 600)
    brief = await generate(DocsRequest(path=str(shop / "shop")), ctx)
    monkeypatch.setattr(documenter_module, "_MAX_MARKDOWN_BYTES", 200)
    cut = await generate(DocsRequest(path=str(shop / "shop")), ctx)

    assert "def total" in whole.markdown
    assert brief.markdown.count("- `total`: Return what a cart costs.") == 4
    assert ("def total" in brief.markdown, "More of it" in brief.markdown, brief.left_out) == (False, False, [])
    assert cut.markdown.count("- `total`: ") == 2
    assert cut.left_out == [f"{name}: the reference is too long; ask for it alone" for name in ("c", "carts")]


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
    index = (tmp_path / "sites" / release.name / "index.html").read_text()
    assert "<h2>Not found</h2><ul><li>Deploying shop: ports</li></ul>" in index
    assert (tmp_path / "sites" / release.name / "index.html").is_file()
    assert draw_mermaid(flow).strip() in (ROOT / "docs" / "parallel-docs.md").read_text()


def test_the_stand_in_introduces_a_page_by_its_title() -> None:
    asked = [
        {"role": "system", "content": ""},
        {"role": "user", "content": '{"title": "It", "text": "# A\\n\\nWords."}'},
    ]

    assert introduce(asked).text == "This page is about It. It begins: Words."
