# What the scripts of all packages share; `cargo xtask package` puts it into each of them. POSIX sh.

# Whether this is a machine that systemd runs, and not a directory that becomes one.
systemd_runs() { [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; }

# Whether this is the machine itself, and not a directory that becomes one.
real_root() { [ -z "${DPKG_ROOT:-}" ]; }

# is_target PATH: whether the kernel gives the device away: as an NVMe or SCSI target.
is_target() {
    for file in /sys/kernel/config/nvmet/subsystems/*/namespaces/*/device_path /sys/kernel/config/target/core/*/*/udev_path; do
        [ ! -e "$file" ] || [ "$(readlink -f "$(cat "$file")")" != "$1" ] || return 0
    done
    return 1
}

# is_used NODE: whether a block device or a partition of it is mounted anywhere, swap, below another device, or open; also in the
# kernel itself, as a file of a loop device or a target, or by whoever has claimed it for himself.
is_used() {
    for part in "/sys/class/block/${1#/dev/}" "/sys/class/block/${1#/dev/}"p[0-9]*; do
        [ -e "$part/dev" ] || continue
        path=/dev/${part##*/}
        number=$(cat "$part/dev")
        cat /proc/[0-9]*/mountinfo 2> /dev/null | grep -qE "^[0-9]+ [0-9]+ $number | - [^ ]+ $path " && return 0
        grep -q "^$path " /proc/swaps && return 0
        for holder in "$part"/holders/*; do
            [ ! -e "$holder" ] || return 0
        done
        cat /sys/class/block/loop*/loop/backing_file 2> /dev/null | grep -qxF "$path" && return 0
        is_target "$path" && return 0
        ls -l /proc/[0-9]*/fd 2> /dev/null | grep -q -- "-> $path\$" && return 0
        # Opens it as its only user, and changes nothing. It reads: without its daemon a device does not answer.
        LC_ALL=C timeout -s KILL 5 wipefs --all --no-act "$path" 2>&1 | grep -q "resource busy" && return 0
    done
    return 1
}

# Names the devices of Holdfast that are in use.
used_devices() {
    for link in /dev/holdfast/*; do
        [ -b "$link" ] || continue
        if is_used "$(readlink -f "$link")"; then echo "$link"; fi
    done
}

# Names the exports that somebody has open by NBD, or as a device, as the daemon says.
used_exports() {
    timeout 10 holdfast status --format line 2> /dev/null |
        sed -n 's|^resource=\([^ ]*\) .* open=\([1-9][0-9]*\) .*|\1 \2|p' |
        while read -r name count; do
            case " $1 " in *" /dev/holdfast/$name "*) ;; *) echo "$name ($count have it open)" ;; esac
        done
}

# Whether a daemon listens at the usual place.
daemon_listens() {
    grep -qE '^[^ ]+ [0-9A-F]+ [0-9A-F]+ 00010000 .* /run/holdfast/control\.sock$' "${UNIX_SOCKETS:-/proc/net/unix}" 2> /dev/null
}

# Refuses to go on while a device is in use: nobody would answer it any more, and what waits for it would wait for ever.
# Who has just opened it for a look, as udev does, is gone a moment later.
refuse_while_used() {
    for attempt in 1 2 3; do
        used=$(echo $(used_devices))
        used=$(echo $used $(used_exports "$used"))
        [ -n "$used" ] || return 0
        sleep 1
    done
    echo "error: holdfast was not removed: in use: $used" >&2
    echo "hint: unmount it, stop what has it open, and try again; nothing has changed" >&2
    return 1
}

# Starts the new version in the place of the old one. The kernel keeps ublk and NBD devices meanwhile, and their I/O waits.
# One that goes by FUSE is served by the old process alone, so while it is used that process stays.
restart_service() {
    for device in $(used_devices); do
        backing=/sys/class/block/$(basename "$(readlink -f "$device")")/loop/backing_file
        case $(cat "$backing" 2> /dev/null) in
        */holdfast/devices/*)
            echo "warning: the old version of holdfast goes on: $device is in use and would not outlive it (FUSE)" >&2
            echo "hint: when it is free: systemctl restart holdfast.service" >&2
            return 0 ;;
        esac
    done
    "$@" || echo "warning: holdfast.service did not start again; journalctl -u holdfast says why" >&2
}

# Forgets what was known of devices, once all are gone: only what the service keeps over its restarts is there.
remove_run_dir() { [ -e /run/holdfast/devices/.udev ] || rm -rf --one-file-system /run/holdfast; }

# purge_config DIR: removes what the package put there, and what was made of it. Keys and what else somebody put there stay.
purge_config() {
    [ -d "$1" ] || return 0
    rm -f "$1/holdfast.toml" "$1"/holdfast.toml.new "$1"/holdfast.toml.dpkg-*
    rmdir "$1" 2> /dev/null || echo "warning: $1 was kept: there are files of others in it" >&2
}

# understood STATE: whether this is the undamaged state of a resource, as this version writes it.
understood() { [ "$(head -n 1 "$1")" = "holdfast-resource 1 $(tail -n +2 "$1" | sha256sum | cut -d ' ' -f 1)" ]; }

# purge_state DIR: removes what the daemon keeps below its state directory. Disks, journals and whatever else somebody put there
# stay. So does all of it while a resource has a journal or spares, or may have some: without its state nobody knows what of its
# data is there.
purge_state() {
    [ -d "$1" ] || return 0
    for state in "$1"/resources/*.state; do
        [ -e "$state" ] || [ -L "$state" ] || continue
        if ! understood "$state"; then
            why="$state is damaged or of another version: its resource may have a journal or spares"
        elif grep -qE '"(journal|spares)":[[:space:]]*[[{]' "$state"; then
            why="a resource has a journal or spares, which may hold data that its disk has not"
        else
            continue
        fi
        echo "warning: $1 was kept: $why" >&2
        echo "hint: when nobody needs them: rm -r $1" >&2
        return 0
    done
    rm -rf "$1/attachments" "$1/health" "$1/identity" "$1/identity.new" "$1/logpeers" "$1/mirrors" "$1/resources"
    rm -f "$1"/meta/*.meta "$1"/meta/*.checksums "$1"/*.state "$1"/cluster.* "$1"/*.new
    rmdir "$1/meta" "$1" 2> /dev/null || [ ! -d "$1" ] || echo "warning: $1 was kept: there are files of others in it" >&2
}
