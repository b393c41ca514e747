# What a person types. Each target sets up what it needs, so that on a new machine with rustup's
# toolchain, python, node and apt any of them works alone. Everything is made under target/
# (or $CARGO_TARGET_DIR), and nothing is written elsewhere in the tree.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup plugins langs peers valgrind build deb demo test test-postgres soak fuzz bench bench-gate bench-record size lint clean

TARGET := $(or $(CARGO_TARGET_DIR),target)
WASM := wasm32-wasip2
# The packages whose tests run natively; the guests are only built, as plugins for the tests.
# Each provider is a crate.
PROVIDERS := $(patsubst plugins/%/Cargo.toml,-p %,$(wildcard plugins/*/Cargo.toml))
# Tests see what is optional as well.
FEATURES := --features keywheel/otel
TESTED := -p keywheel -p keywheel-sdk $(PROVIDERS) -p keywheel-fuzz

# A long soak: seconds, and SOAK_SEED to repeat the kills of an earlier one.
SOAK_SECONDS ?= 600

# Long fuzzing: seconds for each target, and which.
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= $(notdir $(wildcard tests/fuzz/corpus/*))

help:
	@printf '%s\n' \
	  'make demo     build everything and watch Keywheel keep sessions alive' \
	  'make test     all tests, against real servers: Django, OpenID, Matrix, JupyterHub' \
	  'make test-postgres    the part of them that is about stores, on a PostgreSQL server' \
  'make soak     random kills under full load, for $(SOAK_SECONDS) seconds' \
  'make fuzz     libFuzzer on each target of tests/fuzz, $(FUZZ_SECONDS) seconds each' \
	  'make bench    the numbers, into $(TARGET)/bench/summary.json' \
	  'make bench-gate    the part of them that CI holds against host/benches/gate/recorded.json' \
	  'make bench-record  writes that file anew, on a machine that does nothing else' \
	  'make size     what the build weighs, into the same file; with COLD=1 also how long it takes anew' \
	  'make lint     formatting, clippy and documentation, warnings denied' \
	  'make build    the release binary and the plugins' \
	  'make deb      the Debian package of that, into $(TARGET)/debian/' \
	  'make plugins  the plugins alone, into $(TARGET)/providers/' \
	  'make langs    the providers in JavaScript and Python besides; the first time it fetches 450 MB' \
	  'make clean    remove what was built'

# The compiler for the host, one for SQLite's C, and the target of the plugins.
setup:
	@command -v rustup >/dev/null || { \
	  echo 'rustup is missing; hint: https://rustup.rs installs it, with cargo' >&2; exit 1; }
	@cargo --version >/dev/null || { \
	  echo 'cargo does not run; hint: rustup toolchain install, in this folder' >&2; exit 1; }
	@command -v cc >/dev/null || { \
	  if [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y gcc libc6-dev; \
	  else \
	    echo 'a C compiler is missing; hint: apt-get install gcc libc6-dev' >&2; exit 1; \
	  fi; }
	@rustup target list --installed | grep -qx $(WASM) || rustup target add $(WASM) || { \
	  echo 'the target $(WASM), which plugins are built for, could not be added;' \
	    'hint: rustup target add $(WASM), in this folder, shows why' >&2; exit 1; }

plugins: setup
	CARGO_TARGET_DIR=$(abspath $(TARGET)) plugins/build.sh
	cargo build --locked --target $(WASM) --profile plugin -p keywheel-guests --examples

# Twenty seconds of building where the toolchains are there; `make build` does without.
langs:
	CARGO_TARGET_DIR=$(abspath $(TARGET)) plugins/build-langs.sh

peers:
	TARGET_DIR=$(TARGET)/peers tests/peers/setup.sh

build: plugins
	cargo build --locked --release -p keywheel

# The package of that build, for Debian and its kin.
deb: build
	@command -v cargo-deb >/dev/null || [ -x $(TARGET)/tools/bin/cargo-deb ] || { \
	  echo 'cargo-deb is missing; hint: cargo install cargo-deb --locked' >&2; exit 1; }
	host/packaging/build-deb.sh $(TARGET)/release/keywheel $(TARGET)/debian/keywheel.deb

# Without a terminal nobody is there to watch or to end it.
demo: build
	@if [ -t 1 ]; then once=; else once=--once; fi; \
	  $(TARGET)/release/keywheel demo $$once

test: plugins langs peers
	cargo test --locked $(TESTED) $(FEATURES)
	$(MAKE) --no-print-directory test-postgres

# What a store must do, on a PostgreSQL server as well: the tests of the store itself and of what
# is decided over it, kills at every step, and random ones. Left out by name is what a power cut
# does to a file of ours; of the server's own files PostgreSQL takes care.
test-postgres: plugins
	tests/peers/postgres.sh cargo test --locked -p keywheel --lib $(FEATURES) -- \
	  db:: retention:: rotation:: moving:: keys:: registry:: fleet::
	tests/peers/postgres.sh cargo test --locked -p keywheel --test integration $(FEATURES) -- \
	  power_cut:: soak:: recovery:: --skip power_cut_at_its_writes --skip power_cut_at_every_write --skip power_cut_at_their_writes

# The test that every run has for some seconds, here for long; its last line is the figures.
soak: plugins
	SOAK_SECONDS=$(SOAK_SECONDS) cargo test --locked -p keywheel --test integration -- soak:: --nocapture

# One process for each target, so that a finding in one doesn't end the others; all are listed at
# the end. Databases and files of a target go to memory, where there is such a place.
fuzz: setup
	@command -v c++ >/dev/null || { echo 'a C++ compiler is missing; hint: apt-get install g++' >&2; exit 1; }
	cargo build --locked --manifest-path tests/fuzz/engine/Cargo.toml --target-dir $(abspath $(TARGET))/fuzz-engine
	RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/tests/fuzz/instrument.sh \
	  cargo rustc --locked -p keywheel-fuzz --features libfuzzer --bin fuzz -- -Clink-arg=-lstdc++ \
	  -Clink-arg=$$(find $(abspath $(TARGET))/fuzz-engine -name libfuzzer.a -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2)
	@mkdir -p $(TARGET)/fuzz/findings; failed=; [ ! -d /dev/shm ] || export TMPDIR=/dev/shm; \
	for target in $(FUZZ_TARGETS); do \
	  inputs=$(TARGET)/fuzz/$$target; mkdir -p $$inputs; export FUZZ_TARGET=$$target; \
	  FUZZ_SEEDS=$$inputs $(TARGET)/debug/fuzz; \
	  $(TARGET)/debug/fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -use_value_profile=1 \
	    -artifact_prefix=$(TARGET)/fuzz/findings/$$target- $$inputs tests/fuzz/corpus/$$target \
	    2>$(TARGET)/fuzz/$$target.log || failed="$$failed $$target"; \
	  echo "$$target: $$(grep -a '^Done\|panicked\|SUMMARY' $(TARGET)/fuzz/$$target.log | tr '\n' ' ')"; \
	done; \
	[ -z "$$failed" ] || { echo "findings in:$$failed; hint: tests/fuzz/README.md says what to do" >&2; exit 1; }

bench: plugins langs
	TARGET_DIR=$(TARGET)/peers tests/peers/setup.sh bench
	rustup target list --installed | grep -qx wasm32-unknown-unknown || rustup target add wasm32-unknown-unknown
	cargo build --locked --release --manifest-path host/benches/extism/Cargo.toml --target-dir $(abspath $(TARGET))/extism
	cargo build --locked --release --manifest-path host/benches/extism/Cargo.toml --target-dir $(abspath $(TARGET))/extism \
	  --target wasm32-unknown-unknown -p keywheel-bench-extism-plugin
	KEYWHEEL_PROVIDERS=$(abspath $(TARGET))/providers cargo bench --locked -p keywheel \
	  --bench pipeline --bench workers --bench languages
	cargo bench --locked -p keywheel --bench history
	cargo bench --locked -p keywheel --bench scale
	tests/peers/postgres.sh cargo bench --locked -p keywheel --bench fleet
	$(MAKE) --no-print-directory size

# Of what is built already. From nothing it takes minutes, so only who asks for that gets it.
size:
	COLD='$(COLD)' .ci/size.py

# Counts instructions.
valgrind:
	@command -v valgrind >/dev/null || { \
	  if [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y valgrind; \
	  else \
	    echo 'valgrind is missing; hint: apt-get install valgrind' >&2; exit 1; \
	  fi; }

# The host's binary first: its workers are what is measured.
bench-gate: build valgrind
	cargo bench --locked -p keywheel-gate --bench gate -- --check

bench-record: build valgrind
	cargo bench --locked -p keywheel-gate --bench gate -- --record

lint: setup
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets $(FEATURES) -- -D warnings
	cargo clippy --locked -p keywheel --lib --bins --no-default-features -- -D warnings
	cargo clippy --locked --target $(WASM) $(PROVIDERS) --lib -- -D warnings
	cargo clippy --locked --target $(WASM) -p keywheel-guests --examples -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps -p keywheel-sdk

clean:
	cargo clean
