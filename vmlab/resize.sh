# A resource grows under a mounted filesystem, by each way of the kernel that can. The guest needs resize2fs:
# vmlab/run resize BINARY --add /sbin/resize2fs
. /lab/lib.sh
mkdir -p /var/lib /run/holdfast /ram; mount -t tmpfs tmpfs /ram
modprobe -a ublk_drv nbd loop fuse 2> /dev/null
say "kernel $(uname -r)"
start_daemon
for via in nbd fuse ublk; do
    [ -e /dev/ublk-control ] || [ $via != ublk ] || continue
    truncate -s 64M /ram/$via.img
    holdfast -q create $via --disk /ram/$via.img || fail "$via: create"
    holdfast -q device $via --via $via || fail "$via: device"
    dev=/dev/holdfast/$via
    mkfs.ext4 -q $dev && mount $dev /mnt || fail "$via: no filesystem"
    dd if=/dev/urandom of=/mnt/file bs=1M count=20 2> /dev/null; sum=$(md5sum < /mnt/file)
    truncate -s 128M /ram/$via.img
    holdfast resize $via || fail "$via: resize"
    if [ "$(blockdev --getsize64 $dev)" = 134217728 ]; then
        check "$via: the filesystem grows" resize2fs "$dev"
        check "$via: it takes more than before" dd if=/dev/urandom of=/mnt/more bs=1M count=60 conv=fsync
    else
        say "$via: this kernel keeps the size until the device is made again"
    fi
    check "$via: the file is what it was" test "$(md5sum < /mnt/file)" = "$sum"
    umount /mnt
    check "$via: the filesystem is clean" e2fsck -fn $dev
    holdfast -q device $via --remove || fail "$via: the device does not go"
done
kill $DAEMON; wait $DAEMON
finish
