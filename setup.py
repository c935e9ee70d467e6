from setuptools import find_packages, setup

setup(
    packages=find_packages("src") + ["avprompt.data_modules"],
    package_dir={"": "src", "avprompt.data_modules": "data_modules"},
)
