"""Write the metadata that makes the project count as installed in place: `python metadata.py PYPROJECT FOLDER`.

Prefect finds the project's worker types by their entry points; installing it for that would need a build backend.
"""

import sys
import tomllib
from pathlib import Path


def main(pyproject: Path, folder: Path) -> None:
    """Make `crucible.dist-info` in the folder."""
    project = tomllib.loads(pyproject.read_text())["project"]
    info = folder / "crucible.dist-info"
    info.mkdir(exist_ok=True)  # a base image may hold Crucible already
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n")
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
            for group, points in groups.items()
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
