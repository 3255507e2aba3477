#!/usr/bin/env bash
# What a log peer behind a long, lossy line costs its Primary, and how fast it catches up: see crates/testkit/examples/distance.rs.
#
#   bench/distance.sh [--holdfast PATH] [--rtt MS] [--lost-of N] [--line MB/S] [--rounds N] [--seconds S] [--backlog MIB]
#
# Needs fio with its nbd engine.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
HOLDFAST=target/release/holdfast
if [ "${1:-}" = --holdfast ]; then HOLDFAST=$2; shift 2; fi
cargo build -q --release -p holdfast-testkit --example distance
echo "# $(date -u +%F) $(nproc) CPUs, $(uname -r), load $(cut -d' ' -f1 /proc/loadavg)"
exec "${CARGO_TARGET_DIR:-target}/release/examples/distance" "$HOLDFAST" "$@"
