//! The fields of each message. Writing and reading stand in the same order of kinds; whoever
//! changes one changes the other and `docs/design/wire.md`.

use super::{
    Kind, MAX_BITMAP_RUNS, MAX_DATALESS_RANGE, MAX_DIFFERING, MAX_REFUSAL_TEXT, MAX_VERIFY_BLOCKS,
};
use crate::{
    Differing, Digest, Generations, Hello, Message, PeerResult, PromoteAnswer, PromoteStep,
    RefusalCode, RepairMode, StateReport, SyncPause, Verdict, WireError, WriteKind,
};
use bytes::Bytes;
use holdfast_units::{
    BLOCK_SIZE, ByteRange, DiskState, GenerationId, MAX_REQUEST, NodeId, PeerSet, ResourceId, Role,
};

/// Stands for "no node".
const NO_NODE: u8 = u8::MAX;
/// No device is larger, so that an offset always fits into the kernel's signed one.
const MAX_DEVICE: u64 = i64::MAX as u64;

/// Appends fields.
pub(super) struct Writer<'a>(pub(super) &'a mut Vec<u8>);

impl Writer<'_> {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    fn range(&mut self, range: ByteRange) {
        self.u64(range.offset);
        self.u64(range.len);
    }

    fn generations(&mut self, generations: &Generations) {
        let Generations { current, base, history, slots } = generations;
        self.u64(current.0);
        self.u64(base.0);
        history.iter().chain(slots).for_each(|generation| self.u64(generation.0));
    }

    fn state(&mut self, report: &StateReport) {
        let StateReport {
            serial,
            generations,
            role,
            disk,
            doubtful,
            crashed_primary,
            lost_cache,
            filled_from,
            filled_to,
            following,
            discard_my_data,
            primary,
            primary_good,
            serves,
            saw_failure,
            bits,
            replays,
            replays_restarted,
            untouched,
        } = report;
        self.u32(*serial);
        self.generations(generations);
        self.u8(*role as u8);
        self.u8(*disk as u8);
        self.bool(*doubtful);
        self.bool(*crashed_primary);
        self.bool(*lost_cache);
        self.u8(filled_from.map_or(NO_NODE, NodeId::number));
        self.u64(filled_to.0);
        self.u8(following.map_or(NO_NODE, NodeId::number));
        self.bool(*discard_my_data);
        self.u8(primary.map_or(NO_NODE, NodeId::number));
        self.bool(*primary_good);
        self.u64(serves.0);
        self.bool(*saw_failure);
        self.u64(*bits);
        // Builds that do not know these fields are not told anything by them.
        let flags = u8::from(*replays_restarted) | u8::from(*untouched) << 1;
        if !replays.is_none() || flags != 0 {
            self.u64(replays.0);
            self.u8(flags);
        }
    }

    fn differing(&mut self, differing: &Differing) {
        let Differing { node, first, blocks, repaired, majority } = differing;
        self.u8(node.number());
        self.u64(*first);
        self.u64(*blocks);
        self.bool(*repaired);
        self.bool(*majority);
    }

    /// The text up to the last whole character that fits.
    fn text(&mut self, text: &str) {
        let text = &text[..text.floor_char_boundary(MAX_REFUSAL_TEXT)];
        self.u8(u8::try_from(text.len()).expect("MAX_REFUSAL_TEXT fits into a byte"));
        self.0.extend_from_slice(text.as_bytes());
    }
}

/// Takes fields off the front of a body.
pub(super) struct Reader<'a> {
    /// What is left.
    pub(super) rest: &'a [u8],
    /// The name of the message, for errors.
    pub(super) message: &'static str,
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (first, rest) =
            self.rest.split_first_chunk().ok_or(WireError::TooShort(self.message))?;
        self.rest = rest;
        Ok(*first)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A byte that stands for a word; `word` knows which.
    fn word<T>(
        &mut self,
        field: &'static str,
        word: impl FnOnce(u8) -> Option<T>,
    ) -> Result<T, WireError> {
        let number = self.u8()?;
        word(number).ok_or(self.bad(field, number.into()))
    }

    fn bool(&mut self, field: &'static str) -> Result<bool, WireError> {
        self.word(field, |number| match number {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        })
    }

    fn node(&mut self, field: &'static str) -> Result<NodeId, WireError> {
        self.word(field, NodeId::new)
    }

    fn optional_node(&mut self, field: &'static str) -> Result<Option<NodeId>, WireError> {
        self.word(field, |number| match number {
            NO_NODE => Some(None),
            number => NodeId::new(number).map(Some),
        })
    }

    fn result(&mut self) -> Result<PeerResult, WireError> {
        self.word("result", |number| {
            Some(match number {
                0 => PeerResult::Ok,
                1 => PeerResult::DiskFailed,
                2 => PeerResult::NoData,
                _ => return None,
            })
        })
    }

    fn generation(&mut self) -> Result<GenerationId, WireError> {
        self.u64().map(GenerationId)
    }

    fn peers(&mut self) -> Result<PeerSet, WireError> {
        self.u32().map(PeerSet::from_bits)
    }

    /// A range of whole blocks that some device could have: 1 to `longest` bytes.
    fn range(&mut self, longest: u64) -> Result<ByteRange, WireError> {
        let range = ByteRange::new(self.u64()?, self.u64()?);
        let why = if range.is_empty() {
            "it is empty"
        } else if !range.is_aligned() {
            "it does not start and end at whole blocks"
        } else if range.len > longest {
            "it is too long"
        } else if range.end() > MAX_DEVICE {
            "no device is so large"
        } else {
            return Ok(range);
        };
        Err(self.bad_range(range, why))
    }

    fn generations(&mut self) -> Result<Generations, WireError> {
        let mut generations = Generations {
            current: self.generation()?,
            base: self.generation()?,
            history: Default::default(),
            slots: Default::default(),
        };
        for generation in generations.history.iter_mut().chain(&mut generations.slots) {
            *generation = self.generation()?;
        }
        Ok(generations)
    }

    fn state(&mut self) -> Result<Box<StateReport>, WireError> {
        let mut report = Box::new(StateReport {
            serial: self.u32()?,
            generations: self.generations()?,
            role: self.word("role", Role::from_number)?,
            disk: self.word("disk", DiskState::from_number)?,
            doubtful: self.bool("doubtful")?,
            crashed_primary: self.bool("crashed_primary")?,
            lost_cache: self.bool("lost_cache")?,
            filled_from: self.optional_node("filled_from")?,
            filled_to: self.generation()?,
            following: self.optional_node("following")?,
            discard_my_data: self.bool("discard_my_data")?,
            primary: self.optional_node("primary")?,
            primary_good: self.bool("primary_good")?,
            serves: self.generation()?,
            saw_failure: self.bool("saw_failure")?,
            bits: self.u64()?,
            replays: GenerationId::NONE,
            replays_restarted: false,
            untouched: false,
        });
        if !self.rest.is_empty() {
            report.replays = self.generation()?;
            let said = |flags: &u8| *flags < 4 && (*flags > 0 || !report.replays.is_none());
            let flags = self.word("replay flags", |flags| Some(flags).filter(said))?;
            report.replays_restarted = flags & 1 != 0;
            report.untouched = flags & 2 != 0;
        }
        Ok(report)
    }

    fn text(&mut self) -> Result<String, WireError> {
        let len = usize::from(self.u8()?);
        let (text, rest) =
            self.rest.split_at_checked(len).ok_or(WireError::TooShort(self.message))?;
        let text = std::str::from_utf8(text).ok().filter(|_| len <= MAX_REFUSAL_TEXT);
        self.rest = rest;
        text.map(str::to_owned).ok_or(WireError::Text(self.message))
    }

    /// Runs fill the body to its end; their number is not told.
    fn runs(&mut self) -> Result<Vec<(u64, u64)>, WireError> {
        let count = self.rest.len() / 16;
        if count > MAX_BITMAP_RUNS {
            return Err(self.bad("number of runs", count as u64));
        }
        let mut runs = Vec::with_capacity(count);
        while !self.rest.is_empty() {
            let (first, blocks) = (self.u64()?, self.u64()?);
            let end = first.checked_add(blocks).filter(|end| *end <= MAX_DEVICE / BLOCK_SIZE);
            if blocks == 0 || end.is_none() {
                let why = if blocks == 0 { "it is empty" } else { "no device is so large" };
                return Err(self.bad_range(ByteRange::new(first, blocks), why));
            }
            runs.push((first, blocks));
        }
        Ok(runs)
    }

    /// Digests fill the body to its end.
    fn digests(&mut self) -> Result<Vec<Digest>, WireError> {
        let count = self.rest.len() / size_of::<Digest>();
        if count > MAX_VERIFY_BLOCKS {
            return Err(self.bad("number of digests", count as u64));
        }
        let mut digests = Vec::with_capacity(count);
        while !self.rest.is_empty() {
            digests.push(self.array()?);
        }
        Ok(digests)
    }

    /// They fill the body to its end.
    fn found(&mut self) -> Result<Vec<Differing>, WireError> {
        let mut found = Vec::new();
        while !self.rest.is_empty() {
            if found.len() >= MAX_DIFFERING {
                return Err(self.bad("number of differences", found.len() as u64));
            }
            let node = self.node("node")?;
            let (first, blocks) = (self.u64()?, self.u64()?);
            let end = first.checked_add(blocks).filter(|end| *end <= MAX_DEVICE / BLOCK_SIZE);
            if blocks == 0 || blocks > MAX_VERIFY_BLOCKS as u64 || end.is_none() {
                let why = "nobody compares so many blocks there";
                return Err(self.bad_range(ByteRange::new(first, blocks), why));
            }
            let (repaired, majority) = (self.bool("repaired")?, self.bool("majority")?);
            found.push(Differing { node, first, blocks, repaired, majority });
        }
        Ok(found)
    }

    const fn bad(&self, field: &'static str, value: u64) -> WireError {
        WireError::Field { message: self.message, field, value }
    }

    const fn bad_range(&self, range: ByteRange, why: &'static str) -> WireError {
        WireError::Range { message: self.message, offset: range.offset, len: range.len, why }
    }

    /// The payload is exactly the data of a range of `len` bytes.
    fn expect_payload(&self, payload: &Bytes, range: ByteRange, len: u64) -> Result<(), WireError> {
        if payload.len() as u64 == len {
            return Ok(());
        }
        Err(self.bad_range(range, "the data behind it have another length"))
    }

    /// Nothing may be left.
    pub(super) const fn finish(&self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::TooLong(self.message)) }
    }
}

/// Appends the fields of a message.
pub(super) fn write(message: &Message, w: &mut Writer<'_>) {
    match message {
        Message::Hello(hello) => write_hello(hello, w),
        Message::State(report) => w.state(report),
        Message::Verdict { answers, verdict, state } => {
            w.u32(*answers);
            w.u8(*verdict as u8);
            w.state(state);
        }
        // The layout is frozen.
        Message::Refuse { code, text } => {
            w.u8(*code as u8);
            w.text(text);
        }
        Message::Goodbye | Message::Ping | Message::Pong | Message::ResyncComplete => {}
        Message::Changed { role, disk, current } => {
            w.u8(*role as u8);
            w.u8(*disk as u8);
            w.u64(current.0);
        }
        Message::Write { seq, range, kind, fua, missing, settled, payload: _ } => {
            w.u64(*seq);
            w.range(*range);
            w.u8(*kind as u8);
            w.bool(*fua);
            w.u32(missing.bits());
            w.u64(*settled);
        }
        Message::WriteAck { seq: id, result }
        | Message::FlushAck { id, result }
        | Message::ReadReply { id, result, payload: _ } => {
            w.u64(*id);
            w.u8(*result as u8);
        }
        Message::Flush { id } => w.u64(*id),
        Message::Read { id, range } | Message::HealRead { id, range } => {
            w.u64(*id);
            w.range(*range);
        }
        Message::NewGeneration { previous, current, opened } => {
            w.u64(previous.0);
            w.u64(current.0);
            w.u32(opened.bits());
        }
        Message::GenerationAck { current } | Message::ResyncAdopted { current } => {
            w.u64(current.0);
        }
        Message::Settled { seq } => w.u64(*seq),
        Message::Replay { round, id, left, range, zeroes, payload: _ } => {
            w.u32(*round);
            w.u64(*id);
            w.u64(*left);
            w.range(*range);
            w.bool(*zeroes);
        }
        Message::ReplayAck { round, id, result } => {
            w.u32(*round);
            w.u64(*id);
            w.u8(*result as u8);
        }
        Message::ReplayDone { round } => w.u32(*round),
        Message::VerifyRequest { id, range, locked } => {
            w.u64(*id);
            w.range(*range);
            w.bool(*locked);
        }
        Message::VerifyReply { id, epoch, result, digests } => {
            w.u64(*id);
            w.u64(*epoch);
            w.u8(*result as u8);
            digests.iter().for_each(|digest| w.0.extend_from_slice(digest));
        }
        Message::VerifySpan { id, range, repair } => {
            w.u64(*id);
            w.range(*range);
            w.u8(*repair as u8);
        }
        Message::VerifySpanReply { id, valid, found } => {
            w.u64(*id);
            w.bool(*valid);
            found.iter().for_each(|differing| w.differing(differing));
        }
        Message::VerifyRepair { id, epoch, range, zeroes, payload: _ } => {
            w.u64(*id);
            w.u64(*epoch);
            w.range(*range);
            w.bool(*zeroes);
        }
        Message::VerifyRepaired { id, result } => {
            w.u64(*id);
            w.u8(*result as u8);
        }
        Message::VerifyProgress { running, done, total } => {
            w.bool(*running);
            w.u64(*done);
            w.u64(*total);
        }
        Message::Missed { peers, range } => {
            w.u32(peers.bits());
            w.range(*range);
        }
        Message::Synced { peer, current } => {
            w.u8(peer.number());
            w.u64(current.0);
        }
        Message::Bitmap { about, round, runs, last } => {
            w.u8(about.number());
            w.u32(*round);
            w.bool(*last);
            for (first, blocks) in runs {
                w.u64(*first);
                w.u64(*blocks);
            }
        }
        Message::ResyncRequest { range } | Message::ResyncAck { range } => w.range(*range),
        Message::ResyncLost { asked, range } => {
            w.range(*asked);
            w.u64(range.len);
        }
        Message::ResyncData { asked, range, zeroes, payload: _ } => {
            w.range(*asked);
            w.u64(range.len);
            w.bool(*zeroes);
        }
        Message::ResyncGenerations { generations, lost_cache } => {
            w.generations(generations);
            w.bool(*lost_cache);
        }
        Message::Promote { id, step } => {
            w.u64(*id);
            w.u8(*step as u8);
        }
        Message::PromoteReply { id, answer } => {
            w.u64(*id);
            w.u8(*answer as u8);
        }
        Message::Invalidate { receiver } => w.bool(*receiver),
        Message::SyncPaused { pause } => w.u8(*pause as u8),
    }
}

/// The layout is frozen.
fn write_hello(hello: &Hello, w: &mut Writer<'_>) {
    let Hello { version_min, version_max, features, resource, from, to, size } = hello;
    w.u16(*version_min);
    w.u16(*version_max);
    w.u64(*features);
    w.0.extend_from_slice(&resource.0);
    w.u8(from.number());
    w.u8(to.number());
    w.u64(*size);
}

/// Reads the fields of a message of this kind. The caller has checked that only kinds which may
/// have a payload have one, and checks that nothing is left.
pub(super) fn read(kind: Kind, r: &mut Reader<'_>, payload: Bytes) -> Result<Message, WireError> {
    Ok(match kind {
        Kind::Hello => Message::Hello(read_hello(r)?),
        Kind::State => Message::State(r.state()?),
        Kind::Verdict => Message::Verdict {
            answers: r.u32()?,
            verdict: r.word("verdict", verdict)?,
            state: r.state()?,
        },
        Kind::Refuse => Message::Refuse { code: r.word("code", refusal_code)?, text: r.text()? },
        Kind::Goodbye => Message::Goodbye,
        Kind::Changed => Message::Changed {
            role: r.word("role", Role::from_number)?,
            disk: r.word("disk", DiskState::from_number)?,
            current: r.generation()?,
        },
        Kind::Ping => Message::Ping,
        Kind::Pong => Message::Pong,
        Kind::Write => read_write(r, payload)?,
        Kind::WriteAck => Message::WriteAck { seq: r.u64()?, result: r.result()? },
        Kind::Flush => Message::Flush { id: r.u64()? },
        Kind::FlushAck => Message::FlushAck { id: r.u64()?, result: r.result()? },
        Kind::Read => Message::Read { id: r.u64()?, range: r.range(MAX_REQUEST)? },
        Kind::ReadReply => read_reply(r, payload)?,
        Kind::HealRead => Message::HealRead { id: r.u64()?, range: r.range(MAX_REQUEST)? },
        Kind::NewGeneration => Message::NewGeneration {
            previous: r.generation()?,
            current: r.generation()?,
            opened: r.peers()?,
        },
        Kind::GenerationAck => Message::GenerationAck { current: r.generation()? },
        Kind::Settled => Message::Settled { seq: r.u64()? },
        Kind::Missed => Message::Missed { peers: r.peers()?, range: r.range(MAX_DEVICE)? },
        Kind::Bitmap => {
            let (about, round, last) = (r.node("about")?, r.u32()?, r.bool("last")?);
            Message::Bitmap { about, round, runs: r.runs()?, last }
        }
        Kind::Synced => Message::Synced { peer: r.node("peer")?, current: r.generation()? },
        Kind::ResyncRequest => Message::ResyncRequest { range: r.range(MAX_DATALESS_RANGE)? },
        Kind::ResyncData => read_resync_data(r, payload)?,
        Kind::ResyncLost => read_resync_lost(r)?,
        Kind::ResyncAck => Message::ResyncAck { range: r.range(MAX_DATALESS_RANGE)? },
        Kind::ResyncComplete => Message::ResyncComplete,
        Kind::ResyncGenerations => {
            let generations = Box::new(r.generations()?);
            Message::ResyncGenerations { generations, lost_cache: r.bool("lost_cache")? }
        }
        Kind::ResyncAdopted => Message::ResyncAdopted { current: r.generation()? },
        Kind::Promote => Message::Promote { id: r.u64()?, step: r.word("step", promote_step)? },
        Kind::PromoteReply => {
            Message::PromoteReply { id: r.u64()?, answer: r.word("answer", promote_answer)? }
        }
        Kind::Invalidate => Message::Invalidate { receiver: r.bool("receiver")? },
        Kind::Replay => read_replay(r, payload)?,
        Kind::ReplayAck => {
            Message::ReplayAck { round: r.u32()?, id: r.u64()?, result: r.result()? }
        }
        Kind::ReplayDone => Message::ReplayDone { round: r.u32()? },
        Kind::VerifyRequest => Message::VerifyRequest {
            id: r.u64()?,
            range: r.range(MAX_REQUEST)?,
            locked: r.bool("locked")?,
        },
        Kind::VerifyReply => read_verify_reply(r)?,
        Kind::VerifySpan => Message::VerifySpan {
            id: r.u64()?,
            range: r.range(MAX_REQUEST)?,
            repair: r.word("repair", repair_mode)?,
        },
        Kind::VerifySpanReply => {
            Message::VerifySpanReply { id: r.u64()?, valid: r.bool("valid")?, found: r.found()? }
        }
        Kind::VerifyRepair => read_verify_repair(r, payload)?,
        Kind::VerifyRepaired => Message::VerifyRepaired { id: r.u64()?, result: r.result()? },
        Kind::SyncPaused => Message::SyncPaused { pause: r.word("pause", sync_pause)? },
        Kind::VerifyProgress => {
            Message::VerifyProgress { running: r.bool("running")?, done: r.u64()?, total: r.u64()? }
        }
    })
}

/// The layout is frozen.
fn read_hello(r: &mut Reader<'_>) -> Result<Hello, WireError> {
    let (version_min, version_max) = (r.u16()?, r.u16()?);
    if version_min > version_max {
        return Err(r.bad("oldest version", version_min.into()));
    }
    Ok(Hello {
        version_min,
        version_max,
        features: r.u64()?,
        resource: ResourceId(r.array()?),
        from: r.node("sender")?,
        to: r.node("receiver")?,
        size: r.u64()?,
    })
}

fn read_write(r: &mut Reader<'_>, payload: Bytes) -> Result<Message, WireError> {
    let seq = r.u64()?;
    let range = r.range(MAX_DATALESS_RANGE)?;
    let kind = r.word("kind", |number| match number {
        0 => Some(WriteKind::Data),
        1 => Some(WriteKind::Zeroes),
        _ => None,
    })?;
    let (fua, missing, settled) = (r.bool("fua")?, r.peers()?, r.u64()?);
    r.expect_payload(&payload, range, if kind == WriteKind::Data { range.len } else { 0 })?;
    Ok(Message::Write { seq, range, kind, fua, missing, settled, payload })
}

fn read_reply(r: &mut Reader<'_>, payload: Bytes) -> Result<Message, WireError> {
    let (id, result) = (r.u64()?, r.result()?);
    if (result == PeerResult::Ok) == payload.is_empty() {
        return Err(r.bad("result", u64::from(result as u8)));
    }
    Ok(Message::ReadReply { id, result, payload })
}

fn read_resync_data(r: &mut Reader<'_>, payload: Bytes) -> Result<Message, WireError> {
    let asked = r.range(MAX_DATALESS_RANGE)?;
    let range = ByteRange::new(asked.offset, r.u64()?);
    let zeroes = r.bool("zeroes")?;
    if range.is_empty() || range.len > asked.len || !range.is_aligned() {
        return Err(r.bad_range(range, "it is not a first part of the range that was asked for"));
    }
    r.expect_payload(&payload, range, if zeroes { 0 } else { range.len })?;
    Ok(Message::ResyncData { asked, range, zeroes, payload })
}

fn read_resync_lost(r: &mut Reader<'_>) -> Result<Message, WireError> {
    let asked = r.range(MAX_DATALESS_RANGE)?;
    let range = ByteRange::new(asked.offset, r.u64()?);
    if range.is_empty() || range.len > asked.len || !range.is_aligned() {
        return Err(r.bad_range(range, "it is not a first part of the range that was asked for"));
    }
    Ok(Message::ResyncLost { asked, range })
}

fn read_replay(r: &mut Reader<'_>, payload: Bytes) -> Result<Message, WireError> {
    let (round, id, left) = (r.u32()?, r.u64()?, r.u64()?);
    let (range, zeroes) = (r.range(MAX_DATALESS_RANGE)?, r.bool("zeroes")?);
    r.expect_payload(&payload, range, if zeroes { 0 } else { range.len })?;
    Ok(Message::Replay { round, id, left, range, zeroes, payload })
}

fn read_verify_reply(r: &mut Reader<'_>) -> Result<Message, WireError> {
    let (id, epoch, result, digests) = (r.u64()?, r.u64()?, r.result()?, r.digests()?);
    if result != PeerResult::Ok && !digests.is_empty() {
        return Err(r.bad("result", u64::from(result as u8)));
    }
    Ok(Message::VerifyReply { id, epoch, result, digests })
}

fn read_verify_repair(r: &mut Reader<'_>, payload: Bytes) -> Result<Message, WireError> {
    let (id, epoch) = (r.u64()?, r.u64()?);
    let (range, zeroes) = (r.range(MAX_REQUEST)?, r.bool("zeroes")?);
    r.expect_payload(&payload, range, if zeroes { 0 } else { range.len })?;
    Ok(Message::VerifyRepair { id, epoch, range, zeroes, payload })
}

const fn repair_mode(number: u8) -> Option<RepairMode> {
    Some(match number {
        0 => RepairMode::Never,
        1 => RepairMode::Majority,
        2 => RepairMode::Always,
        _ => return None,
    })
}

const fn sync_pause(number: u8) -> Option<SyncPause> {
    Some(match number {
        0 => SyncPause::No,
        1 => SyncPause::AsTarget,
        2 => SyncPause::Always,
        _ => return None,
    })
}

const fn verdict(number: u8) -> Option<Verdict> {
    Some(match number {
        0 => Verdict::InSync,
        1 => Verdict::SourceBitmap,
        2 => Verdict::TargetBitmap,
        3 => Verdict::SourceFull,
        4 => Verdict::TargetFull,
        5 => Verdict::SplitBrain,
        6 => Verdict::Unrelated,
        7 => Verdict::NoGoodData,
        8 => Verdict::TwoPrimaries,
        9 => Verdict::PrimaryMustNotBeTarget,
        10 => Verdict::PausedSource,
        11 => Verdict::PausedTarget,
        12 => Verdict::SourceReplay,
        13 => Verdict::TargetReplay,
        _ => return None,
    })
}

const fn refusal_code(number: u8) -> Option<RefusalCode> {
    Some(match number {
        0 => RefusalCode::Version,
        1 => RefusalCode::UnknownResource,
        2 => RefusalCode::Size,
        3 => RefusalCode::Membership,
        4 => RefusalCode::SplitBrain,
        5 => RefusalCode::Unrelated,
        6 => RefusalCode::TwoPrimaries,
        7 => RefusalCode::StandAlone,
        8 => RefusalCode::Protocol,
        _ => return None,
    })
}

const fn promote_step(number: u8) -> Option<PromoteStep> {
    Some(match number {
        0 => PromoteStep::Prepare,
        1 => PromoteStep::Commit,
        2 => PromoteStep::Abort,
        _ => return None,
    })
}

const fn promote_answer(number: u8) -> Option<PromoteAnswer> {
    Some(match number {
        0 => PromoteAnswer::Yes,
        1 => PromoteAnswer::IAmPrimary,
        2 => PromoteAnswer::Busy,
        3 => PromoteAnswer::YouAreOutdated,
        _ => return None,
    })
}
