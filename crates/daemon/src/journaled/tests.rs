//! The thread against disks and files that fail.
