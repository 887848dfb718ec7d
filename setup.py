"""The packages of the wheel: dpmodel/ is `dpmodel`, backends/ is `dpmodel.backends`. All else is in pyproject.toml.

setuptools can map folders to packages (`package-dir`), but not find packages below a mapped folder.
"""

from setuptools import find_packages, setup

ROOTS = {"dpmodel": "dpmodel", "dpmodel.backends": "backends"}

setup(
    packages=[
        name for root, folder in ROOTS.items() for name in (root, *(f"{root}.{p}" for p in find_packages(folder)))
    ]
)
