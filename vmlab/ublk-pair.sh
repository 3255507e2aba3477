# A resource of two nodes, used on the first as a ublk device: its daemon is killed under load, with the peer connected, with
# the peer away, and with the peer made Primary meanwhile.
# lab run --nodes 2 --disk 256M --add holdfast lib.sh --append lab.ROUNDS=5
. /lab/lib.sh
ROUNDS=${ROUNDS:-5}
mkdir -p /var/lib /run/holdfast /share
options="--listen 10.77.0.$NODE:7850 --name n$NODE"
start_daemon $options
if [ $NODE = 1 ]; then
    holdfast create r0 --disk /dev/vdb || fail create
    holdfast cluster token > /run/token || fail "cluster token"
    # The cable is the only way to the other node.
    host barrier invited; nc -l -p 9999 < /run/token
    host barrier joined
    until_true 60 holdfast wait r0 --for uptodate --timeout 5 || fail "not in sync"
    holdfast device r0 --via ublk || { fail device; finish; }
    DEV=/dev/holdfast/r0; PATH_OF=$(readlink $DEV)
    mkfs.ext4 -q $DEV; mount $DEV /mnt
    fio --name=load --directory=/mnt --size=32M --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 --direct=1 --thread --fsync=64 \
        --verify=crc32c --verify_backlog=128 --verify_fatal=1 --time_based --runtime=100000 --eta=never > /run/fio.log 2>&1 & LOAD=$!
    until_true 60 test -e /mnt/load.0.0; pause 2
    for round in $(seq $ROUNDS); do
        pause 0.$((RANDOM % 900 + 100)); kill_daemon; died=$(now_ms); start_daemon $options
        until_true 40 readable $DEV || { fail "round $round: the device does not answer"; break; }
        say "round $round: away for $(($(now_ms) - died)) ms"
    done
    host barrier alone
    kill_daemon; died=$(now_ms); start_daemon $options
    check "it goes on without the peer" until_true 60 readable $DEV
    say "away for $(($(now_ms) - died)) ms"
    check "fio saw no error" fio_ended $LOAD /run/fio.log
    umount /mnt; check "fsck" e2fsck -fn $DEV
    host barrier back
    until_true 60 holdfast wait r0 --for synced --timeout 5 || fail "not in sync again"
    mount $DEV /mnt; (while echo x > /mnt/x && sync /mnt/x; do pause 0.1; done) 2> /dev/null & LOAD=$!
    kill_daemon; host barrier promote; host barrier promoted
    start_daemon $options
    check "the device of a node that may not go on goes" until_true 60 test ! -e $PATH_OF
    check "its writer ended with an error" until_true 20 eval "! kill -0 $LOAD"
    umount -l /mnt; kill_daemon
    host barrier end
else
    host barrier invited
    until_true 20 eval 'nc 10.77.0.1 9999 < /dev/null > /run/token; test -s /run/token'
    holdfast cluster join $(grep -o 'hf1-[^ ]*' /run/token) || fail "cluster join"
    holdfast join r0 --disk /dev/vdb || fail join
    host barrier joined
    host barrier alone; kill_daemon
    host barrier back; start_daemon $options
    host barrier promote
    check "promotion" until_true 30 holdfast primary r0
    host barrier promoted; host barrier end; kill_daemon
fi
finish
