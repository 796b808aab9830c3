"""What pyproject.toml has no words for: an installed package has the card's template, which lies at the top, inside."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithCard(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # which finds it where it lies
            self.copy_file("model_card.md", str(Path(self.build_lib) / "ddpm_hf" / "hub"))


setup(cmdclass={"build_py": BuildWithCard})
