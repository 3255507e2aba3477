#!/bin/sh
# uninstall.sh [--purge] [--root DIR]: removes what install.sh installed. The configuration and the state stay; --purge
# removes them, too. Disks stay always.
set -eu
@FUNCTIONS@
usage() { echo "usage: uninstall.sh [--purge] [--root DIR]" >&2; exit 2; }
root=
purge=
while [ $# -gt 0 ]; do
    case $1 in
    --purge) purge=yes ;;
    --root) [ $# -ge 2 ] && [ -d "$2" ] || usage; root=$(cd "$2" && pwd); shift ;;
    *) usage ;;
    esac
    shift
done
list=$root/usr/lib/holdfast/installed-files
if [ ! -e "$list" ]; then
    echo "error: holdfast was not removed: install.sh has not installed it: $list is not there" >&2
    exit 1
fi
if [ -z "$root" ]; then refuse_while_used; fi
if [ -z "$root" ] && systemd_runs; then systemctl disable --now holdfast.service || true; fi
# Also one that was started by hand, or that did not stop.
if [ -z "$root" ] && [ -n "$purge" ] && daemon_listens; then
    echo "error: holdfast was not removed: its daemon runs" >&2
    echo "hint: stop it, and try again; no file has been removed" >&2
    exit 1
fi
if [ -z "$root" ] && systemd_runs; then remove_run_dir; fi
while read -r path; do
    case $path in /etc/*) continue ;; esac
    rm -f "$root$path"
done < "$list"
rm -rf "$root/usr/lib/holdfast" "$root/usr/share/doc/holdfast"
if [ -n "$purge" ]; then
    purge_state "$root/var/lib/holdfast"
    purge_config "$root/etc/holdfast"
fi
if [ -z "$root" ] && systemd_runs; then
    systemctl daemon-reload
    udevadm control --reload || true
fi
