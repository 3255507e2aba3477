//! Generic netlink, as much of it as the kernel's NBD client needs: requests with attributes, and
//! their answers.
//!
//! Numbers are in the byte order of the machine. Every length of an answer is checked before it is
//! used.
#![allow(unsafe_code)]

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
/// The kinds of messages that are no family's.
const KIND_ERROR: u16 = 2;
const KIND_CONTROLLER: u16 = 0x10;
const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;
/// Bits of an attribute's kind that are flags.
const ATTRIBUTE_FLAGS: u16 = 0xc000;
const NESTED: u16 = 0x8000;
/// The controller's command and attributes, by which a family's number is found.
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const FAMILY_GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;
/// An answer is a few hundred bytes long; what is longer is cut off, and then refused.
const ANSWER: usize = 16 << 10;
/// The kernel answers within the call that sends.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages of others that are passed over while waiting for an answer.
const STRAY: usize = 64;

/// The attributes of a request, as bytes.
#[derive(Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(ATTRIBUTE_HEADER + value.len()).expect("attributes are short");
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A string with the zero byte that ends it.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn nested(&mut self, kind: u16, inside: &Self) -> &mut Self {
        self.bytes(kind | NESTED, &inside.0)
    }
}

/// The value of the first attribute of a kind.
pub(crate) fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let (len, found) = (u16_at(attributes, 0)?, u16_at(attributes, 2)?);
        let len = usize::from(len);
        let value = attributes.get(ATTRIBUTE_HEADER..len)?;
        if found & !ATTRIBUTE_FLAGS == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

/// A connection to one family of the kernel.
pub(crate) struct Family {
    socket: OwnedFd,
    id: u16,
    sequence: u32,
    /// What the controller told of it.
    told: Vec<u8>,
}

impl Family {
    /// Finds the family of this name.
    ///
    /// # Errors
    /// `ENOENT` when the kernel has none: its module is not loaded, for instance.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        let family = AddressFamily::NETLINK;
        let socket = rustix::net::socket_with(family, kind, flags, Some(netlink::GENERIC))?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        let mut controller = Self { socket, id: KIND_CONTROLLER, sequence: 0, told: Vec::new() };
        let mut attributes = Attributes::default();
        let told = controller.ask(GET_FAMILY, attributes.text(FAMILY_NAME, name))?;
        let told = told.unwrap_or_default();
        let id = find(&told, FAMILY_ID).and_then(|value| u16_at(value, 0));
        let id = id.ok_or_else(|| malformed("it did not tell the number of a family"))?;
        Ok(Self { id, told, ..controller })
    }

    /// From now on the messages to this group of the family come in; see [`Family::receive`].
    ///
    /// # Errors
    /// When there is no such group, or it may not be listened to.
    pub(crate) fn subscribe(&mut self, group: &str) -> io::Result<()> {
        let id = group_id(&self.told, group).ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: the option's value is the 4 bytes of `id`, which live for the length of the call,
        // and the descriptor is open.
        let set = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                (&raw const id).cast(),
                4,
            )
        };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// What can be polled for messages of groups.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The command and the attributes of each message of the next datagram. Waits for it.
    ///
    /// # Errors
    /// When nothing comes, or messages were lost.
    pub(crate) fn receive(&mut self) -> io::Result<Vec<(u8, Vec<u8>)>> {
        let mut buffer = vec![0; ANSWER];
        let mut messages = Vec::new();
        for message in Messages(self.datagram(&mut buffer)?) {
            let message = message?;
            if let (true, Some((head, attributes))) =
                (message.kind == self.id, message.body.split_at_checked(GENERIC_HEADER))
            {
                messages.push((head[0], attributes.to_vec()));
            }
        }
        Ok(messages)
    }

    /// The next datagram; empty when it is not the kernel's.
    fn datagram<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let (len, _, from) = rustix::net::recvfrom(&self.socket, &mut *buffer, RecvFlags::empty())?;
        // Another process can send to us, too; the kernel has the number 0.
        let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
        let is_kernel = from.is_some_and(|from| from.pid() == 0);
        Ok(if is_kernel { buffer.get(..len).unwrap_or_default() } else { &[] })
    }

    /// Sends a command and waits until it was carried out; the attributes of the answer, when there
    /// was one besides the acknowledgement.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn ask(
        &mut self,
        command: u8,
        attributes: &Attributes,
    ) -> io::Result<Option<Vec<u8>>> {
        self.sequence += 1;
        let request = request(self.id, self.sequence, command, attributes);
        let sent = rustix::net::send(&self.socket, &request, SendFlags::empty())?;
        if sent != request.len() {
            return Err(malformed("it took a part of a request"));
        }
        let mut answer = None;
        let mut buffer = vec![0; ANSWER];
        for _ in 0..STRAY {
            let datagram = self.datagram(&mut buffer)?;
            if self.read(datagram, &mut answer)? {
                return Ok(answer);
            }
        }
        Err(malformed("it did not answer a request"))
    }

    /// Reads the messages of a datagram; whether the acknowledgement was among them.
    fn read(&self, datagram: &[u8], answer: &mut Option<Vec<u8>>) -> io::Result<bool> {
        for message in Messages(datagram) {
            let message = message?;
            if message.sequence != self.sequence {
                continue;
            }
            if message.kind == KIND_ERROR {
                let code = message.body.first_chunk().map(|code| i32::from_ne_bytes(*code));
                return match code.ok_or_else(|| malformed("an acknowledgement is cut off"))? {
                    0 => Ok(true),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                };
            }
            if message.kind == self.id {
                let attributes = message.body.get(GENERIC_HEADER..).unwrap_or_default();
                *answer = Some(attributes.to_vec());
            }
        }
        Ok(false)
    }
}

/// The number of a family's group, from what the controller told.
fn group_id(told: &[u8], name: &str) -> Option<u32> {
    let mut groups = find(told, FAMILY_GROUPS)?;
    while let Some(len) = u16_at(groups, 0).map(usize::from) {
        let group = groups.get(ATTRIBUTE_HEADER..len)?;
        let named = find(group, GROUP_NAME)?;
        if named.strip_suffix(&[0]).unwrap_or(named) == name.as_bytes() {
            return find(group, GROUP_ID).and_then(|id| u32_at(id, 0));
        }
        groups = groups.get(len.next_multiple_of(4)..)?;
    }
    None
}

fn request(id: u16, sequence: u32, command: u8, attributes: &Attributes) -> Vec<u8> {
    let len = HEADER + GENERIC_HEADER + attributes.0.len();
    let mut out = Vec::with_capacity(len);
    out.extend(u32::try_from(len).expect("requests are short").to_ne_bytes());
    out.extend(id.to_ne_bytes());
    out.extend((FLAG_REQUEST | FLAG_ACK).to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend(0u32.to_ne_bytes());
    out.extend([command, 1, 0, 0]);
    out.extend(&attributes.0);
    out
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of a datagram, one after the other.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<Message<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let whole = self.0;
        let message = (|| {
            let len = usize::try_from(u32_at(whole, 0)?).ok()?;
            let body = whole.get(HEADER..len)?;
            self.0 = whole.get(len.next_multiple_of(4)..).unwrap_or_default();
            Some(Message { kind: u16_at(whole, 4)?, sequence: u32_at(whole, 8)?, body })
        })();
        if message.is_none() {
            self.0 = &[];
        }
        Some(message.ok_or_else(|| malformed("a message is cut off")))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|field| u16::from_ne_bytes(*field))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_ne_bytes(*field))
}

fn malformed(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel's netlink: {why}"))
}

#[cfg(test)]
mod tests {
    use super::{Attributes, Family, Messages, find, request, u32_at};
    use std::io;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut inside = Attributes::default();
        inside.u32(1, 77);
        let mut all = Attributes::default();
        all.text(10, "abc").bytes(3, b"x").u64(2, 1 << 40).nested(7, &inside);
        assert_eq!(all.0.len() % 4, 0);
        assert_eq!(find(&all.0, 10), Some(&b"abc\0"[..]));
        assert_eq!(find(&all.0, 3), Some(&b"x"[..]));
        assert_eq!(find(&all.0, 2), Some(&(1u64 << 40).to_ne_bytes()[..]));
        let nested = find(&all.0, 7).unwrap();
        assert_eq!(find(nested, 1).and_then(|value| u32_at(value, 0)), Some(77));
        assert_eq!(find(&all.0, 9), None);
    }

    #[test]
    fn broken_attributes_and_messages_end_the_search() {
        for bytes in
            [&b""[..], b"\x01", b"\x00\x00\x01\x00", b"\x03\x00\x01\x00", b"\xff\xff\x01\x00"]
        {
            assert_eq!(find(bytes, 1), None, "{bytes:?}");
        }
        let good = request(20, 3, 1, &Attributes::default());
        for cut in 1..good.len() {
            let mut messages = Messages(&good[..cut]);
            assert!(messages.next().unwrap().is_err(), "cut at {cut}");
            assert!(messages.next().is_none());
        }
        let twice = [good.clone(), good].concat();
        let sequences: Vec<u32> = Messages(&twice).map(|m| m.unwrap().sequence).collect();
        assert_eq!(sequences, [3, 3]);
    }

    #[test]
    fn the_kernel_tells_its_families() {
        // Every kernel with generic netlink has the controller's own family.
        match Family::open("nlctrl") {
            Ok(mut family) => {
                assert_eq!(family.id, 0x10);
                family.subscribe("notify").unwrap();
                assert!(family.subscribe("no-such-group").is_err());
            }
            // A sandbox may have no netlink at all.
            Err(error) => assert_ne!(error.kind(), io::ErrorKind::InvalidData, "{error}"),
        }
        let missing = Family::open("no-such-family").err().expect("there is none");
        assert_ne!(missing.kind(), io::ErrorKind::InvalidData, "{missing}");
    }
}
