"""Refuse an installation that is not editable: weights, presets and scripts stay in the repository."""

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class RefuseWheel(bdist_wheel):
    """Stops `pip install .`, which would put `utils`, `nets` and `data` into site-packages without the weights."""

    def run(self) -> None:
        raise SystemExit("error: install in editable mode: pip install -e .   (with extras: pip install -e '.[serve]')")


setup(cmdclass={"bdist_wheel": RefuseWheel})
