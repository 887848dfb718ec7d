"""What importing loads, and which way the arrows between packages point."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dpmodel

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"torch", "jax", "jaxlib", "flax", "optax", "equinox"}
SLOW = FRAMEWORKS | {"h5py", "dargs", "vesin", "rich", "matplotlib", "ase", "scipy"}
OPTIONAL = {"ase", "dpdata", "lmdb", "matplotlib", "mpi4py"}  # of extras: a module of ours may need one at import
LAZY = OPTIONAL | {"dargs", "h5py", "lmdb", "rich", "vesin", "yaml"}  # third-party; may be imported inside a function

# Which packages each part may import besides dpmodel itself and the rest of the world.
FORBIDDEN = {
    "dpmodel": {*FRAMEWORKS, "vesin", "dpmodel.backends"},  # `import vesin` imports torch
    "dpmodel.backends": FRAMEWORKS,
    "dpmodel.backends.pt": {"jax", "jaxlib", "optax", "dpmodel.backends.jax", "dpmodel.backends.pt_expt"},
    "dpmodel.backends.jax": {"torch", "dpmodel.backends.pt", "dpmodel.backends.pt_expt"},
    "dpmodel.backends.pt_expt": {"jax", "jaxlib", "optax", "dpmodel.backends.jax"},
}


def sources() -> dict[str, Path]:
    """Module name -> file, of dpmodel/ and backends/ in the checkout."""
    found = {}
    for package, folder in (("dpmodel", ROOT / "dpmodel"), ("dpmodel.backends", ROOT / "backends")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = file
    return found


SOURCES = sources()
PACKAGES = {name for name, file in SOURCES.items() if file.name == "__init__.py"}


def part_of(module: str) -> str:
    return max((part for part in FORBIDDEN if f"{module}.".startswith(f"{part}.")), key=len)


def absolute(module: str, node: ast.ImportFrom) -> str:
    """The full name that `from ... import` names, with relative dots resolved."""
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    up = node.level - (module in PACKAGES)
    return ".".join([*parts[: len(parts) - up], *((node.module or "").split(".") if node.module else [])])


def imports(module: str, tree: ast.AST) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    """(node, name) of everything that a module imports anywhere, literal import_module calls included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            yield from ((node, f"{base}.{a.name}" if f"{base}.{a.name}" in SOURCES else base) for a in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node, node.args[0].value


def within(name: str, packages: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def parse(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", SOURCES)
def test_arrows_between_packages(module):
    wrong = [
        f"{SOURCES[module].relative_to(ROOT)}:{node.lineno} imports {name}"
        for node, name in imports(module, parse(module))
        if within(name, FORBIDDEN[part_of(module)])
    ]
    assert not wrong


@pytest.mark.parametrize("module", [name for name in SOURCES if within(name, {"dpmodel.backends"})])
def test_backends_import_the_reference_absolutely_and_siblings_relatively(module):
    wrong = []
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.ImportFrom):
            name = absolute(module, node)
            if within(name, {"dpmodel.backends"}) != (node.level > 0):
                wrong.append(f"{SOURCES[module].relative_to(ROOT)}:{node.lineno} imports {name}")
    assert not wrong


@pytest.mark.parametrize("module", SOURCES)
def test_functions_import_third_party_libraries_only(module):
    """An import inside a function may save start-up time; it may not break a cycle."""
    allowed = LAZY if part_of(module) == "dpmodel" else LAZY | FRAMEWORKS
    wrong = []
    for function in ast.walk(parse(module)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node, name in imports(module, function):
                if not isinstance(node, ast.Call) and not within(name, allowed):
                    wrong.append(f"{SOURCES[module].relative_to(ROOT)}:{node.lineno} imports {name}")
    assert not wrong


def test_no_import_cycles():
    graph: dict[str, set[str]] = {}
    for module in SOURCES:
        tree = parse(module)
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        names = {name for node, name in imports(module, tree) if id(node) not in typing_only}
        graph[module] = {name for name in names if name in SOURCES and name != module}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which shows the cycle


def test_the_guard_sees_forbidden_imports():
    tree = ast.parse("import torch.nn\ndef f():\n    from jax import numpy\n    import_module('dpmodel.backends.pt')\n")
    seen = [name for _, name in imports("dpmodel.op", tree)]
    assert sorted(seen) == ["dpmodel.backends.pt", "jax", "torch.nn"]
    assert all(within(name, FORBIDDEN["dpmodel"]) for name in seen)
    assert not within("torchvision", {"torch"})
    relative = ast.parse("from ..pt import bridge").body[0]
    assert absolute("dpmodel.backends.pt_expt.compile", relative) == "dpmodel.backends.pt"
    assert absolute("dpmodel.backends.pt_expt", relative) == "dpmodel.backends.pt"  # a package is one level up already
    assert part_of("dpmodel.backends.pt_expt.compile") == "dpmodel.backends.pt_expt"


def test_import_dpmodel_is_light():
    code = "import sys, json, dpmodel; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert "dpmodel" in loaded
    assert not SLOW & set(loaded)


# Imports every module in a process of its own, forked from one that has loaded nothing of dpmodel.
_EACH_ALONE = """
import importlib, json, os, sys
import numpy, array_api_compat
names, watched = json.loads(sys.argv[1])
problems = {}
for name in names:
    assert not any(loaded.partition(".")[0] == "dpmodel" for loaded in sys.modules)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
            problem = [module for module in watched if module in sys.modules]
        except ModuleNotFoundError as error:
            problem = f"missing {error.name}"
        except BaseException as error:
            problem = repr(error)
        os.write(write, json.dumps(problem).encode()[:4096])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    problem = json.loads(text) if text else "the process died"
    if problem:
        problems[name] = problem
print(json.dumps(problems))
"""


def test_every_module_imports_alone_and_loads_no_framework():
    names = [n for n in SOURCES if part_of(n) == "dpmodel" and not n.endswith("__main__")]
    arguments = json.dumps([names, sorted({*FRAMEWORKS, "vesin"})])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _EACH_ALONE, arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    missing_extras = {f"missing {name}" for name in OPTIONAL}
    problems = {name: text for name, text in json.loads(done.stdout).items() if text not in missing_extras}
    assert not problems


def test_the_installed_package_is_complete():
    """Every source file of the checkout is in what `import dpmodel` finds (a wheel may have missed some)."""
    backends = importlib.util.find_spec("dpmodel.backends")
    assert backends is not None, "dpmodel is not installed: pip install -e ."
    homes = {"dpmodel": Path(dpmodel.__file__).parent, "dpmodel.backends": Path(backends.submodule_search_locations[0])}
    missing = []
    for package, folder in (("dpmodel", ROOT / "dpmodel"), ("dpmodel.backends", ROOT / "backends")):
        for file in folder.rglob("*"):
            if file.suffix in {".py", ".cpp", ".h", ".hpp", ".typed"} or file.name == "CMakeLists.txt":
                relative = file.relative_to(folder)
                if not (homes[package] / relative).is_file():
                    missing.append(f"{package}: {relative}")
    assert not missing
