# What udev makes of our devices. Needs udev's own programs and rules, for instance from Debian's package, unpacked to $U:
# lab run --disk 256M --add holdfast lib.sh $U/bin/udevadm:/usr/bin/udevadm $U/lib/udev/rules.d:/usr/lib/udev/rules.d 99-holdfast.rules
. /lab/lib.sh
mkdir -p /var/lib /run/holdfast /run/udev/rules.d
cp /lab/99-holdfast.rules /run/udev/rules.d/
ln -sf /usr/bin/udevadm /run/systemd-udevd
/run/systemd-udevd --daemon 2> /run/udev.log || fail "udevd did not start: $(cat /run/udev.log)"
check "the rules are understood" eval '! udevadm test /sys/block/vdb 2>&1 | grep -E "99-holdfast.*(nvalid|nknown|gnoring)"'
links() { udevadm info --query=symlink --name="$1"; }
start_daemon
holdfast create r0 --disk /dev/vdb || fail create
for via in ${VIAS:-nbd fuse ublk}; do
    holdfast device r0 --via $via 2> /run/why || { say "no $via: $(cat /run/why)"; continue; }
    node=$(readlink -f /dev/holdfast/r0)
    printf '\0\0\2\0\203\0\0\0\0\10\0\0\0\0\4\0' | dd of=$node bs=1 seek=446 conv=notrunc,fsync 2> /dev/null
    printf '\125\252' | dd of=$node bs=1 seek=510 conv=notrunc,fsync 2> /dev/null
    blockdev --rereadpt $node
    check "$via: udev knows the link to $node" until_true 10 eval 'links $node | grep -qw holdfast/r0'
    check "$via: and one to the partition" until_true 10 test -b /dev/holdfast/r0-part1
    udevadm settle
    check "$via: it is marked" eval 'udevadm info --query=property --name=$node | grep -q HOLDFAST_VIA=$via'
    if [ $via != fuse ]; then
        kill_daemon; start_daemon
        check "$via: it goes on" until_true 30 readable /dev/holdfast/r0
    fi
    udevadm trigger --settle /sys/block/${node#/dev/}
    check "$via: the link is there after a trigger" eval '[ "$(readlink -f /dev/holdfast/r0)" = $node ]'
    check "$via: it goes" until_true 10 holdfast device r0 --remove
    udevadm settle
    check "$via: the links are gone" eval '! ls /dev/holdfast/* 2> /dev/null'
    check "$via: no word of it is left" test ! -e /run/holdfast/devices/.udev
done
kill -TERM $DAEMON; wait $DAEMON
kill $(pidof systemd-udevd)
finish
