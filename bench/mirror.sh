#!/usr/bin/env bash
# Synchronous mirrors side by side, in one run: two Holdfast daemons (protocol C, TLS) against QEMU's quorum driver over a
# local file and an NBD export across TCP loopback. The same fio jobs through NBD on a Unix socket, servers alternating
# within each round; prints medians and ratios.
#
#   bench/mirror.sh [--rounds N] [--secs S] [--size MIB] [--dir DIR] [--holdfast PATH] [--workloads "rw1 rw32 sw16"]
#
# Needs fio (with its nbd engine), qemu-nbd, nbdkit, jq, python3. Files are in DIR (default /dev/shm).
set -euo pipefail
export LC_ALL=C
. "$(dirname "$0")/lib.sh"
ROUNDS=5 SECS=2 SIZE=1024 DIR=/dev/shm HOLDFAST=$(dirname "$0")/../target/release/holdfast WORKLOADS="rw1 rw32 sw16" ON_CLIENT=()
while [ $# -gt 0 ]; do
  case $1 in
    --rounds) ROUNDS=$2 ;; --secs) SECS=$2 ;; --size) SIZE=$2 ;; --dir) DIR=$2 ;; --holdfast) HOLDFAST=$2 ;;
    --workloads) WORKLOADS=$2 ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
HOLDFAST=$(realpath "$HOLDFAST")
W=$(mktemp -d "$DIR/hfbench.XXXXXX")
PIDS=()
cleanup() {
  for p in "${PIDS[@]}"; do kill "$p" 2>/dev/null || true; done
  for p in "${PIDS[@]}"; do wait "$p" 2>/dev/null || true; done
  rm -rf "$W"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# ---------------------------------------------------------------- Holdfast: two daemons
hf() { "$HOLDFAST" --socket "$W/$1/s" "${@:2}"; }
start_holdfast() {
  local n
  for n in a b; do
    mkdir -p "$W/$n"
    fill "$W/$n/disk"
    "$HOLDFAST" daemon --name "$n" --state-dir "$W/$n/state" --socket "$W/$n/s" --listen 127.0.0.1:0 \
      >"$W/$n/out" 2>"$W/$n/err" </dev/null &
    PIDS+=($!)
    for _ in $(seq 100); do grep -q '^ready:' "$W/$n/out" && break; sleep 0.1; done
    grep -q '^ready:' "$W/$n/out" || { cat "$W/$n/err" >&2; exit 1; }
  done
  hf a cluster create >/dev/null
  hf b cluster join "$(hf a cluster token -q | grep -o 'hf1-[^ ]*' | head -1)" >/dev/null
  hf a create r0 --disk "$W/a/disk" >/dev/null
  hf b join r0 --disk "$W/b/disk" >/dev/null
  hf a --timeout 300 wait r0 --for synced >/dev/null
  URI_holdfast=$(hf a status r0 --json | jq -r '.resources[0].nbd_uri')
}

# ---------------------------------------------------------------- QEMU quorum
start_quorum() { # NAME: far side qemu-nbd or nbdkit
  local name=$1 port=$((20000 + RANDOM % 20000))
  fill "$W/$name.a"; fill "$W/$name.b"
  if [ "$name" = quorum ]; then
    qemu-nbd -t -e 0 -b 127.0.0.1 -p $port \
      --image-opts "driver=raw,file.driver=file,file.filename=$W/$name.b,file.locking=off,file.aio=threads" &
  else
    nbdkit -f --log=null -i 127.0.0.1 -p $port file "$W/$name.b" &
  fi
  PIDS+=($!)
  sleep 1
  qemu-nbd -t -e 0 -k "$W/$name.sock" --image-opts "driver=quorum,vote-threshold=2,read-pattern=fifo,\
children.0.driver=raw,children.0.file.driver=file,children.0.file.filename=$W/$name.a,children.0.file.locking=off,\
children.1.driver=nbd,children.1.server.type=inet,children.1.server.host=127.0.0.1,children.1.server.port=$port" &
  PIDS+=($!)
  sleep 1
  declare -g "URI_$name=nbd+unix:///?socket=$W/$name.sock"
}

run() { # URI WORKLOAD: IOPS and MB/s and p50 p99 in us
  local job
  case $2 in
    rw1) job="--rw=randwrite --bs=4k --iodepth=1" ;;
    rw32) job="--rw=randwrite --bs=4k --iodepth=32" ;;
    sw16) job="--rw=write --bs=1M --iodepth=16" ;;
    rr32) job="--rw=randread --bs=4k --iodepth=32" ;;
    *) echo "unknown workload $2" >&2; exit 2 ;;
  esac
  # shellcheck disable=SC2086
  with_fio "$1" $job
}

start_holdfast
start_quorum quorum
start_quorum quorum_kit
SERVERS=(holdfast quorum quorum_kit)
echo "# $(date -u +%F) $(nproc) CPUs, $(uname -r), $SIZE MiB in $(stat -f -c %T "$DIR"), $ROUNDS rounds of $SECS s"
for w in $WORKLOADS; do
  for ((r = 0; r < ROUNDS; r++)); do
    for ((k = 0; k < ${#SERVERS[@]}; k++)); do
      s=${SERVERS[$(((k + r) % ${#SERVERS[@]}))]}
      uri=URI_$s
      echo "$w $s $(run "${!uri}" "$w")" >>"$W/raw"
    done
  done
done
python3 - "$W/raw" <<'PY'
import statistics as st, sys
rows = [l.split() for l in open(sys.argv[1])]
works, servers = list(dict.fromkeys(r[0] for r in rows)), list(dict.fromkeys(r[1] for r in rows))
servers.sort(key=lambda s: s != "holdfast")
print("| workload | " + " | ".join(servers) + " | ratio to the better peer | ratio to quorum |")
print("|---|" + "---|" * (len(servers) + 2))
for w in works:
    cells, med = [], {}
    for s in servers:
        v = [list(map(float, r[2:])) for r in rows if r[0] == w and r[1] == s]
        i = sorted(x[0] for x in v)
        med[s] = st.median(i)
        unit = f", {st.median(x[1] for x in v):.0f} MB/s" if w.startswith("s") else ""
        cells.append(f"{med[s]:.0f} ({i[0]:.0f}-{i[-1]:.0f}){unit}, p50 {st.median(x[2] for x in v):.0f} us")
    best = max(med[s] for s in servers if s != "holdfast")
    print(f"| {w} | " + " | ".join(cells) + f" | {med['holdfast'] / best:.2f} | {med['holdfast'] / med['quorum']:.2f} |")
PY
