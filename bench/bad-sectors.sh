#!/usr/bin/env bash
# What spares and checksums cost a disk: the ratio to the bare disk of 4 KiB random reads and writes and of 1 MiB sequential ones,
# with 0, 1,000 and 100,000 blocks moved to a spare, and with checksums; and how many instructions a read of 4 KiB takes in the
# program itself (callgrind; else `perf stat`), bare and with as many blocks moved: looking one up must not cost more when there are
# more. For 100,000 blocks --size must be 1024 at least.
#
#   bench/bad-sectors.sh [--rounds N] [--size MIB] [--dir DIR] [--bench PATH] [--entries "0 1000 ..."] [--only "ratio count"]
#
# On --dir two files of --size MiB and a spare are made; on /dev/shm a system call costs least and a layer shows most. The
# program is crates/store/examples/remapbench.rs: cargo build --release -p holdfast-store --example remapbench.
set -euo pipefail
export LC_ALL=C
ROUNDS=7 SIZE=1024 DIR=/var/tmp BENCH=$(dirname "$0")/../target/release/examples/remapbench
ENTRIES="0 1000 100000" ONLY="ratio count"
while [ $# -gt 0 ]; do
  case $1 in
    --rounds) ROUNDS=$2 ;; --size) SIZE=$2 ;; --dir) DIR=$2 ;; --bench) BENCH=$2 ;; --entries) ENTRIES=$2 ;; --only) ONLY=$2 ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
W=$(mktemp -d "$DIR/hfbench.XXXXXX")
trap 'rm -rf "$W"' EXIT
trap 'exit 130' INT TERM

files() { # as large as they must be; the program fills them
  rm -f "$W"/*
  truncate -s "${SIZE}M" "$W/disk" "$W/other"
  truncate -s $((SIZE / 2 + 16))M "$W/spare"
}

instructions() { # bare|with count|count-moved: of one read
  if command -v valgrind >/dev/null; then
    valgrind --tool=callgrind --callgrind-out-file="$W/callgrind" --toggle-collect='*remapbench*counted*' \
      "$BENCH" "$W/disk" "$W/spare" "$1" "$2" >"$W/log" 2>&1 || { cat "$W/log" >&2; exit 1; }
    awk '/^(summary|totals):/ { n = $2 } END { print int(n / 10000) }' "$W/callgrind"
  else # of the whole run: what moving takes is in it, too
    perf stat -x, -e instructions:u "$BENCH" "$W/disk" "$W/spare" "$1" "$2" 2>&1 >/dev/null | awk -F, '/instructions/ { print $1, "in all" }'
  fi
}

echo "# $(date -u +%F) $(nproc) CPUs, $(uname -r), $SIZE MiB in $(stat -f -c %T "$DIR"), $ROUNDS rounds, load $(cut -d' ' -f1 /proc/loadavg)"
for part in $ONLY; do
  case $part in
    ratio)
      for what in $ENTRIES checksums; do
        files
        other=$W/spare
        [ "$what" != checksums ] || other=$W/other
        "$BENCH" "$W/disk" "$other" "$what" "$ROUNDS"
      done ;;
    count)
      bare=
      for n in $ENTRIES; do
        files
        "$BENCH" "$W/disk" "$W/spare" "$n" prepare >/dev/null
        bare=${bare:-$(instructions bare count)}
        line="a read of 4 KiB takes in instructions: bare $bare, with $n blocks moved $(instructions with count)"
        [ "$n" = 0 ] || line+=", of one of these $(instructions with count-moved)"
        echo "$line"
      done ;;
    *) echo "there is no part $part" >&2; exit 2 ;;
  esac
done
