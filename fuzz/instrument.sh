#!/bin/sh
# Compiles a crate of the workspace so that libFuzzer sees which edges of it an input takes. Cargo calls it
# in the place of rustc (RUSTC_WORKSPACE_WRAPPER); the flags are those of cargo-fuzz without a sanitizer.
case " $* " in
*" --crate-name build_script_"*) exec "$@" ;;
esac
exec "$@" -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares
