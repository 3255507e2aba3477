use std::io;

/// The errors that a reply can carry. The protocol knows these and no others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
pub enum NbdError {
    /// EPERM: the export is read-only, or the client may not do this.
    #[error("operation not permitted")]
    NotPermitted,
    /// EIO: the device failed.
    #[error("input/output error")]
    Io,
    /// ENOMEM: only seen from other servers.
    #[error("out of memory")]
    NoMemory,
    /// EINVAL: the request makes no sense for this export.
    #[error("invalid request")]
    Invalid,
    /// ENOSPC: a write past the end, or the device is full.
    #[error("no space left on the export")]
    NoSpace,
    /// EOVERFLOW: too long to be answered in one piece.
    #[error("value too large")]
    Overflow,
    /// ENOTSUP: for instance a fast zero that would not be fast.
    #[error("operation not supported")]
    NotSupported,
    /// ESHUTDOWN: the server is about to stop.
    #[error("the server is shutting down")]
    Shutdown,
}

impl NbdError {
    /// The number that travels.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
        }
    }

    /// The error with this number; a number that the protocol does not define reads as
    /// [`NbdError::Invalid`], as it demands.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::NotPermitted,
            5 => Self::Io,
            12 => Self::NoMemory,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            _ => Self::Invalid,
        }
    }
}

impl From<&io::Error> for NbdError {
    /// The nearest protocol error; whatever has no counterpart is [`NbdError::Io`].
    fn from(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::EROFS) => Self::NotPermitted,
            Some(libc::EINVAL) => Self::Invalid,
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::NoSpace,
            Some(libc::EOVERFLOW) => Self::Overflow,
            Some(libc::EOPNOTSUPP) => Self::NotSupported,
            Some(libc::ESHUTDOWN) => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

impl From<NbdError> for io::Error {
    fn from(error: NbdError) -> Self {
        Self::from_raw_os_error(match error {
            NbdError::NotPermitted => libc::EPERM,
            NbdError::Io => libc::EIO,
            NbdError::NoMemory => libc::ENOMEM,
            NbdError::Invalid => libc::EINVAL,
            NbdError::NoSpace => libc::ENOSPC,
            NbdError::Overflow => libc::EOVERFLOW,
            NbdError::NotSupported => libc::EOPNOTSUPP,
            NbdError::Shutdown => libc::ESHUTDOWN,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::NbdError;
    use std::io;

    #[test]
    fn numbers_go_both_ways() {
        for number in [1, 5, 12, 22, 28, 75, 95, 108] {
            assert_eq!(NbdError::from_number(number).number(), number);
        }
        assert_eq!(NbdError::from_number(7), NbdError::Invalid);
    }

    #[test]
    fn os_errors_map_to_what_the_protocol_has() {
        let of = |code| NbdError::from(&io::Error::from_raw_os_error(code));
        assert_eq!(of(libc::EFBIG), NbdError::NoSpace);
        assert_eq!(of(libc::EROFS), NbdError::NotPermitted);
        assert_eq!(of(libc::ENXIO), NbdError::Io);
        assert_eq!(NbdError::from(&io::Error::other("x")), NbdError::Io);
    }
}
