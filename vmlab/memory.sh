# A guest with 256 MiB of memory writes a file of 1 GiB to a filesystem on a device that it serves itself.
# lab run --mem 256 --disk 1400M --add holdfast lib.sh --append 'lab.VIA=nbd lab.MIB=1024'
. /lab/lib.sh
VIA=${VIA:-nbd}; MIB=${MIB:-1024}
mkdir -p /var/lib /run/holdfast
memory() { grep -E '^(VmHWM|VmRSS|VmLck)' /proc/$DAEMON/status | tr -s '\t\n' ' '; grep MemAvailable /proc/meminfo; }
say "kernel $(uname -r), $(grep MemTotal /proc/meminfo), $MIB MiB via $VIA"
for module in nbd fuse loop ublk_drv; do modprobe -q $module; done
start_daemon
holdfast create r0 --disk /dev/vdb || fail create
holdfast device r0 --via $VIA || { fail device; finish; }
mkfs.ext4 -q /dev/holdfast/r0 && mount /dev/holdfast/r0 /mnt || { fail "no filesystem"; finish; }
memory; echo "oom_score_adj $(cat /proc/$DAEMON/oom_score_adj)"
dd if=/dev/urandom of=/run/block bs=1M count=1 2> /dev/null
blocks() { for at in $(seq $MIB); do cat /run/block || return; done; }
wanted=$(blocks | md5sum)
began=$(now_ms)
check "the file is written" eval 'blocks > /mnt/file'
check "and durable" sync /mnt/file
say "written in $(($(now_ms) - began)) ms"
memory
echo 3 > /proc/sys/vm/drop_caches
check "it holds what was written" test "$(md5sum < /mnt/file)" = "$wanted"
check "unmounting" umount /mnt
check "the device goes" holdfast device r0 --remove
check "nobody was killed for memory" eval '! dmesg | grep -iE "out of memory|oom-kill"'
kill -TERM $DAEMON; wait $DAEMON
finish
