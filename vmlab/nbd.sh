# A resource on /dev/vdb as a device of the kernel's NBD client with ext4 and a verifying load; its daemon is killed and started
# again $ROUNDS times.
# lab run --suite bookworm --disk 512M --add holdfast lib.sh --append lab.ROUNDS=20
. /lab/lib.sh
ROUNDS=${ROUNDS:-20}
mkdir -p /var/lib /run/holdfast
say "kernel $(uname -r), $ROUNDS rounds"
start_daemon
holdfast create r0 --disk /dev/vdb || fail create
holdfast device r0 --via nbd || { fail device; finish; }
DEV=/dev/holdfast/r0; NODE=$(readlink $DEV); SYS=/sys/block/${NODE#/dev/}; Q=$SYS/queue
say "$NODE: $(blockdev --getsize64 $DEV) bytes, cache $(cat $Q/write_cache), fua $(cat $Q/fua), discard $(cat $Q/discard_max_bytes), zeroes $(cat $Q/write_zeroes_max_bytes), blocks $(cat $Q/logical_block_size)/$(cat $Q/physical_block_size), requests $(cat $Q/nr_requests), known as $(cat $SYS/backend)"
mkfs.ext4 -q $DEV || fail mkfs
mount $DEV /mnt || fail mount

# Writes a file and verifies it, again and again.
load() {
    passes=0
    while [ ! -e /run/stop ]; do
        fio --name=load --directory=/mnt --filename=load --rw=randwrite --bsrange=4k-64k --size=6M --ioengine=libaio --iodepth=16 \
            --direct=1 --end_fsync=1 --verify=crc32c --verify_backlog=64 --verify_fatal=1 --allrandrepeat=0 --randseed=$passes --thread \
            > /run/fio.log 2>&1 || { touch /run/broken; return; }
        passes=$((passes + 1)); echo $passes > /run/passes
    done
}
# Small files through the page cache.
files() {
    number=0
    while [ ! -e /run/stop ]; do
        number=$((number + 1))
        { mkdir -p /mnt/files && cp /run/daemon.log /mnt/files/$((number % 50)) && sync /mnt/files/$((number % 50)); } \
            || { touch /run/broken; return; }
    done
}
echo 0 > /run/passes
load & LOAD=$!
files & FILES=$!
until_true 60 test -e /mnt/load; pause 2
longest=0
for round in $(seq $ROUNDS); do
    pause 0.$((RANDOM % 900 + 100))
    kill_daemon; died=$(now_ms)
    [ $((round % 3)) = 0 ] && pause 0.$((RANDOM % 900 + 100))
    start_daemon
    until_true 60 readable $DEV || { fail "round $round: the device does not answer"; break; }
    took=$(($(now_ms) - died)); [ $took -gt $longest ] && longest=$took
    [ ! -e /run/broken ] || { fail "round $round: an error was seen"; break; }
done
say "$round rounds, the device was away for at most $longest ms; $(cat /run/passes) passes of fio"
passes=$(cat /run/passes)
until_true 60 eval '[ $(cat /run/passes) -gt $((passes + 1)) ]' || fail "no passes after the last round"
touch /run/stop; wait $LOAD $FILES
check "fio and files saw no error" test ! -e /run/broken
[ -e /run/broken ] && tail -20 /run/fio.log
check fstrim fstrim /mnt
check "unmounting" umount /mnt
check "fsck" e2fsck -fn $DEV
check "no I/O error in the kernel's log" eval '! dmesg | grep -E "I/O error|EXT4-fs (error|warning)"'
check "the device goes" holdfast device r0 --remove
check "nothing is left of it" test ! -e $SYS/pid

say "an attached export"
nbdkit -f -U /run/far.sock memory 64M & far=$!
until_true 10 test -S /run/far.sock
holdfast attach --via nbd --name far "nbd+unix:///?socket=/run/far.sock" || fail attach
DEV=/dev/holdfast/far; NODE=$(readlink $DEV)
mkfs.ext4 -q $DEV && mount $DEV /mnt || fail "mkfs or mount"
rm -f /run/stop; files & FILES=$!
for round in 1 2 3; do
    pause 0.$((RANDOM % 900 + 100))
    kill_daemon; start_daemon
    until_true 60 readable $DEV || fail "round $round: the device does not answer"
done
kill -TERM $DAEMON; wait $DAEMON
check "a stop in good order leaves it" test -e /sys/block/${NODE#/dev/}/pid
start_daemon
check "it goes on" until_true 60 readable $DEV
touch /run/stop; wait $FILES
check "files saw no error" test ! -e /run/broken
umount /mnt; check "fsck" e2fsck -fn $DEV
check "detach" holdfast detach far
kill $far
check "no I/O error in the kernel's log" eval '! dmesg | grep -E "I/O error|EXT4-fs (error|warning)"'
kill -TERM $DAEMON; wait $DAEMON
finish
