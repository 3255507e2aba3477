# The daemon is killed while `detach` waits for a flush of its own device: it must be able to end, and the next one to
# start and to take the device over.
. /lab/lib.sh
mkdir -p /var/lib /run/holdfast /ram; mount -t tmpfs tmpfs /ram
modprobe -a ublk_drv nbd 2> /dev/null
say "kernel $(uname -r)"
held() { grep -sqz '^hold-device$' /proc/[0-9]*/cmdline; }
let_go() { ! held; }
for via in ublk nbd; do
    [ -e /dev/ublk-control ] || [ $via = nbd ] || continue
    truncate -s 64M /ram/$via.img
    holdfast serve /ram/$via.img --unix /run/$via.sock -q > /dev/null & server=$!
    until_true 10 test -S /run/$via.sock
    start_daemon
    check "$via: attach" holdfast -q attach --via $via --io-timeout 0 --name $via "nbd+unix:///?socket=/run/$via.sock"
    dd if=/dev/zero of=/dev/holdfast/$via bs=64k count=4 2> /dev/null
    kill -STOP $server
    holdfast -q detach $via > /dev/null 2>&1 & asking=$!
    until_true 10 held || fail "$via: no helper holds the device"
    pause 1
    kill -9 $DAEMON; pause 1
    kill -CONT $server
    wait $DAEMON 2> /dev/null; wait $asking
    check "$via: the killed daemon is gone" until_true 10 test ! -e /proc/$DAEMON
    start_daemon
    check "$via: the next daemon has taken the device over" until_true 20 readable /dev/holdfast/$via
    check "$via: the helper has let go" until_true 20 let_go
    check "$via: detach" holdfast -q detach $via
    kill $DAEMON; wait $DAEMON
    kill $server; wait $server
done
finish
