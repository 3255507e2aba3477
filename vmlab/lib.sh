# Helpers of the guest scripts. $FAILED counts what went wrong; a script ends with `finish`.
FAILED=0
DAEMON=
say() { echo "--- $*"; }
fail() { echo "FAILED: $*"; FAILED=$((FAILED + 1)); }
check() { local what=$1; shift; if "$@"; then echo "ok: $what"; else fail "$what"; fi; }
# until_true SECONDS COMMAND...: tries it again and again.
until_true() {
    local end=$((${EPOCHREALTIME/./} + $1 * 1000000)); shift
    until "$@" > /dev/null 2>&1; do
        [ ${EPOCHREALTIME/./} -lt $end ] || return 1
        pause 0.05
    done
    return 0
}
pause() { read -rt "$1" <> <(:); }
start_daemon() {
    RUST_LOG=${RUST_LOG:-info} holdfast daemon "$@" >> /run/daemon.log 2>&1 & DAEMON=$!
    until_true 30 holdfast status || { fail "the daemon did not start"; tail -5 /run/daemon.log; }
}
kill_daemon() { kill -9 $DAEMON; wait $DAEMON 2> /dev/null; }
# fio_ended PID LOG: ends a fio that runs without an end; whether it saw no error.
fio_ended() { kill -INT $1; wait $1; grep -q 'err= 0' $2 && ! grep -iE 'verify:|error=' $2; }
# readable PATH: whether its first block can be read past every cache, within a few seconds.
readable() { timeout 20 dd if="$1" of=/dev/null bs=4096 count=1 iflag=direct 2> /dev/null; }
now_ms() { echo $((${EPOCHREALTIME/./} / 1000)); }
finish() {
    dmesg | grep -E "I/O error|Buffer I/O|EXT4-fs error|hung_task|blocked for more" | head -5
    [ $FAILED = 0 ] || { say "the end of the daemon's log"; tail -${LOG_LINES:-15} /run/daemon.log | cut -c1-220; }
    say "$FAILED failures"
    exit $((FAILED > 0))
}
