"""The file system of the emulated machine: this interpreter, this package, the modules, and nothing else.

What Python needs is found by asking it: a fresh interpreter imports what the first process imports, and says what it
has loaded. An archive is a row of files in the format `newc` (Documentation/driver-api/early-userspace/
buffer-format.rst), which is short enough to be written here.
"""

from __future__ import annotations

import json
import marshal
import re
import subprocess
import sys
import sysconfig
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import TYPE_CHECKING

import debugreg
from debugreg.errors import WorldError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LIBRARIES", "build"]

LIBRARIES = "/lib"
"""LD_LIBRARY_PATH of the machine: every shared library lies there."""

# Isolated, without site, writing no byte code: as the first process runs, so that both load the same.
FLAGS = "-ISB"

FIRST = f"""\
#!/usr/bin/python3 {FLAGS}
from debugreg._vm.init import main
main()
"""

LOADED = """\
import sys
sys.path.append(sys.argv[1])
import debugreg._vm.init
files = {m.__spec__.name: m.__file__ for m in sys.modules.values() if m.__spec__ and getattr(m, "__file__", None)}
import json
print(json.dumps(files))
"""


def build(modules: Iterable[Path]) -> bytes:
    """Return the archive.

    Args:
        modules: The kernel modules that are loaded, in this order.

    Raises:
        WorldError: Something that this interpreter runs on cannot be found.
    """
    interpreter = Path(sys.executable).resolve()
    standard = "usr/lib/" + Path(sysconfig.get_path("stdlib")).name
    files: dict[str, bytes] = {"init": FIRST.encode(), "usr/bin/python3": interpreter.read_bytes()}
    objects = [interpreter]
    for name, path in _loaded(interpreter).items():
        if path.suffix == ".so":
            objects.append(path)
            files[f"{standard}/{_folder(name)}{path.name}"] = path.read_bytes()
        elif path.suffix == ".py":
            package = "/__init__" if path.stem == "__init__" and not name.endswith("__init__") else ""
            files[f"{standard}/{name.replace('.', '/')}{package}.pyc"] = _compiled(path)
    # It is looked for as a sign that the installation is whole.
    files[f"{standard}/lib-dynload/.keep"] = b""
    for place, path in _libraries(objects).items():
        files[place] = path.read_bytes()
    for module in modules:
        files[f"modules/{module.name}"] = module.read_bytes()
    return _archive(files)


def _loaded(interpreter: Path) -> dict[str, Path]:
    """Return what the first process loads: modules by name."""
    home = str(Path(debugreg.__file__).parents[1])
    command = [str(interpreter), FLAGS, "-c", LOADED, home]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise WorldError(f"this Python cannot be taken along: {error.stderr.strip()}") from error
    return {name: Path(path) for name, path in json.loads(said).items()}


def _folder(name: str) -> str:
    """Return where in the standard library's folder an extension module lies."""
    parent = name.rpartition(".")[0]
    return parent.replace(".", "/") + "/" if parent else ""


def _compiled(path: Path) -> bytes:
    """Return the byte code of a module, to stand in place of its source (PEP 552: never checked against it)."""
    code = compile(path.read_bytes(), path.name, "exec", dont_inherit=True)
    return MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + marshal.dumps(code)


def _libraries(objects: Iterable[Path]) -> dict[str, Path]:
    """Return the shared libraries of programs and libraries by their places in the machine."""
    said = subprocess.run(["ldd", *map(str, objects)], capture_output=True, text=True, check=True).stdout
    lost = re.search(r"^\s*(\S+) => not found", said, re.MULTILINE)
    if lost:
        raise WorldError(f"this Python cannot be taken along: {lost[1]} is not found")
    found = {f"{LIBRARIES[1:]}/{name}": Path(path) for name, path in re.findall(r"(\S+) => (/\S+) \(", said)}
    # The loader is named by its path.
    return found | {path[1:]: Path(path) for path in re.findall(r"^\s*(/\S+) \(", said, re.MULTILINE)}


def _archive(files: dict[str, bytes]) -> bytes:
    """Return an archive of files, each executable, with the folders in which they lie."""
    folders = {"proc", "sys", "dev"}
    for name in files:
        folders.update(str(parent) for parent in Path(name).parents if parent.name)
    archive = bytearray()
    for name in sorted(folders):
        archive += _entry(name, 0o040755)
    # The kernel opens it for the first process before that has mounted anything.
    archive += _entry("dev/console", 0o020600, device=(5, 1))
    for name, data in files.items():
        archive += _entry(name, 0o100755, data)
    return bytes(archive + _entry("TRAILER!!!", 0))


def _entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    path = name.encode() + b"\0"
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0]
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)
