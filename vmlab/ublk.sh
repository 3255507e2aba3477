# A resource on /dev/vdb as a ublk device with ext4 and a verifying load; its daemon is killed and started again $ROUNDS times.
# lab run --disk 512M --add holdfast lib.sh --append lab.ROUNDS=20
. /lab/lib.sh
ROUNDS=${ROUNDS:-20}
mkdir -p /var/lib /run/holdfast
say "kernel $(uname -r), $ROUNDS rounds"
start_daemon
holdfast create r0 --disk /dev/vdb || fail create
holdfast device r0 --via ublk || { fail device; finish; }
DEV=/dev/holdfast/r0; NODE=$(readlink $DEV); Q=/sys/block/${NODE#/dev/}/queue
say "$NODE: $(blockdev --getsize64 $DEV) bytes, cache $(cat $Q/write_cache), fua $(cat $Q/fua), discard $(cat $Q/discard_max_bytes), zeroes $(cat $Q/write_zeroes_max_bytes), blocks $(cat $Q/logical_block_size)/$(cat $Q/physical_block_size), requests $(cat $Q/nr_requests)"

say "discard and write zeroes"
dd if=/dev/urandom of=$DEV bs=1M count=4 oflag=direct 2> /dev/null
check "write zeroes" blkdiscard --zeroout -o 1048576 -l 1048576 $DEV
check "zeroes are read" eval 'dd if=$DEV bs=1M skip=1 count=1 iflag=direct 2> /dev/null | cmp -n 1048576 - /dev/zero'
check "discard" blkdiscard -o 2097152 -l 1048576 $DEV
check "durable writes" fio --name=fua --filename=$DEV --size=256k --rw=write --bs=4k --direct=1 --sync=dsync --thread --output=/dev/null

say "ext4 under load"
mkfs.ext4 -q $DEV || fail mkfs
mount $DEV /mnt || fail mount
fio --name=load --directory=/mnt --size=48M --rw=randwrite --bs=4k --ioengine=libaio --iodepth=16 --direct=1 --thread \
    --fsync=64 --verify=crc32c --verify_backlog=256 --verify_fatal=1 --time_based --runtime=100000 --eta=never > /run/fio.log 2>&1 & LOAD=$!
fio --name=buffered --directory=/mnt --size=16M --rw=randwrite --bs=16k --ioengine=psync --thread --fsync=32 \
    --time_based --runtime=100000 --eta=never > /run/fio2.log 2>&1 & LOAD2=$!
until_true 60 test -e /mnt/load.0.0; pause 2
longest=0
for round in $(seq $ROUNDS); do
    pause 0.$((RANDOM % 900 + 100))
    kill_daemon; died=$(now_ms)
    [ $((round % 3)) = 0 ] && pause 0.$((RANDOM % 900 + 100))
    if [ $((round % 4)) = 1 ]; then
        # The next one dies somewhere in its start, or while it takes the device over.
        holdfast daemon >> /run/daemon.log 2>&1 & DAEMON=$!
        pause 0.$((RANDOM % 900 + 100)); kill_daemon
    fi
    start_daemon
    until_true 30 readable $DEV || { fail "round $round: the device does not answer"; break; }
    took=$(($(now_ms) - died)); [ $took -gt $longest ] && longest=$took
    kill -0 $LOAD 2> /dev/null || { fail "round $round: fio has ended"; break; }
done
say "$round rounds, the device was away for at most $longest ms"
check "fio saw no error" fio_ended $LOAD /run/fio.log
check "buffered fio saw no error" fio_ended $LOAD2 /run/fio2.log
grep -E "err=|IOPS" /run/fio.log /run/fio2.log | cut -c1-120; grep -iE "verify.*fail|error" /run/fio.log | head -3
check "final verify" fio --name=final --directory=/mnt --size=32M --rw=write --bs=64k --direct=1 --verify=crc32c --do_verify=1 --thread --eta=never --output=/dev/null
check fstrim fstrim /mnt
check "unmounting" umount /mnt
check "fsck" e2fsck -fn $DEV

say "a stop with the device in use, and one without"
mount $DEV /mnt; echo kept > /mnt/kept; sync
kill -TERM $DAEMON; wait $DAEMON
check "the device is left" test -b $NODE
start_daemon
check "it goes on" until_true 30 readable $DEV
check "the file is there" grep -q kept /mnt/kept
umount /mnt
kill -TERM $DAEMON; wait $DAEMON
check "a device that nobody has open goes" test ! -e $NODE
start_daemon
until_true 20 holdfast primary r0
check "a new device" holdfast device r0 --via ublk

say "partitions"
NODE=$(readlink $DEV)
printf '\0\0\2\0\203\0\0\0\0\10\0\0\0\0\4\0' | dd of=$DEV bs=1 seek=446 conv=notrunc 2> /dev/null
printf '\125\252' | dd of=$DEV bs=1 seek=510 conv=notrunc 2> /dev/null
blockdev --rereadpt $NODE
check "a partition" until_true 5 test -b ${NODE}p1
mkfs.ext4 -q ${NODE}p1 && mount ${NODE}p1 /mnt && echo text > /mnt/file
kill_daemon; start_daemon
check "a partition goes on" until_true 30 readable ${NODE}p1
check "its device is in use" eval '! holdfast device r0 --remove 2> /run/refused'
grep -q mounted /run/refused || fail "the refusal does not name the mount: $(cat /run/refused)"
umount /mnt; check "the partition's filesystem" e2fsck -fn ${NODE}p1
check "the device goes" holdfast device r0 --remove

say "a device that nobody is to go on with"
holdfast device r0 --via ublk && mount ${NODE}p1 /mnt
kill_daemon
mv /var/lib/holdfast /var/lib/away; start_daemon
check "its device is gone" until_true 20 test ! -e $NODE
umount -l /mnt
kill_daemon
finish
