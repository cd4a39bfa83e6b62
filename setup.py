"Build script: everything it needs to know stands in settings.ini."
import shlex
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf8")
cfg = config["DEFAULT"]
extras = {name: shlex.split(cfg[f"{name}_requirements"]) for name in ("hf", "dev")}
extras["dev"] += extras["hf"]


class BuildWithResults(build_py):
    "The wheel carries the repository's results, so that `tokenlab papers` and `tokenlab claims` know the verdicts."
    def run(self):
        super().run()
        if self.editable_mode: return
        target = Path(self.build_lib, "tokenlab", "data", "results")
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted((here/"results").glob("*.json")): self.copy_file(str(path), str(target))


setup(
    cmdclass={"build_py": BuildWithResults},
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"], license="Apache-2.0",
    long_description=(here / "README.md").read_text(encoding="utf8") if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    packages=find_packages(include=["tokenlab", "tokenlab.*"]),
    package_data={"tokenlab": ["data/*", "data/**/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=shlex.split(cfg["requirements"]), extras_require=extras,
    entry_points={"console_scripts": shlex.split(cfg["console_scripts"])},
    classifiers=["Programming Language :: Python :: 3", "Intended Audience :: Science/Research"],
    zip_safe=False,
)
