#!/usr/bin/env bash
# A resource with a journal beside what its disk allows, in one run, all on the filesystem of --dir:
#   bare     fio on a preallocated file that was written once: in place, fdatasync after each write
#   append   fio writing one such file from its beginning on, one write and fdatasync after the other
#   group    fio writing so many blocks with one O_DIRECT+O_DSYNC write: what grouping them allows at best
#   nbdkit   nbdkit's file plugin, in place, through NBD
#   wire     holdfast, a resource without a journal in /dev/shm: what the same client gets of a disk that costs nothing
#   plain    holdfast, a resource without a journal, through NBD
#   journal  holdfast, a resource with a journal on the same filesystem, through NBD
#   log      what the journal itself takes, without anybody's way there (crates/journal/examples/logbench.rs)
# Prints medians of operations a second, and ratios; then what an overwrite-heavy load writes to the disk below the journal.
#
#   bench/journal.sh [--rounds N] [--secs S] [--size MIB] [--journal MIB] [--dir DIR] [--holdfast PATH] [--load PATH]
#                    [--only "..."]
#
# Parts (--only): sync1 sync4 sync16 (4 KiB random writes, each followed by a flush, 1, 4 and 16 at a time), fua1 fua16 (writes that
# are durable by themselves, with the lean client crates/nbd/examples/load.rs), queue16 (the same, 16 under way on one connection, as
# a block device has them), async32 (without a flush, 32 under way), overwrite (64 MiB, written to at random all over), recover
# (kill -9 with the journal full, time until it is Primary).
# The block device below --dir must be in /proc/diskstats for `overwrite`. Needs the examples load and logbench, built for release,
# fio with its nbd engine, nbdkit, nbdinfo, python3.
set -euo pipefail
export LC_ALL=C
. "$(dirname "$0")/lib.sh"
ROUNDS=5 SECS=2 SIZE=1024 JOURNAL=1024 DIR=/var/tmp HOLDFAST=$(dirname "$0")/../target/release/holdfast
LOAD=$(dirname "$0")/../target/release/examples/load
LOGBENCH=$(dirname "$0")/../target/release/examples/logbench
ONLY="sync1 sync4 sync16 fua1 fua16 queue16 async32 overwrite recover"
ON_CLIENT=()
while [ $# -gt 0 ]; do
  case $1 in
    --rounds) ROUNDS=$2 ;; --secs) SECS=$2 ;; --size) SIZE=$2 ;; --journal) JOURNAL=$2 ;; --dir) DIR=$2 ;;
    --holdfast) HOLDFAST=$2 ;; --load) LOAD=$2 ;; --only) ONLY=$2 ;;
    *) sed -n '2,21s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
W=$(mktemp -d "$DIR/hfbench.XXXXXX")
export HOLDFAST_SOCKET=$W/control.sock
DAEMON='' NBDKIT='' WIRE=/dev/shm/hfbench.$$
cleanup() {
  for pid in $DAEMON $NBDKIT; do kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done
  rm -rf "$W" "$WIRE"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

start_daemon() {
  "$HOLDFAST" daemon --name bench --state-dir "$W/state" --socket "$HOLDFAST_SOCKET" --listen 127.0.0.1:0 >>"$W/log" 2>&1 &
  DAEMON=$!
  for _ in $(seq 300); do "$HOLDFAST" -q status >/dev/null 2>&1 && return; sleep 0.1; done
  cat "$W/log" >&2; exit 1
}

uri() {
  case $1 in nbdkit) echo "nbd+unix:///?socket=$W/nbdkit.sock" ;; *) echo "nbd+unix:///$1?socket=$W/nbd.sock" ;; esac
}

lean() { # WHO CONNECTIONS DEPTH: as with_fio
  "$LOAD" "$(uri "$1")" --op fua --connections "$2" --depth "$3" --seconds "$SECS" | python3 -c '
import json, sys
j = json.load(sys.stdin)
print(j["iops"], j["mbps"], j["p50"], j["p99"], j["ops"])'
}

on_file() { # FILE OPTIONS: as with_fio, for a file
  local file=$1; shift
  fio --name=w --filename="$file" --size="${SIZE}M" --group_reporting --norandommap --randrepeat=0 --time_based --runtime="$SECS" \
    --percentile_list=50:99 --output-format=json "$@" 2>/dev/null | python3 -c '
import json, sys
t = sys.stdin.read(); j = json.loads(t[t.index("{"):])["jobs"][0]; d = j["write"]
assert not j["error"] and d["total_ios"], "fio failed"
p = d["clat_ns"]["percentile"]
print(d["iops"], d["bw_bytes"] / 1e6, p["50.000000"] / 1e3, p["99.000000"] / 1e3, d["total_ios"])'
}

run() { # WHO PART: IOPS ...
  local n=${2#sync}
  case $1-$2 in
    log-*) "$LOGBENCH" "$W" 128 "${2#fua}" | awk '{ print $1, $1 * 4096 / 1e6, $2, $2, 1 }' ;;
    bare-sync*) on_file "$W/bare" --ioengine=psync --rw=randwrite --bs=4k --fdatasync=1 --thread --numjobs="$n" ;;
    append-sync*) on_file "$W/bare" --ioengine=psync --rw=write --bs=4k --fdatasync=1 ;;
    group-sync*) # as many writes a second as blocks that come in one
      on_file "$W/bare" --ioengine=psync --rw=write --bs=$((4 * n))k --direct=1 --sync=dsync | awk -v n="$n" '{ $1 *= n; print }' ;;
    group-fua*) run group "sync${2#fua}" ;;
    group-queue*) run group "sync${2#queue}" ;;
    *-fua*) lean "$1" "${2#fua}" 1 ;;
    *-queue*) lean "$1" 1 "${2#queue}" ;;
    nbdkit-sync* | wire-sync* | plain-sync* | journal-sync*) with_fio "$(uri "$1")" --rw=randwrite --bs=4k --iodepth=1 --numjobs="$n" --fsync=1 ;;
    bare-async32) on_file "$W/bare" --ioengine=io_uring --rw=randwrite --bs=4k --iodepth=32 --direct=1 ;;
    append-async32) on_file "$W/bare" --ioengine=psync --rw=write --bs=4k --fdatasync=32 ;;
    group-async32) on_file "$W/bare" --ioengine=psync --rw=write --bs=128k --direct=1 --sync=dsync | awk '{ $1 *= 32; print }' ;;
    nbdkit-async32 | wire-async32 | plain-async32 | journal-async32) with_fio "$(uri "$1")" --rw=randwrite --bs=4k --iodepth=32 ;;
  esac
}

sectors_written() { # of the device below the disk of the resource
  local device; device=$(df --output=source "$W" | tail -1)
  awk -v d="$(basename "$(readlink -f "$device")")" '$3 == d { print $10 }' /proc/diskstats
}

figure() { # FIELD: of the journal's status
  "$HOLDFAST" status journal --json | python3 -c "import json, sys; print(json.load(sys.stdin)['resources'][0]['journal']['$1'])"
}

# Until all that the journal holds is on the disk. Its segments stay, to be used again: to give them up would have new ones
# written with zeroes in the time that is measured.
settle() {
  for _ in $(seq 600); do [ "$(figure dirty_bytes)" != 0 ] || return 0; sleep 0.1; done
  echo "the journal is not written back" >&2; exit 1
}

echo "# $(date -u +%F) $(nproc) CPUs, $(uname -r), $SIZE MiB in $(stat -f -c %T "$DIR"), journal $JOURNAL MiB, $ROUNDS rounds of $SECS s," \
  "load $(cut -d' ' -f1 /proc/loadavg)"
fill "$W/bare"
for who in plain journal; do cp "$W/bare" "$W/$who.disk"; done
sync
start_daemon
"$HOLDFAST" -q create plain --disk "$W/plain.disk"
"$HOLDFAST" -q create journal --disk "$W/journal.disk" --journal "$W/journal.d" --journal-size "${JOURNAL}M"
mkdir "$WIRE"
cp "$W/bare" "$WIRE/wire.disk"
"$HOLDFAST" -q create wire --disk "$WIRE/wire.disk"
nbdkit -f --log=null -U "$W/nbdkit.sock" file "$W/bare" >"$W/nbdkit.log" 2>&1 &
NBDKIT=$!
for _ in $(seq 100); do [ ! -S "$W/nbdkit.sock" ] || break; sleep 0.1; done
# As a journal is when it has been in use for a while: it makes no new segments any more, whose files are written once with zeroes.
# Those that it is compared with have theirs as well.
with_fio "$(uri journal)" --rw=randwrite --bs=4k --iodepth=32 --size=64M --io_size="${JOURNAL}M" --time_based=0 --runtime=600 >/dev/null
settle
sync
WHO=(bare append group nbdkit wire plain journal log)
for part in $ONLY; do
  case $part in overwrite | recover) continue ;; esac
  for ((r = 0; r < ROUNDS; r++)); do
    for ((k = 0; k < ${#WHO[@]}; k++)); do
      who=${WHO[$(((k + r) % ${#WHO[@]}))]}
      case $who-$part in bare-fua* | append-fua* | bare-queue* | append-queue* | log-[sqa]*) continue ;; esac
      echo "$part $who $(run "$who" "$part")"
      if [ "$who" = journal ]; then settle; fi # what it left is not the next one's load
    done
  done
done | tee "$W/figures" | awk '{ printf "." > "/dev/stderr" } END { print "" > "/dev/stderr" }'
python3 - "$W/figures" <<'PY'
import statistics, sys
figures = {}
for line in open(sys.argv[1]):
    part, who, iops, _, p50, p99, _ = line.split()
    figures.setdefault(part, {}).setdefault(who, []).append((float(iops), float(p50), float(p99)))
print("| part | who | writes/s, median (min-max) | p50 / p99 us | journal / it |\n|---|---|---|---|---|")
for part, rows in figures.items():
    ours = statistics.median(x[0] for x in rows["journal"])
    for who, samples in rows.items():
        iops = [x[0] for x in samples]
        middle = statistics.median(iops)
        p50, p99 = (statistics.median(x[i] for x in samples) for i in (1, 2))
        print(f"| {part} | {who} | {middle:,.0f} ({min(iops):,.0f}-{max(iops):,.0f}) | {p50:.0f} / {p99:.0f} | {ours / middle:.2f} |")
PY
case " $ONLY " in *" overwrite "*)
  # Written back counts in whole: everything that reaches the device, less what the journal itself took.
  sync
  head=$(figure head) before=$(sectors_written)
  set -- $(with_fio "$(uri journal)" --rw=randwrite --bs=4k --iodepth=32 --size=64M --runtime=$((SECS * 5)))
  "$HOLDFAST" -q log trim journal
  sync
  python3 -c "
written = int($5) * 4096; journal = $(figure head) - $head; device = ($(sectors_written) - $before) * 512
print(f'overwrite: {written >> 20} MiB written to 64 MiB; {journal >> 20} MiB of journal, {max(device - journal, 0) >> 20} MiB to the disk: {max(device - journal, 0) / written:.2f} of what was written')" ;;
esac
case " $ONLY " in *" recover "*)
  "$HOLDFAST" -q log trim journal
  with_fio "$(uri journal)" --rw=randwrite --bs=4k --iodepth=32 --io_size=$((JOURNAL / 3))M --time_based=0 --runtime=600 >/dev/null
  held=$(figure dirty_bytes)
  kill -9 "$DAEMON"; wait "$DAEMON" 2>/dev/null || true
  begin=$(date +%s.%N)
  start_daemon
  "$HOLDFAST" -q wait journal --for primary --timeout 120
  python3 -c "import time; print(f'recover: {$held >> 20} MiB that were only in the journal; Primary {time.time() - $begin:.2f} s after the start')" ;;
esac
