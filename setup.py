"""Puts data_modules, experiments and lightning_configs inside of the package; the rest stands in setup.cfg."""

from setuptools import find_packages, setup

#: beside src/ in the source tree, inside the package where it is installed
INSIDE = {f"avprompt.{name}": name for name in ("data_modules", "experiments", "lightning_configs")}

setup(packages=find_packages("src") + list(INSIDE), package_dir={"": "src", **INSIDE})
