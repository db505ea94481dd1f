"""What a fresh clone of this tree would hold: its files as they are now, without what `.gitignore` names."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from requirements import require

REPOSITORY = Path(__file__).parents[1]


def list_checkout() -> list[str]:
    """Their paths in the repository, sorted; also where its history isn't."""
    git = require("git")
    with tempfile.TemporaryDirectory() as empty:
        subprocess.run([git, "init", "--quiet", "--bare", empty], check=True)
        command = [git, f"--git-dir={empty}", f"--work-tree={REPOSITORY}", "ls-files", "-z", "--others"]
        listed = subprocess.run(
            [*command, "--exclude-standard"], cwd=REPOSITORY, check=True, capture_output=True
        ).stdout
    return sorted(os.fsdecode(name) for name in listed.split(b"\0") if name)


def copy_checkout(target: Path) -> Path:
    """Put them into a new folder; the folder."""
    for path in list_checkout():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / path, target / path)
    return target
