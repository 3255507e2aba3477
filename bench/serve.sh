#!/usr/bin/env bash
# NBD servers side by side, in one run: `holdfast serve` against nbdkit, nbd-server and qemu-nbd, each on a file of its own.
# Servers alternate within each round; prints medians, the ratio to the best of the others, and the server's CPU.
#
#   bench/serve.sh [--rounds N] [--secs S] [--size MIB] [--dir DIR] [--tcp] [--pin SERVER,CLIENT] [--holdfast PATH]
#                  [--load PATH] [--servers "nbdkit nbd-server qemu-nbd"] [--workloads "lrr32 lrw32 ..."]
#
# Workloads: l… with the lean client (crates/nbd/examples/load.rs), the others with fio: rr1 rr32 rr4x8 rw1 rw32 rw4x8 sr16 sw16
# lrr1 lrr32 lrr4x8 lrw1 lrw32 lrw4x8 lfua1 lfua32 wf1. With --dir on a disk the durable ones (lfua, wf) mean something.
# --pin makes depth 1 comparable: one wake-up across CPUs costs more than the request.
# Needs fio (with its nbd engine), nbdkit, nbd-server, qemu-nbd, nbdinfo, python3.
set -euo pipefail
export LC_ALL=C
. "$(dirname "$0")/lib.sh"
TARGET=$(dirname "$0")/../target/release
ROUNDS=5 SECS=2 SIZE=1024 DIR=/dev/shm HOLDFAST=$TARGET/holdfast LOAD=$TARGET/examples/load TRANSPORT=unix
SERVERS="nbdkit nbd-server qemu-nbd" WORKLOADS="lrr32 lrw32 lrr4x8 lrw4x8 rr32 rw32 rr4x8 rw4x8 sr16 sw16"
ON_SERVER=() ON_CLIENT=()
while [ $# -gt 0 ]; do
  case $1 in
    --tcp) TRANSPORT=tcp; shift; continue ;;
    --rounds) ROUNDS=$2 ;; --secs) SECS=$2 ;; --size) SIZE=$2 ;; --dir) DIR=$2 ;; --servers) SERVERS=$2 ;;
    --holdfast) HOLDFAST=$2 ;; --load) LOAD=$2 ;; --workloads) WORKLOADS=$2 ;;
    --pin) ON_SERVER=(taskset -c "${2%,*}") ON_CLIENT=(taskset -c "${2#*,}") ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
W=$(mktemp -d "$DIR/hfbench.XXXXXX")
PORT=$((20000 + RANDOM % 20000))
declare -A PID URI
cleanup() {
  for p in "${PID[@]}"; do kill "$p" 2>/dev/null || true; done
  wait
  rm -rf "$W"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

start() { # SERVER
  local s=$1 file=$W/$1.img sock=$W/$1.sock export= place
  fill "$file"
  PORT=$((PORT + 1))
  case $s in
    holdfast)
      [ $TRANSPORT = unix ] && place=(--unix "$sock") || place=(--listen "127.0.0.1:$PORT")
      "${ON_SERVER[@]}" "$HOLDFAST" serve "$file" "${place[@]}" >"$W/$s.log" 2>&1 & ;;
    nbdkit)
      [ $TRANSPORT = unix ] && place=(-U "$sock") || place=(-i 127.0.0.1 -p "$PORT")
      "${ON_SERVER[@]}" nbdkit -f --log=null "${place[@]}" file "$file" >"$W/$s.log" 2>&1 & ;;
    qemu-nbd)
      [ $TRANSPORT = unix ] && place=(-k "$sock") || place=(-b 127.0.0.1 -p "$PORT")
      "${ON_SERVER[@]}" qemu-nbd -t -e 0 "${place[@]}" --image-opts \
        "driver=raw,file.driver=file,file.filename=$file,file.locking=off,file.aio=threads" >"$W/$s.log" 2>&1 & ;;
    nbd-server)
      export=e
      { echo "[generic]"; echo "max_threads = 4"
        if [ $TRANSPORT = unix ]; then echo "unixsock = $sock"; else echo "listenaddr = 127.0.0.1"; echo "port = $PORT"; fi
        echo "[e]"; echo "exportname = $file"; echo "flush = true"; echo "fua = true"; } >"$W/$s.conf"
      "${ON_SERVER[@]}" nbd-server -C "$W/$s.conf" -p "$W/$s.pid" >"$W/$s.log" 2>&1 ;;
    *) echo "unknown server $s" >&2; exit 2 ;;
  esac
  if [ "$s" = nbd-server ]; then # it detaches
    for _ in $(seq 50); do [ -s "$W/$s.pid" ] && break; sleep 0.1; done
    PID[$s]=$(cat "$W/$s.pid")
  else
    PID[$s]=$!
  fi
  if [ $TRANSPORT = unix ]; then URI[$s]="nbd+unix:///$export?socket=$sock"; else URI[$s]="nbd://127.0.0.1:$PORT/$export"; fi
  for _ in $(seq 50); do nbdinfo --size "${URI[$s]}" >/dev/null 2>&1 && return; sleep 0.1; done
  cat "$W/$s.log" >&2; exit 1
}

cpu() { # PID: user and system ticks of it and its children
  local all=0 p
  for p in $1 $(pgrep -P "$1" || true); do
    all=$((all + $(awk '{ print $14 + $15 + $16 + $17 }' "/proc/$p/stat" 2>/dev/null || echo 0)))
  done
  echo $all
}

lean() { # URI OPTIONS: the same
  "${ON_CLIENT[@]}" "$LOAD" "$1" --seconds "$SECS" "${@:2}" |
    python3 -c 'import json, sys; j = json.load(sys.stdin); print(j["iops"], j["mbps"], j["p50"], j["p99"], j["ops"])'
}

run() { # SERVER WORKLOAD
  local u=${URI[$1]}
  case $2 in
    rr1) with_fio "$u" --rw=randread --bs=4k --iodepth=1 ;;
    rr32) with_fio "$u" --rw=randread --bs=4k --iodepth=32 ;;
    rr4x8) with_fio "$u" --rw=randread --bs=4k --iodepth=8 --numjobs=4 ;;
    rw1) with_fio "$u" --rw=randwrite --bs=4k --iodepth=1 ;;
    rw32) with_fio "$u" --rw=randwrite --bs=4k --iodepth=32 ;;
    rw4x8) with_fio "$u" --rw=randwrite --bs=4k --iodepth=8 --numjobs=4 ;;
    sr16) with_fio "$u" --rw=read --bs=1M --iodepth=16 ;;
    sw16) with_fio "$u" --rw=write --bs=1M --iodepth=16 ;;
    wf1) with_fio "$u" --rw=randwrite --bs=4k --iodepth=1 --fsync=1 ;;
    lrr1) lean "$u" ;;
    lrr32) lean "$u" --depth 32 ;;
    lrr4x8) lean "$u" --depth 8 --connections 4 ;;
    lrw1) lean "$u" --op write ;;
    lrw32) lean "$u" --op write --depth 32 ;;
    lrw4x8) lean "$u" --op write --depth 8 --connections 4 ;;
    lfua1) lean "$u" --op fua ;;
    lfua32) lean "$u" --op fua --depth 32 ;;
    *) echo "unknown workload $2" >&2; exit 2 ;;
  esac
}

ALL=(holdfast $SERVERS)
for s in "${ALL[@]}"; do start "$s"; done
echo "# $(date -u +%F) $(nproc) CPUs, $(uname -r), $SIZE MiB in $(stat -f -c %T "$DIR"), $TRANSPORT, $ROUNDS rounds of $SECS s," \
  "load $(cut -d' ' -f1 /proc/loadavg)${ON_SERVER[*]:+, pinned}"
for w in $WORKLOADS; do
  for ((r = 0; r < ROUNDS; r++)); do
    for ((k = 0; k < ${#ALL[@]}; k++)); do
      s=${ALL[$(((k + r) % ${#ALL[@]}))]}
      before=$(cpu "${PID[$s]}")
      figures=$(run "$s" "$w")
      echo "$w $s $figures $(($(cpu "${PID[$s]}") - before))" >>"$W/raw"
    done
  done
done
python3 - "$W/raw" "$(getconf CLK_TCK)" <<'PY'
import statistics as st, sys
rows, tick = [l.split() for l in open(sys.argv[1])], float(sys.argv[2])
works, servers = list(dict.fromkeys(r[0] for r in rows)), list(dict.fromkeys(r[1] for r in rows))
servers.sort(key=lambda s: s != "holdfast")
print("IOPS (lowest-highest); p50/p99 in µs; µs of the server's CPU an operation\n")
print("| workload | " + " | ".join(servers) + " | IOPS: ratio to the best | CPU: ratio to the best |")
print("|---|" + "---|" * (len(servers) + 2))
for w in works:
    cells, iops, cost = [], {}, {}
    for s in servers:
        v = [list(map(float, r[2:])) for r in rows if r[0] == w and r[1] == s]
        i = sorted(x[0] for x in v)
        iops[s] = st.median(i)
        cost[s] = st.median(x[5] / tick / x[4] * 1e6 for x in v)
        cells.append(f"{iops[s]:.0f} ({i[0]:.0f}-{i[-1]:.0f}); {st.median(x[2] for x in v):.0f}/{st.median(x[3] for x in v):.0f}; {cost[s]:.1f}")
    others = [s for s in servers if s != "holdfast"]
    best, cheap = max(iops[s] for s in others), min(cost[s] for s in others)
    print(f"| {w} | " + " | ".join(cells) + f" | {iops['holdfast'] / best:.2f} | {cost['holdfast'] / max(cheap, 0.01):.2f} |")
PY
