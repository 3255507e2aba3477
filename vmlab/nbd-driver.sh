# The test program of the kernel's NBD client, as /lab/nbd_kernel.
# lab run --disk 64M --mem 1024 --add lib.sh nbd_kernel
. /lab/lib.sh
say "kernel $(uname -r)"
check "nbd_kernel" nbd_kernel --test-threads=1 --nocapture
check "nothing was skipped" eval '! nbd_kernel --exact a_completed_write_is_with_the_backend --nocapture | grep skipped'
finish
