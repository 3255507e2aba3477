# What the benchmarks share. They set W (a scratch directory), SIZE (MiB), SECS, and ON_CLIENT (a command prefix, or nothing).

fill() { # FILE: written once, so that no run pays for first touch
  dd if=/dev/urandom of="$W/seed" bs=1M count=16 status=none
  for ((i = 0; i < SIZE; i += 16)); do cat "$W/seed"; done | head -c "${SIZE}M" >"$1"
  sync "$1"
}

with_fio() { # URI OPTIONS: IOPS MB/s p50 p99 operations
  local uri=$1; shift
  "${ON_CLIENT[@]}" fio --name=w --ioengine=nbd --uri="$uri" --thread --group_reporting --norandommap --randrepeat=0 \
    --time_based --runtime="$SECS" --percentile_list=50:99 --output-format=json "$@" 2>/dev/null | python3 -c '
import json, sys
t = sys.stdin.read(); j = json.loads(t[t.index("{"):])["jobs"][0]
d = max(j["read"], j["write"], key=lambda x: x["total_ios"])
assert not j["error"] and d["total_ios"], "fio failed"
p = d["clat_ns"]["percentile"]
print(d["iops"], d["bw_bytes"] / 1e6, p["50.000000"] / 1e3, p["99.000000"] / 1e3, d["total_ios"])'
}
