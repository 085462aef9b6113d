"""Run a benchmark by its name; without a name, say what there is.

python benchmarks NAME [OPTIONS]
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    sys.path[0] = str(HERE)
    name, *options = sys.argv[1:] or ["--help"]
    scripts = {path.stem: path for path in HERE.glob("**/*.py") if is_script(path)}
    if name not in scripts:
        print((HERE / "README.md").read_text())
        sys.exit(0 if name in ("-h", "--help") else f"there is no benchmark called {name}")
    sys.argv = [str(scripts[name]), *options]
    runpy.run_path(str(scripts[name]), run_name="__main__")


def is_script(path: Path) -> bool:
    """Whether a file can be run; the others are parts of scripts."""
    return path != Path(__file__).resolve() and '__name__ == "__main__"' in path.read_text()


if __name__ == "__main__":
    main()
