"""Compiles the one file of C where there is a compiler; without one, Python does its work.

The library lands beside its source, where an editable installation finds it too.
"""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "lmtp_atrest/crypto/checkdigest.c"
LIBRARY = "lmtp_atrest/crypto/libcheckdigest.so"


class BuildHook(BuildHookInterface):  # type: ignore[type-arg]  # of no configuration
    """Called by hatchling before it packs a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; a wheel with the library is one for this platform."""
        if not compiled(Path(self.root, SOURCE), Path(self.root, LIBRARY)):
            self.app.display_warning(f"{SOURCE} was not compiled; sealing a message takes longer")
            return
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform()}"


def compiled(source: Path, library: Path) -> bool:
    """Whether the library is there now; a compiler's complaint is seen with `pip install -v`."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    library.unlink(missing_ok=True)
    if compiler is None:
        return False
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603


def platform() -> str:
    """The wheel's platform tag."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
