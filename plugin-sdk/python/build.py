"""Builds a provider into a component. Usage:

    python keywheel/build.py provider.py build/example.wasm

with the Python whose environment has componentize-py. Owns the folder `<output>.stage`, and writes
nothing else. Must never let anything of WASI into the component: a provider has no time, no chance
and no console.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

sys.dont_write_bytecode = True

# What the engine runs: the contract's `guest` is the class `Guest` of the module it is told.
ENTRY = """\
from keywheel.guest import exported
from {module} import provider

Guest = exported(provider)
"""
# Of the layer, what is for the author's own machine.
NATIVE = ("testing.py", "build.py")


def fail(message: str) -> NoReturn:
    print(f"build.py: {message}", file=sys.stderr)
    sys.exit(1)


def main(source: Path, output: Path) -> None:
    tool = Path(sys.executable).with_name("componentize-py")
    if not tool.exists():
        fail(
            f"there is no componentize-py beside {sys.executable}; hint: python -m venv .venv && "
            ".venv/bin/pip install --require-hashes -r requirements.txt, then run this with .venv/bin/python"
        )
    root, layer = source.parent, source.parent / "keywheel"
    sys.path.insert(0, str(root))
    module = source.stem
    provider = getattr(importlib.import_module(module), "provider", None)
    if not isinstance(provider, importlib.import_module("keywheel").Provider):
        fail(f"{source} has no `provider`; hint: its last line is provider = YourProvider()")
    manifest = provider.describe()
    found = importlib.import_module("keywheel.testing").faults(manifest)
    if found:
        fail("the host would refuse this manifest:\n  " + "\n  ".join(found))

    stage = output.with_name(output.name + ".stage")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "wit", *NATIVE)
    shutil.copytree(layer, stage / "keywheel", ignore=ignored)
    for beside in root.glob("*.py"):
        shutil.copy(beside, stage)
    (stage / "entry.py").write_text(ENTRY.format(module=module))

    fresh = output.with_name(output.name + ".tmp")
    command = [tool, "--quiet", "--wit-path", layer / "wit", "--world", "provider", "componentize"]
    command += ["entry", "--python-path", stage, "--stub-wasi", "--output", fresh]
    # No environment of the machine's: it would be looked through for further packages. The seed is
    # that of the component's own hashes, which is fixed when it is built in any case.
    made = subprocess.run(command, env={"PATH": os.defpath, "PYTHONHASHSEED": "0"}, check=False)
    if made.returncode != 0:
        fail("componentize-py gave up; what it says stands above")
    # Whole or not at all: a daemon may be looking.
    fresh.replace(output)
    shutil.rmtree(stage)
    print(f"{output}: {manifest.service}, {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        fail("usage: python keywheel/build.py provider.py build/example.wasm")
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
