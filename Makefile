# What a person types. Each target sets up what it needs, so that on a new machine with rustup's
# toolchain, python, node and apt any of them works alone. Everything is made under target/
# (or $CARGO_TARGET_DIR), and nothing is written elsewhere in the tree.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup plugins peers build demo test bench lint clean

TARGET := $(or $(CARGO_TARGET_DIR),target)
WASM := wasm32-wasip2
# The packages whose tests run natively; the guests are only built, as plugins for the tests.
TESTED := -p keywheel -p keywheel-sdk -p http-session -p oauth2-refresh

help:
	@printf '%s\n' \
	  'make demo     build everything and watch Keywheel keep sessions alive' \
	  'make test     all tests, against a real Django site and a real OpenID provider' \
	  'make bench    the numbers, into $(TARGET)/bench/summary.json' \
	  'make lint     formatting, clippy and documentation, warnings denied' \
	  'make build    the release binary and the plugins' \
	  'make plugins  the plugins alone, into $(TARGET)/$(WASM)/plugin/' \
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
	cargo build --locked --target $(WASM) --profile plugin -p http-session -p oauth2-refresh --lib
	cargo build --locked --target $(WASM) --profile plugin -p keywheel-guests --examples

peers:
	TARGET_DIR=$(TARGET)/peers tests/peers/setup.sh

build: plugins
	cargo build --locked --release -p keywheel

# Without a terminal nobody is there to watch or to end it.
demo: build
	@if [ -t 1 ]; then once=; else once=--once; fi; \
	  $(TARGET)/release/keywheel demo $$once

test: plugins peers
	cargo test --locked $(TESTED)

bench: plugins
	cargo bench --locked -p keywheel --bench pipeline

lint: setup
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --target $(WASM) -p http-session -p oauth2-refresh --lib -- -D warnings
	cargo clippy --locked --target $(WASM) -p keywheel-guests --examples -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps -p keywheel-sdk

clean:
	cargo clean
