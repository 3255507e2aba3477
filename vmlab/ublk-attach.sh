# An export of `holdfast serve` on /dev/vdb, attached as a ublk device with ext4 and a verifying load; the daemon that attached it
# is killed and started again $ROUNDS times. With two nodes (--nodes 2) the second one serves.
# lab run --disk 512M --add holdfast lib.sh --append lab.ROUNDS=20
. /lab/lib.sh
ROUNDS=${ROUNDS:-20}; HOST=127.0.0.1
[ $NODES = 2 ] && HOST=10.77.0.2
mkdir -p /var/lib /run/holdfast
serve() { holdfast serve /dev/vdb --name disk1 --listen $HOST:10809 > /run/serve.log 2>&1 & SERVER=$!; }
if [ $NODE = 2 ]; then
    serve; host barrier serving; host barrier done; kill $SERVER; exit 0
fi
if [ $NODES = 2 ]; then host barrier serving; else serve; until_true 10 eval "(: < /dev/tcp/$HOST/10809)"; fi
say "kernel $(uname -r), $ROUNDS rounds"
start_daemon
holdfast attach nbd://$HOST/disk1 --via ublk --connections 2 || { fail attach; finish; }
DEV=/dev/holdfast/disk1; NODE_PATH=$(readlink $DEV)
mkfs.ext4 -q $DEV || fail mkfs
mount $DEV /mnt || fail mount
fio --name=load --directory=/mnt --size=48M --rw=randwrite --bs=4k --ioengine=libaio --iodepth=16 --direct=1 --thread \
    --fsync=64 --verify=crc32c --verify_backlog=256 --verify_fatal=1 --time_based --runtime=100000 --eta=never > /run/fio.log 2>&1 & LOAD=$!
until_true 60 test -e /mnt/load.0.0; pause 2
longest=0
for round in $(seq $ROUNDS); do
    pause 0.$((RANDOM % 900 + 100))
    kill_daemon; died=$(now_ms)
    start_daemon
    until_true 30 readable $DEV || { fail "round $round: the device does not answer"; break; }
    took=$(($(now_ms) - died)); [ $took -gt $longest ] && longest=$took
    kill -0 $LOAD 2> /dev/null || { fail "round $round: fio has ended"; break; }
done
say "$round rounds, the device was away for at most $longest ms"
check "fio saw no error" fio_ended $LOAD /run/fio.log
grep -E "err=|IOPS" /run/fio.log | cut -c1-120
check "unmounting" umount /mnt
check "fsck" e2fsck -fn $DEV
check "no I/O error in the kernel's log" eval '! dmesg | grep -E "I/O error|EXT4-fs error"'

say "a stop with the device in use, and a server that is away meanwhile"
mount $DEV /mnt; echo kept > /mnt/kept; sync
kill -TERM $DAEMON; wait $DAEMON
check "the device is left" test -b $NODE_PATH
if [ $NODES = 1 ]; then kill -9 $SERVER; wait $SERVER 2> /dev/null; fi
start_daemon
if [ $NODES = 1 ]; then pause 1; serve; fi
check "it goes on" until_true 30 readable $DEV
check "the file is there" grep -q kept /mnt/kept
umount /mnt
check "detaching" holdfast detach disk1
check "the device goes" until_true 5 test ! -e $NODE_PATH
kill_daemon; start_daemon
check "what was detached does not come back" eval '! holdfast attachments | grep disk1'

if [ $NODES = 1 ]; then
    say "a server that never comes back"
    holdfast attach nbd://$HOST/disk1 --via ublk --io-timeout 5 || fail attach
    NODE_PATH=$(readlink $DEV)
    kill_daemon; kill -9 $SERVER; wait $SERVER 2> /dev/null; start_daemon
    check "its I/O fails after a while" until_true 40 test ! -e $NODE_PATH
fi
kill_daemon
[ $NODES = 2 ] && host barrier done
finish
