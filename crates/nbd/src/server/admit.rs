use super::negotiate::{Session, context_id};
use crate::codec::consts::command_flag as flag;
use crate::codec::{Command, ReplyStyle, RequestHeader, StatusFilter};
use crate::{ContextSet, NbdError, RequestKind};
use holdfast_units::ByteRange;

/// What becomes of a request, judged by its header alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It goes to the export once `payload` bytes are read.
    Take { kind: RequestKind, payload: usize },
    /// It is answered at once, and `payload` bytes are read and thrown away.
    Answer { result: Result<(), NbdError>, payload: u64 },
    /// The client takes its leave.
    Disconnect,
    /// The stream cannot be followed at a bearable cost.
    HangUp,
}

/// Judges a request. `stopping`: the server takes no new ones.
pub(super) fn judge(head: &RequestHeader, session: &Session, stopping: bool) -> Verdict {
    let command = Command::from_number(head.command);
    if command == Some(Command::Disconnect) {
        return Verdict::Disconnect;
    }
    let info = &session.info;
    let payload = payload_len(head, command, session.style);
    // Twice the limit is a client that did not ask for it; more is not worth the line.
    if payload > u64::from(info.max_block).saturating_mul(2).max(64 << 20) {
        return Verdict::HangUp;
    }
    let answer = |result| Verdict::Answer { result, payload };
    let refuse = |error| answer(Err(error));
    if stopping {
        return refuse(NbdError::Shutdown);
    }
    let Some(kind) = command.and_then(kind_of) else { return refuse(NbdError::Invalid) };
    if head.flags & !allowed_flags(kind, session) != 0 {
        return refuse(NbdError::Invalid);
    }
    if info.read_only && is_write(kind) {
        return refuse(NbdError::NotPermitted);
    }
    if !offered(kind, session) {
        return refuse(NbdError::Invalid);
    }
    if kind == RequestKind::Flush {
        return Verdict::Take { kind, payload: 0 };
    }
    if kind == RequestKind::Resize {
        let fits = head.len == 0 && head.offset.is_multiple_of(info.min_block.max(1).into());
        return if fits { Verdict::Take { kind, payload: 0 } } else { refuse(NbdError::Invalid) };
    }
    if head.flags & flag::PAYLOAD_LEN != 0 && kind == RequestKind::BlockStatus {
        // Its range is in the payload. A longer one names a context twice, or an unknown one.
        let fitting = StatusFilter::wire_len(1)..=StatusFilter::wire_len(session.contexts.len());
        return match usize::try_from(payload) {
            Ok(payload) if fitting.contains(&payload) => Verdict::Take { kind, payload },
            _ => refuse(NbdError::Invalid),
        };
    }
    match check_range(kind, head, session) {
        Err(error) => refuse(error),
        Ok(()) if head.len == 0 && kind == RequestKind::BlockStatus => refuse(NbdError::Invalid),
        Ok(()) if head.len == 0 => answer(Ok(())),
        Ok(()) => match usize::try_from(payload) {
            Ok(payload) => Verdict::Take { kind, payload },
            Err(_) => Verdict::HangUp,
        },
    }
}

/// The range and the contexts that the payload of a block status request asks about.
pub(super) fn judge_filter(
    head: &RequestHeader,
    payload: &[u8],
    session: &Session,
) -> Result<(RequestHeader, ContextSet), NbdError> {
    let filter = StatusFilter::parse(payload).ok_or(NbdError::Invalid)?;
    let mut contexts = ContextSet::default();
    for id in filter.contexts {
        let known = session.contexts.iter().find(|index| context_id(*index) == id);
        if !known.is_some_and(|index| contexts.insert(index)) {
            return Err(NbdError::Invalid);
        }
    }
    let head = RequestHeader { len: filter.len, ..*head };
    if head.len == 0 || contexts.is_empty() {
        return Err(NbdError::Invalid);
    }
    check_range(RequestKind::BlockStatus, &head, session)?;
    Ok((head, contexts))
}

/// How many bytes follow the header.
fn payload_len(head: &RequestHeader, command: Option<Command>, style: ReplyStyle) -> u64 {
    let announced = style == ReplyStyle::Extended && head.flags & flag::PAYLOAD_LEN != 0;
    if command == Some(Command::Write) || announced { head.len } else { 0 }
}

const fn kind_of(command: Command) -> Option<RequestKind> {
    Some(match command {
        Command::Read => RequestKind::Read,
        Command::Write => RequestKind::Write,
        Command::Flush => RequestKind::Flush,
        Command::Trim => RequestKind::Trim,
        Command::Cache => RequestKind::Cache,
        Command::WriteZeroes => RequestKind::WriteZeroes,
        Command::BlockStatus => RequestKind::BlockStatus,
        Command::Resize => RequestKind::Resize,
        Command::Disconnect => return None,
    })
}

const fn is_write(kind: RequestKind) -> bool {
    matches!(kind, RequestKind::Write | RequestKind::Trim | RequestKind::WriteZeroes)
}

fn allowed_flags(kind: RequestKind, session: &Session) -> u16 {
    let info = &session.info;
    // FUA means something for writes only, but the protocol allows it everywhere.
    let fua = if info.can_fua { flag::FUA } else { 0 };
    fua | match kind {
        RequestKind::Read if session.style != ReplyStyle::Simple => flag::DF,
        RequestKind::Write if session.style == ReplyStyle::Extended => flag::PAYLOAD_LEN,
        RequestKind::WriteZeroes if info.can_fast_zero => flag::NO_HOLE | flag::FAST_ZERO,
        RequestKind::WriteZeroes => flag::NO_HOLE,
        RequestKind::BlockStatus if session.takes_filters() => flag::REQ_ONE | flag::PAYLOAD_LEN,
        RequestKind::BlockStatus => flag::REQ_ONE,
        _ => 0,
    }
}

fn offered(kind: RequestKind, session: &Session) -> bool {
    let info = &session.info;
    match kind {
        RequestKind::Read | RequestKind::Write => true,
        RequestKind::Flush => info.can_flush,
        RequestKind::Trim => info.can_trim,
        RequestKind::WriteZeroes => info.can_zero,
        RequestKind::Cache => info.can_cache,
        RequestKind::BlockStatus => !session.contexts.is_empty(),
        RequestKind::Resize => info.can_resize && !info.read_only,
    }
}

fn check_range(kind: RequestKind, head: &RequestHeader, session: &Session) -> Result<(), NbdError> {
    let info = &session.info;
    let moves_data = matches!(kind, RequestKind::Read | RequestKind::Write);
    if moves_data && head.len > info.max_block.into() {
        let in_one_piece = kind == RequestKind::Read && head.flags & flag::DF != 0;
        return Err(if in_one_piece { NbdError::Overflow } else { NbdError::Invalid });
    }
    let range = ByteRange::new(head.offset, head.len);
    let is_inside = |size| ByteRange::new(0, size).contains(range);
    // It may have grown since the client was told its size.
    if !is_inside(info.size) && !is_inside(session.export.size()) {
        let grows = matches!(kind, RequestKind::Write | RequestKind::WriteZeroes);
        return Err(if grows { NbdError::NoSpace } else { NbdError::Invalid });
    }
    let block = u64::from(info.min_block.max(1));
    if !head.offset.is_multiple_of(block) || !head.len.is_multiple_of(block) {
        return Err(NbdError::Invalid);
    }
    Ok(())
}
