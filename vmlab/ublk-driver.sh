# The tests of the driver's crates, which need a kernel with ublk. On the path as ublk-test and ublk-device: the test programs
# `ublk` of holdfast-device and `device` of holdfast-ublk.
# lab run --add lib.sh ublk-test ublk-device
. /lab/lib.sh
ulimit -n 8192; uname -r
modprobe ublk_drv
check "ways of copying" timeout 60 ublk-device --nocapture
for test in $(ublk-test --list 2> /dev/null | sed -n 's/: test$//p'); do
    timeout 90 ublk-test --exact $test --test-threads=1 --nocapture > /run/out 2>&1; status=$?
    check "$test" test $status = 0
    [ $status = 0 ] || head -c 2500 /run/out | grep -v "^$" | head -20
    grep -oE "taken over in.*|UPDATE_SIZE.*|skipped.*" /run/out
done
finish
