#!/bin/sh
# The workspace's own crates with libFuzzer's instrumentation, optimised; cargo calls this in
# place of rustc for them alone (RUSTC_WORKSPACE_WRAPPER), so dependencies are built once for
# everything. Overflow checks stay on, as in every development build.
exec "$@" -Copt-level=2 -Ccodegen-units=1 -Cpasses=sancov-module \
  -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares
