# A disk of device-mapper whose table is changed while it is in use, with a spare: holes that fail (error), regions that refuse
# writes or lose them silently (flakey). VIA: ublk or nbd. vmlab/run bad-sectors BINARY
. /lab/lib.sh
mkdir -p /var/lib /run/holdfast
modprobe -a dm-mod dm-flakey ublk_drv nbd 2> /dev/null
VIA=${VIA:-$([ -e /dev/ublk-control ] && echo ublk || echo nbd)}
SIZE=$((256 * 2048))     # sectors of the disk; the spare is behind it
say "kernel $(uname -r), device by $VIA"

# table [KIND FIRST COUNT]...: the disk with such pieces, in blocks of 4096 bytes and in order.
table() {
    local at=0
    while [ $# -gt 0 ]; do
        local first=$(($2 * 8)) count=$(($3 * 8))
        [ $at = $first ] || echo "$at $((first - at)) linear /dev/vdb $at"
        case $1 in
            error) echo "$first $count error" ;;
            *) echo "$first $count flakey /dev/vdb $first 0 60 1 $1" ;;
        esac
        at=$((first + count)); shift 3
    done
    [ $at = $SIZE ] || echo "$at $((SIZE - at)) linear /dev/vdb $at"
}
swap() { dmsetup suspend old && table "$@" | dmsetup load old && dmsetup resume old || fail "the table is not swapped"; }
piece() { dd if=$1 bs=1M skip=$(($2 * 4096)) count=$(($3 * 4096)) iflag=skip_bytes,count_bytes${4:+,$4} 2> /dev/null; }
put() { piece /run/pattern$1 $2 $3 > /run/piece; dd if=/run/piece of=$DEV bs=$(($3 * 4096)) seek=$(($2 * 4096)) oflag=direct,seek_bytes 2> /dev/null; }
same() { piece $DEV $2 $3 direct | cmp -s - <(piece /run/pattern$1 $2 $3); }
eio() { dd if=$DEV of=/dev/null bs=4096 skip=$1 count=1 iflag=direct 2>&1 | grep -q 'Input/output error'; }
field() { holdfast status r0 --json | tr -d ' \n' | grep -o "\"$1\":[0-9]*" | head -1 | cut -d: -f2; }
# A field that is 0 may be left out.
is() { local found; found=$(field $1); [ "${found:-0}" = $2 ] || { say "$1 is $found, not $2"; false; }; }

table | dmsetup create old
echo "0 65536 linear /dev/vdb $SIZE" | dmsetup create spare
dmsetup mknodes
for n in 1 2 3; do dd if=/dev/urandom of=/run/pattern$n bs=1M count=40 2> /dev/null; done
start_daemon
holdfast create r0 --disk /dev/mapper/old --spare /dev/mapper/spare || fail create
holdfast device r0 --via $VIA || { fail device; finish; }
DEV=/dev/holdfast/r0
check "writes of a disk without faults" put 1 0 10240
check "nothing is in the spare" is remapped_sectors 0

say "holes in what is there"
HOLES="error 100 2 error 5000 1 error 9000 300"
swap $HOLES
for block in 100 101 5000 9000 9299; do check "block $block gives EIO" eio $block; done
check "before them" same 1 90 10
check "between them" same 1 102 4898
check "behind them" same 1 9300 900
check "a long write over a hole" put 2 64 64
check "it is read" same 2 64 64
check "one block" put 2 5000 1
check "300 bad ones in a row" put 2 8960 512
check "all is read" same 2 8960 512
check "neighbours are what they were" same 1 5001 3959
check "303 are in the spare" is remapped_sectors 303
check "nothing is lost" is lost_sectors 0
check "a new hole, live" swap error 50 1 $HOLES
check "it gives EIO" eio 50
check "alone" same 1 0 50
check "and is written" put 2 50 1
check "and read" same 2 50 1

say "kill -9 of the daemon"
kill_daemon; start_daemon
until_true 30 readable $DEV || fail "the device does not answer"
check "the same is there" same 2 8960 512
check "304 are in the spare" is remapped_sectors 304

say "the holes are gone"
swap
check "all goes back" holdfast badblocks remove r0 --all
check "nothing is in the spare" is remapped_sectors 0
check "what was moved is there" same 2 8960 512
check "on the disk itself" eval 'piece /dev/mapper/old 8960 512 direct | cmp -s - <(piece /run/pattern2 8960 512)'

say "a region that refuses writes"
swap error_writes 2000 512
check "writes succeed" put 2 1900 700
check "and are read" same 2 1900 700
check "512 are in the spare" is remapped_sectors 512
swap
check "all goes back" holdfast badblocks remove r0 --all
check "and is read" same 2 1900 700

say "a region that loses writes"
holdfast set r0 checksums=on || fail "checksums"
check "it has checksums" until_true 120 eval 'holdfast status r0 --json | tr -d " \n" | grep -q "\"checksums\":\"on\""'
swap drop_writes 6000 64
check "writes seem to work" put 3 5990 84
check "the lost ones are not read as they were" eio 6000
check "nor the last one" eio 6063
check "their neighbours are new" same 3 5990 10
check "and behind" same 3 6064 10
check "what is written to blocks that are known is looked at" put 3 6000 1
check "and read" same 3 6000 1
swap
check "what is lost is written again" put 3 5990 84
check "and read" same 3 5990 84

say "ext4 on a disk with holes"
holes=(); for n in $(seq 60); do holes+=(error $((n * 1009)) $((n % 3 + 1))); done
swap "${holes[@]}"
check mkfs mkfs.ext4 -q -b 4096 $DEV
mount $DEV /mnt || fail mount
check "fio sees no error" fio --name=load --directory=/mnt --size=160M --rw=randwrite --bsrange=4k-64k --ioengine=libaio --iodepth=8 \
    --direct=1 --fsync=256 --thread --verify=crc32c --verify_fatal=1 --verify_state_save=0 --eta=never --output=/run/fio.log
check unmounting umount /mnt
check fsck e2fsck -fn $DEV
say "$(field remapped_sectors) in the spare, $(field unreadable_blocks) cannot be read"
check "the device goes" holdfast device r0 --remove
check "the end" holdfast secondary r0
swap
check "delete puts all back" holdfast delete r0
check "the disk alone has a clean filesystem" e2fsck -fn /dev/mapper/old
kill $DAEMON 2> /dev/null; wait $DAEMON
finish
