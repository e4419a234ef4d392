"""Whether the stub, and what our adapter calls, is the surface of the binding that is installed.

The binding cannot be imported whole without its native library, so its source is read.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.store.fdb import load_binding
from tests import fdb_stub
from tests.fdb_stub import FdbStub


def _source(module: str) -> ast.Module:
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return ast.parse(Path(found.origin).read_text(encoding="utf-8"))


fdb = load_binding()
IMPL = _source("fdb.impl")
OPTIONS = importlib.import_module("fdb.fdboptions")


def _parameters(function: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in function.args.args]


def _methods(name: str) -> dict[str, list[str]]:
    """Of a class of the binding and of those that it inherits from within it."""
    classes = {node.name: node for node in IMPL.body if isinstance(node, ast.ClassDef)}
    found: dict[str, list[str]] = {}
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found |= _methods(base.id)
    return found | {one.name: _parameters(one) for one in classes[name].body if isinstance(one, ast.FunctionDef)}


@pytest.mark.parametrize("stub", [fdb_stub._TransactionRead, fdb_stub.Transaction])
def test_the_stub_s_transactions_have_the_methods_of_the_binding_s(stub: type) -> None:
    real = _methods(stub.__name__.lstrip("_"))
    mutations = {name.lower() for name in OPTIONS.MutationType}
    public = [
        (name, method)
        for name, method in inspect.getmembers(stub, inspect.isfunction)
        if not name.startswith("_") and name != "view"
    ]

    assert {"get", "get_range", "get_read_version"} <= {name for name, _ in public}
    for name, method in public:
        named = list(inspect.signature(method).parameters)
        assert named == real.get(name, ["self", "key", "param"] if name in mutations else None) or (
            name == "on_error" and real[name] == ["self", "error"]
        ), name


def test_the_binding_has_the_options_that_we_choose() -> None:
    network = {f"set_{name.lower()}" for name in OPTIONS.NetworkOption}
    transaction = {f"set_{name.lower()}" for name in OPTIONS.TransactionOption}
    tls = {"set_tls_password", "set_tls_cert_path", "set_tls_key_path", "set_tls_ca_path", "set_tls_verify_peers"}

    assert tls <= network
    assert "set_timeout" in transaction
    assert OPTIONS.StreamingMode["want_all"][0] == fdb_stub.StreamingMode.want_all
    assert isinstance(b"", OPTIONS.NetworkOption["TLS_verify_peers"][2])


def test_the_module_has_the_functions_of_the_stub() -> None:
    opened = [node for node in IMPL.body if isinstance(node, ast.FunctionDef) and node.name == "open"]

    assert _parameters(opened[0])[0] == next(iter(inspect.signature(FdbStub().open).parameters)) == "cluster_file"
    assert list(inspect.signature(fdb.api_version).parameters) == ["ver"]
    assert "create_transaction" in _methods("Database")
    assert {"FDBError", "KeyValue", "Value"} <= {node.name for node in IMPL.body if isinstance(node, ast.ClassDef)}


def run(program: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_binding_needs_no_native_library_and_leaves_no_importer_behind() -> None:
    run(
        "import sys; from dispatcher.store.fdb import load_binding; load_binding(); import fdb.subspace_impl; "
        "assert all(hasattr(finder, 'find_spec') for finder in sys.meta_path)"
    )


def test_dispatcher_on_another_store_needs_no_binding_and_one_on_foundationdb_says_how_to_install_it() -> None:
    run(
        "import sys; sys.modules['fdb'] = None\n"
        "import dispatcher\n"
        "from coditect.errors import SetupError, install_command\n"
        "from dispatcher.store.fdb import FdbDatabase\n"
        "try: FdbDatabase()\n"
        "except SetupError as error: assert install_command('fdb') in str(error), error\n"
        "else: raise AssertionError"
    )
