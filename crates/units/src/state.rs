//! The state words of DRBD 9, spelt as `status` prints them.

/// Makes an enum of words with their spelling both ways and a stable number for wire and disk.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $word:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $word = $number,)* }

        impl $name {
            /// Every word, in order.
            pub const ALL: &[Self] = &[$(Self::$word,)*];

            /// The word as `status` prints it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$word => stringify!($word),)* }
            }

            /// The word with this number; `None` when there is none.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$word),)* _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// What a node may do with the resource.
    Role {
        /// The peer was not seen yet, so its role is not known.
        Unknown = 0,
        /// Takes part, but gives no access.
        Secondary = 1,
        /// Gives access: reads and writes of clients.
        Primary = 2,
    }
}

words! {
    /// What a node's copy of the data is worth. Ordered from nothing to everything.
    DiskState {
        /// No disk, by wish or after a failure.
        Diskless = 0,
        /// Metadata is being read.
        Attaching = 1,
        /// The disk is being given up; requests on it are being waited for.
        Detaching = 2,
        /// The disk reported an error (or a flush failed) and is not used any more.
        Failed = 3,
        /// The copy's worth is being found out with a peer.
        Negotiating = 4,
        /// Some blocks are old, some new: of no use until a resync has finished.
        Inconsistent = 5,
        /// A past state: consistent, but a peer has newer data.
        Outdated = 6,
        /// A peer's disk of which nothing is known.
        DUnknown = 7,
        /// Consistent; whether it is up to date is known only when a peer was met.
        Consistent = 8,
        /// The current data.
        UpToDate = 9,
    }
}

words! {
    /// How the connection to a peer stands.
    ConnectionState {
        /// Not connected and not trying to be: by wish, or because a person must decide.
        StandAlone = 0,
        /// On the way to `StandAlone`.
        Disconnecting = 1,
        /// About to try.
        Unconnected = 2,
        /// The peer did not answer in time.
        Timeout = 3,
        /// The connection broke.
        BrokenPipe = 4,
        /// The network failed.
        NetworkFailure = 5,
        /// The peer said something that the protocol does not allow.
        ProtocolError = 6,
        /// The peer is closing the connection.
        TearDown = 7,
        /// Trying to reach the peer.
        Connecting = 8,
        /// Connected.
        Connected = 9,
    }
}

words! {
    /// What goes on between this node's disk and a peer's.
    ReplicationState {
        /// Nothing: not connected, or one side has no disk.
        Off = 0,
        /// Writes are carried to the peer; nothing to catch up.
        Established = 1,
        /// About to send a full resync.
        StartingSyncS = 2,
        /// About to receive a full resync.
        StartingSyncT = 3,
        /// Exchanging bitmaps, to be source.
        WFBitMapS = 4,
        /// Exchanging bitmaps, to be target.
        WFBitMapT = 5,
        /// Sending what the peer missed.
        SyncSource = 6,
        /// Receiving what this node missed.
        SyncTarget = 7,
        /// Comparing, as source.
        VerifyS = 8,
        /// Comparing, as target.
        VerifyT = 9,
        /// A resync that is held, as source.
        PausedSyncS = 10,
        /// A resync that is held, as target.
        PausedSyncT = 11,
        /// Writes are only marked, not sent: the peer keeps an older state.
        Ahead = 12,
        /// The other side of `Ahead`.
        Behind = 13,
    }
}
