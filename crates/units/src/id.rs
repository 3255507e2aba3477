use std::fmt;

/// A node's number within one resource, `0..MAX_NODES`: it selects bitmap slots and mask bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u8);

impl NodeId {
    /// The node with this number; `None` when it is not below [`crate::MAX_NODES`].
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < crate::MAX_NODES { Some(Self(number)) } else { None }
    }

    /// The number, for tables indexed by node.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The number as it travels and is stored.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// A set of nodes of one resource, one bit a node.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct PeerSet(u32);

impl PeerSet {
    /// No node.
    pub const EMPTY: Self = Self(0);

    /// The set whose members are the set bits.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The set as bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether no node is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many nodes are in it.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether `node` is in it.
    #[must_use]
    pub const fn contains(self, node: NodeId) -> bool {
        self.0 & (1 << node.0) != 0
    }

    /// Adds a node.
    pub const fn insert(&mut self, node: NodeId) {
        self.0 |= 1 << node.0;
    }

    /// Takes a node out; whether it was in.
    pub const fn remove(&mut self, node: NodeId) -> bool {
        let had = self.contains(node);
        self.0 &= !(1 << node.0);
        had
    }

    /// The nodes that are in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The nodes that are in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The nodes that are in this set and not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The nodes, lowest first.
    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        (0..crate::MAX_NODES).map(NodeId).filter(move |n| self.contains(*n))
    }
}

impl FromIterator<NodeId> for PeerSet {
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> Self {
        let mut set = Self::EMPTY;
        for node in nodes {
            set.insert(node);
        }
        set
    }
}

impl fmt::Debug for PeerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// A data generation (DRBD's UUID): two disks with the same current generation and no missed
/// block hold the same data. Zero means "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct GenerationId(pub u64);

impl GenerationId {
    /// No generation: an empty slot.
    pub const NONE: Self = Self(0);
    /// The generation of a disk that never held data of the resource (DRBD's value 4).
    pub const JUST_CREATED: Self = Self(4);

    /// Whether this is an empty slot.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

impl fmt::Debug for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

/// What makes a resource the same resource on every node (a random 128-bit number).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct ResourceId(pub [u8; 16]);

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for ResourceId {
    type Err = ();

    /// Reads what `Display` printed: 32 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() != 32 || !text.is_ascii() {
            return Err(());
        }
        let mut id = [0; 16];
        for (byte, at) in id.iter_mut().zip((0..32).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| ())?;
        }
        Ok(Self(id))
    }
}

/// A point of monotonic time in milliseconds, counted from any start that the caller likes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Debug)]
pub struct Millis(pub u64);

impl Millis {
    /// This point and `milliseconds` more.
    #[must_use]
    pub const fn after(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }

    /// Milliseconds since `earlier`; 0 when it is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
