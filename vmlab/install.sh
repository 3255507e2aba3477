# The life of the package on a real Debian with systemd; vmlab/install boots it. STAGE is
# first:  install OLD.deb, make a cluster, a resource and a filesystem by typing what the guide says, upgrade to NEW.deb under load;
# second: the same disks under another kernel: all is there again; then remove on node 1, purge on node 2.
. /lab/lib.sh
DATA=/dev/vdc
typed() { COMMANDS=$((${COMMANDS:-0} + 1)); echo "# $*"; "$@" > /run/typed.log 2>&1 || { fail "$*"; cat /run/typed.log; }; }
own_files() { find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /lab -o -path /tmp -o -path /var/log -o -path /var/cache \
    -o -path /root -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /usr/lib/modules \) -prune -o -iname '*holdfast*' -print | sort; }
version() { dpkg-query -W -f '${Version}' holdfast; }
main_pid() { systemctl show -P MainPID holdfast.service; }
restarted() { [ "$(main_pid)" != "$1" ] && systemctl -q is-active holdfast.service; }
finish() {
    journalctl -b -k -o cat | grep -E "I/O error|EXT4-fs error|hung_task|blocked for more" | head -5
    [ $FAILED = 0 ] || { journalctl -b -u holdfast -o cat | tail -40 | cut -c1-220; ls -la /lab; }
    say "$FAILED failures"; exit $((FAILED > 0))
}
say "$(. /etc/os-release; echo $PRETTY_NAME), kernel $(uname -r), $STAGE boot"
began=$(now_ms)

if [ $STAGE = first ]; then
    [ -z "$(own_files)" ] || fail "something of holdfast is there before: $(own_files)"
    typed apt-get install -y /lab/old.deb
    say "installed after $((($(now_ms) - began) / 1000)) s"
    check "the service runs" systemctl -q is-active holdfast.service
    check "and will run at the next boot" systemctl -q is-enabled holdfast.service
    check "no unit has failed" eval '[ -z "$(systemctl --failed --no-legend)" ]'
    check "status without a cluster" holdfast status
    check "the manual page is there" test -s /usr/share/man/man1/holdfast.1.gz
    check "everybody may run it, root alone may look at the state" eval '[ "$(stat -c %a /usr/bin/holdfast /var/lib/holdfast | xargs)" = "755 700" ]'
    check "dpkg finds nothing changed" eval '[ -z "$(dpkg --verify holdfast)" ]'

    # The installation is one of them.
    began=$(now_ms); COMMANDS=1
    typed holdfast config set listen=10.77.0.$NODE --restart
    if [ $NODE = 1 ]; then
        typed holdfast create db --disk $DATA --device
        typed mkfs.ext4 -q /dev/holdfast/db
        typed mount /dev/holdfast/db /mnt
        typed holdfast cluster token; grep -o 'hf1-[^ ]*' /run/typed.log > /run/token
        host barrier invited; /applets/busybox nc -l -p 9999 < /run/token
        host barrier joined
        check "the other node is there, and up to date" holdfast wait db --for synced --timeout 60
    else
        host barrier invited
        until_true 20 eval '/applets/busybox nc 10.77.0.1 9999 < /dev/null > /run/token; test -s /run/token'
        typed holdfast cluster join "$(cat /run/token)"
        typed holdfast join db --disk $DATA
        typed holdfast wait db --for uptodate --timeout 120
        host barrier joined
    fi
    check "six commands at most" [ $COMMANDS -le 6 ]
    say "$COMMANDS commands here, $((($(now_ms) - began) / 1000)) s from the installed package to a mounted replicated filesystem"
    host barrier mounted
    if [ $NODE = 1 ]; then
        holdfast status db; holdfast device db
        # Slow enough to leave the emulated processor to the package manager.
        fio --name=load --directory=/mnt --size=16M --rw=randwrite --bs=4k --ioengine=libaio --iodepth=4 --direct=1 --thread --rate_iops=50 \
            --fsync=64 --verify=crc32c --verify_backlog=64 --verify_fatal=1 --time_based --runtime=100000 --eta=never \
            > /run/fio.log 2>&1 & LOAD=$!
        until_true 120 test -e /mnt/load.0.0; pause 2
        node=$(readlink -f /dev/holdfast/db)
    fi
    before=$(main_pid)
    typed apt-get install -y /lab/new.deb
    check "the new version is there" eval '[ "$(version)" != "$(dpkg-deb -f /lab/old.deb Version)" ]'
    check "and its daemon runs" until_true 60 restarted "$before"
    check "the configuration stayed" grep -q "10.77.0.$NODE" /etc/holdfast/holdfast.toml
    if [ $NODE = 1 ]; then
        check "the device answers" until_true 60 readable $node
        pause 3
        check "fio saw no error over the upgrade" fio_ended $LOAD /run/fio.log
        grep -E "err=|IOPS" /run/fio.log | cut -c1-120
        check "the device is the same" eval '[ "$(readlink -f /dev/holdfast/db)" = $node ]'
        check "no I/O error in the kernel's log" eval '! journalctl -b -k -o cat | grep -E "I/O error|EXT4-fs error"'
        apt-get remove -y holdfast > /run/remove.log 2>&1 && fail "a package was removed whose device is mounted"
        check "the refusal names the device" grep -q "error: holdfast was not removed: in use: /dev/holdfast/db" /run/remove.log
        check "the service still runs" systemctl -q is-active holdfast.service
        check "the package is still there" eval 'dpkg-query -W -f "\${Status}" holdfast | grep -q "ok installed"'
        check "the device still answers" readable $node
        rm /mnt/load.0.0; echo kept > /mnt/kept; head -c 20M /dev/urandom > /mnt/random; sync
        sha256sum < /mnt/random > /root/random.sum
        umount /mnt
        # As the guide says.
        echo "/dev/holdfast/db /mnt ext4 x-systemd.requires=holdfast-wait@db.service,x-systemd.device-timeout=3min,_netdev,nofail 0 2" >> /etc/fstab
        until_true 60 holdfast wait db --for synced --timeout 5 || fail "not in sync"
    fi
    host barrier end
    finish
fi

check "the service came by itself" until_true 60 systemctl -q is-active holdfast.service
check "no unit has failed" eval '[ -z "$(systemctl --failed --no-legend)" ]'
for unit in $(systemctl --failed --plain --no-legend | cut -d' ' -f1); do systemctl status --no-pager -l $unit; done
host barrier up
if [ $NODE = 1 ]; then
    check "Primary again by itself" holdfast wait db --for primary --timeout 60
    check "mounted by the line in fstab" until_true 150 mountpoint -q /mnt
    check "a device again" holdfast device db
    holdfast status db
    check "all is there" eval 'grep -q kept /mnt/kept && sha256sum < /mnt/random | cmp - /root/random.sum'
    umount /mnt
    until_true 60 holdfast wait db --for synced --timeout 5 || fail "not in sync"
fi
host barrier looked
# One after the other, so that node 1 comes back to a node that is there.
[ $NODE = 1 ] || host barrier again
typed apt-get remove -y holdfast
check "no process is left" eval '! pgrep -a holdfast'
check "no device is left" eval '! ls /dev/holdfast/* 2> /dev/null'
check "the run directory is gone" test ! -e /run/holdfast
check "nothing but configuration, state and systemd's note is left" eval '[ "$(own_files | grep -vE "^/(etc|var/lib)/holdfast($|/)|deb-systemd-helper|multi-user.target.wants")" = "" ]'
own_files
check "the state is left" test -d /var/lib/holdfast/resources
if [ $NODE = 1 ]; then
    typed apt-get install -y /lab/new.deb
    check "after another installation it goes on where it was" until_true 60 holdfast wait db --for uptodate --timeout 5
    host barrier again
    typed apt-get remove -y holdfast
fi
typed apt-get purge -y holdfast
check "purged: nothing is left" eval '[ -z "$(own_files)" ]'
own_files
check "the disk has its data" eval 'mount -o ro,noload $DATA /mnt && grep -q kept /mnt/kept'
umount /mnt
host barrier end
finish
