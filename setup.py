"""What pyproject.toml cannot say: configs/ is installed as vqvae/configs."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["vqvae*"]), "vqvae.configs"], package_dir={"vqvae.configs": "configs"})
