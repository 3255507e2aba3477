#!/bin/sh
# install.sh [--root DIR]: puts Holdfast where the packages put it, on a distribution without .deb and .rpm; also over an
# older version. --root makes a directory that becomes a machine later, and starts nothing.
set -eu
# Whoever has unpacked this, with whatever mask: all is root's, and everybody can read it.
umask 022
@FUNCTIONS@
here=$(cd "$(dirname "$0")" && pwd)
root=
case $# in
0) ;;
*) [ "$1" = --root ] && [ $# = 2 ] && [ -d "$2" ] || { echo "usage: install.sh [--root DIR]" >&2; exit 2; }
   root=$(cd "$2" && pwd) ;;
esac
refuse() { echo "error: holdfast was not installed: $1" >&2; echo "hint: $2" >&2; exit 1; }
me=$(id -u)
[ -n "$root" ] || [ "$me" = 0 ] || refuse "only root can" "run it with sudo"
"$here/tree/usr/bin/holdfast" --version > /dev/null 2>&1 || refuse "its program does not run here" \
    "it is for @ARCHITECTURE@ with glibc @GLIBC@ or newer; \`tree/usr/bin/holdfast --version\` says what is missing"
list=$root/usr/lib/holdfast/installed-files
# Whether a package manager of that system has put the program there.
is_packaged() {
    { [ -e "$root/var/lib/dpkg/status" ] && dpkg --root="$root/" -S /usr/bin/holdfast; } > /dev/null 2>&1 && return 0
    for db in "$root/var/lib/rpm" "$root/usr/lib/sysimage/rpm"; do
        { [ -d "$db" ] && rpm --root "$root/" -qf /usr/bin/holdfast; } > /dev/null 2>&1 && return 0
    done
    return 1
}
if is_packaged; then
    refuse "/usr/bin/holdfast belongs to a package" "upgrade or remove that one with apt, dnf or zypper"
fi

# put FILE PATH [MODE]: beside it and renamed, since a program that runs cannot be written over.
put() {
    mkdir -p "$(dirname "$2")"
    rm -f "$2.installing"
    cp -P "$1" "$2.installing"
    [ "$me" != 0 ] || chown -h 0:0 "$2.installing"
    [ -L "$2.installing" ] || chmod "${3:-644}" "$2.installing"
    mv -f "$2.installing" "$2"
}
old=
if [ -e "$list" ]; then old=$(cat "$list"); fi
(cd "$here/tree" && find . ! -type d) | sed 's/^\.//' | sort > "$here/installed-files.new"
# First what removes it all again, should this be interrupted: all old files and all new ones.
put "$here/uninstall.sh" "$root/usr/lib/holdfast/uninstall.sh" 755
printf '%s\n' $old | sort -u - "$here/installed-files.new" | grep . > "$here/installed-files.all"
put "$here/installed-files.all" "$list"
while read -r path; do
    to=$root$path
    mode=644
    case $path in
    # What somebody changed stays; the new default is put beside it.
    /etc/*) [ ! -e "$to" ] || cmp -s "$here/tree$path" "$to" || to=$to.new ;;
    /usr/bin/*) mode=755 ;;
    esac
    put "$here/tree$path" "$to" "$mode"
done < "$here/installed-files.new"
for path in $old; do
    case $path in /etc/*) continue ;; esac
    grep -qxF "$path" "$here/installed-files.new" || rm -f "$root$path"
done
put "$here/installed-files.new" "$list"
rm -f "$here/installed-files.new" "$here/installed-files.all"

[ -z "$root" ] || exit 0
if ! systemd_runs; then
    echo "installed; there is no systemd here: have 'holdfast daemon' started as root at boot"
    exit 0
fi
systemctl daemon-reload
udevadm control --reload || true
if systemctl -q is-active holdfast.service; then
    restart_service systemctl restart holdfast.service
else
    systemctl enable --now holdfast.service
fi
echo "installed; /usr/lib/holdfast/uninstall.sh removes it"
