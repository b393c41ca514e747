#!/usr/bin/env python3
"""What a build weighs, printed and merged into target/bench/summary.json beside the numbers of
`make bench`: binary_mib, deb_mib, dependencies, plugin_largest_kib; cold_release_build_s with
COLD=1 in the environment, which takes minutes and a target folder of its own. What isn't built is
left out, and its number of an earlier run stays."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()
BUILD = ["cargo", "build", "--quiet", "--locked", "--release", "-p", "keywheel"]
TREE = ["cargo", "tree", "--locked", "-p", "keywheel", "-e", "normal,build", "--prefix", "none", "--format", "{p}"]


def stripped(binary):
    """Its size as the package has it: without the lines of backtraces."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "keywheel"
        subprocess.run(["strip", "-o", out, binary], check=True)
        return out.stat().st_size


def dependencies():
    """Crates of the release build: other people's, what builds them included, each version once."""
    said = subprocess.run(TREE, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    crates = {tuple(line.split()[:2]) for line in said.splitlines() if line.strip()}
    return len([crate for crate in crates if crate[0] != "keywheel"])


def rust_providers():
    """The providers that are crates, without the interpreter of templates, which is no provider."""
    for manifest in (ROOT / "plugins").glob("*/Cargo.toml"):
        plugin = TARGET / "providers" / f"{manifest.parent.name}.wasm"
        if manifest.parent.name != "template-provider" and plugin.exists():
            yield plugin.stat().st_size


def cold_build():
    with tempfile.TemporaryDirectory(dir=TARGET, prefix="cold-") as folder:
        # What is downloaded once for good is no part of it.
        subprocess.run(["cargo", "fetch", "--quiet", "--locked"], cwd=ROOT, check=True)
        begun = time.monotonic()
        subprocess.run(BUILD, cwd=ROOT, check=True, env={**os.environ, "CARGO_TARGET_DIR": folder})
        return time.monotonic() - begun


def main():
    numbers = {"dependencies": dependencies()}
    binary = TARGET / "release" / "keywheel"
    if binary.exists() and shutil.which("strip"):
        numbers["binary_mib"] = stripped(binary) / 2**20
    packages = sorted((TARGET / "debian").glob("*.deb"), key=lambda path: path.stat().st_mtime)
    if packages:
        numbers["deb_mib"] = packages[-1].stat().st_size / 2**20
    if sizes := list(rust_providers()):
        numbers["plugin_largest_kib"] = max(sizes) / 2**10
    if os.environ.get("COLD"):
        numbers["cold_release_build_s"] = cold_build()

    summary = TARGET / "bench" / "summary.json"
    summary.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(summary.read_text()) if summary.exists() else {}
    for name, value in numbers.items():
        known[name] = round(value, 3)
        print(f"{name:>34} {value:12.3f}")
    beside = summary.with_suffix(".json.tmp")
    beside.write_text(json.dumps(known, indent=2, sort_keys=True))
    beside.replace(summary)


if __name__ == "__main__":
    main()
