//! Makes the sentences that people read of what the other rooms refuse.

use crate::journaled::JournalError;
use crate::shard::{MetadataError, SparesError};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::Code;
use holdfast_core::Refusal;
use holdfast_store::{OpenErrorKind, SpareError, SpareErrorKind};
use holdfast_units::NodeId;

/// A refusal of the cluster's state.
pub(crate) fn cluster(refusal: holdfast_cluster::Refusal) -> ApiError {
    let error = ApiError::new(code_of(refusal.code), refusal.message);
    if refusal.hint.is_empty() { error } else { error.hint(refusal.hint) }
}

const fn code_of(code: Code) -> ErrorCode {
    match code {
        Code::BadName => ErrorCode::InvalidName,
        Code::BadAddress | Code::NameNotResolved => ErrorCode::InvalidAddress,
        Code::NotMember => ErrorCode::NoCluster,
        Code::AlreadyMember => ErrorCode::AlreadyInCluster,
        Code::NameTaken | Code::NodeExists => ErrorCode::AlreadyExists,
        Code::NodeUnknown => ErrorCode::NoSuchNode,
        Code::NodeBusy => ErrorCode::InUse,
        Code::ForceNeeded | Code::BadTtl | Code::NoSplit => ErrorCode::InvalidRequest,
        Code::OtherCluster | Code::RefusedByPeer => ErrorCode::PeerRefused,
        Code::ClusterFull | Code::NoSlot | Code::RecordsFull | Code::TooManyTokens => {
            ErrorCode::TooManyNodes
        }
        Code::TokenGarbled => ErrorCode::InvalidToken,
        Code::TokenExpired => ErrorCode::TokenExpired,
        Code::TokenUsed | Code::TokenUnknown | Code::TokenWrongSecret => ErrorCode::TokenUsed,
        Code::CertificateUnknown | Code::CertificateInvalid | Code::WrongNode => {
            ErrorCode::CertificateMismatch
        }
        Code::ProtocolUnknown => ErrorCode::VersionMismatch,
        Code::HandshakeFailed | Code::HandshakeTimeout => ErrorCode::PeerNotReachable,
        Code::SlotTaken => ErrorCode::Busy,
        Code::BadRecord
        | Code::StateDirBusy
        | Code::StateDamaged
        | Code::StateTooNew
        | Code::StateIo
        | Code::NoRandom
        | Code::Other => ErrorCode::Internal,
    }
}

/// A refusal of the replication core. `what` names the attempt with its participle (`primary was
/// refused`), `node_name` the nodes of the resource.
pub(crate) fn core(
    what: &str,
    resource: &str,
    refusal: Refusal,
    node_name: impl Fn(NodeId) -> String,
) -> ApiError {
    let of = |code, why: &str| ApiError::new(code, format!("{what} for {resource}: {why}"));
    let primary = format!("holdfast primary {resource}");
    match refusal {
        Refusal::PeerIsPrimary(node) => {
            let node = node_name(node);
            of(ErrorCode::OtherPrimary, &format!("node {node} is Primary"))
                .hint(format!("run `holdfast secondary {resource}` on {node} first"))
        }
        Refusal::PeerBusy(node) => {
            let node = node_name(node);
            of(ErrorCode::Busy, &format!("node {node} is becoming Primary right now"))
                .hint("try again in a few seconds")
        }
        Refusal::NoUpToDateData => {
            of(ErrorCode::NoUpToDateData, "no node in reach has up-to-date data").hint(format!(
                "connect a node that has them; if none will come back, `{primary} --force` takes \
                 the data of this node"
            ))
        }
        Refusal::Outdated => {
            of(ErrorCode::NoUpToDateData, "the data of this node are older than another node's")
                .hint(format!(
                    "connect that node; if it is lost, `{primary} --force` goes on with the older \
                     data"
                ))
        }
        Refusal::Inconsistent => of(
            ErrorCode::NoUpToDateData,
            "the data of this node are Inconsistent, a resync has not ended",
        )
        .hint(format!(
            "connect a node with up-to-date data; `{primary} --force` declares these to be good"
        )),
        Refusal::Diskless => of(ErrorCode::NoDisk, "this node has no disk of it in use")
            .hint(format!("`holdfast attach-disk {resource}` starts to use its disk")),
        Refusal::IsPrimary => of(ErrorCode::IsPrimary, "this node is Primary")
            .hint(format!("run `holdfast secondary {resource}` first")),
        Refusal::NotConnected => of(ErrorCode::NotConnected, "there is no connection to the peer")
            .hint(format!("`holdfast status {resource}` shows the connections")),
        Refusal::NoSuchPeer => of(ErrorCode::NoSuchPeer, "it has no such peer")
            .hint(format!("`holdfast status {resource}` lists its peers")),
        Refusal::LastUpToDate => of(
            ErrorCode::LastGoodCopy,
            "this node is Primary and no other node in reach has up-to-date data",
        )
        .hint("connect a peer and let it become UpToDate first"),
        Refusal::ResyncRunning => of(ErrorCode::ResyncRunning, "a resync is running")
            .hint(format!("`holdfast wait {resource} --for synced` waits for its end")),
        Refusal::Busy => of(ErrorCode::Busy, "another command is under way, or it is stopping")
            .hint("try again in a few seconds"),
        Refusal::TimedOut => of(ErrorCode::TimedOut, "it did not end in time")
            .hint(format!("`holdfast status {resource}` shows how things are")),
        Refusal::MetaFailed => of(ErrorCode::DiskFailed, "its metadata could not be written")
            .hint("check the disk that the metadata are on"),
        Refusal::CannotGrow => of(
            ErrorCode::NotSupportedYet,
            "its metadata, at the end of the disk, would have to move",
        )
        .hint(format!(
            "if they have moved to a file since it was started, it grows after `holdfast down \
             {resource}` and `holdfast up {resource}`"
        )),
        Refusal::DiskNotReady => of(ErrorCode::Busy, "its disk has just come into use")
            .hint("try again in a few seconds"),
        Refusal::SurveyRunning => of(ErrorCode::SurveyState, "one is running already")
            .hint(format!("`holdfast status {resource}` shows how far it is")),
        Refusal::NoSurvey => of(ErrorCode::SurveyState, "none is running")
            .hint(format!("`holdfast status {resource}` shows what goes on")),
        Refusal::BadRange => of(ErrorCode::InvalidSize, "the range is not inside of the device"),
        Refusal::InUse => of(ErrorCode::InUse, "requests of clients are under way")
            .hint("stop the clients first, or add --force to fail their requests"),
    }
}

/// A refusal of `invalidate`, of this node's data or those of `peer`.
pub(crate) fn invalidate(
    resource: &str,
    peer: Option<NodeId>,
    refusal: Refusal,
    node_name: impl Fn(NodeId) -> String,
) -> ApiError {
    let what = "invalidate was refused";
    let error = core(what, resource, refusal, &node_name);
    let Some(peer) = peer else { return error };
    let peer_name = node_name(peer);
    match refusal {
        // The Primary's own data can be given up when it is Primary no more; others get them from it.
        Refusal::PeerIsPrimary(primary) if primary != peer => error.hint(format!(
            "run `holdfast invalidate {resource} --peer {peer_name}` on {}, which has the data that \
             count",
            node_name(primary)
        )),
        Refusal::Diskless => ApiError::new(
            ErrorCode::NoDisk,
            format!("{what} for {resource}: node {peer_name} has no disk of it in use"),
        )
        .hint(format!("run `holdfast attach-disk {resource}` on {peer_name} first")),
        Refusal::NoUpToDateData => {
            let why = "the data of this node are not up to date";
            ApiError::new(ErrorCode::NoUpToDateData, format!("{what} for {resource}: {why}"))
                .hint(format!("run it on a node that `holdfast status {resource}` shows UpToDate"))
        }
        _ => error,
    }
}

/// Why a disk or its metadata cannot be used.
pub(crate) fn metadata(error: &MetadataError) -> ApiError {
    let message = error.to_string();
    match error {
        MetadataError::Disk(error) => disk(error),
        MetadataError::Layout(_) | MetadataError::TooSmall { .. } => {
            ApiError::new(ErrorCode::DiskTooSmall, message)
                .hint("give a larger disk, or another --size")
        }
        MetadataError::Io { .. } => ApiError::new(ErrorCode::MetadataInvalid, message)
            .hint("check the path, its owner and the space on its filesystem"),
        MetadataError::InUse(_) => ApiError::new(ErrorCode::DiskBusy, message)
            .hint("another daemon or resource has it; choose another place with --meta"),
        MetadataError::Occupied { .. } => ApiError::new(ErrorCode::MetadataExists, message)
            .hint("if nobody needs it any more, remove it (or overwrite it with zeroes) first"),
        MetadataError::Unusable { .. } | MetadataError::Foreign { .. } => {
            ApiError::new(ErrorCode::MetadataInvalid, message)
                .hint("`holdfast meta check PATH` says more")
        }
    }
}

/// Why a disk cannot be opened or made.
pub(crate) fn disk(error: &holdfast_store::OpenError) -> ApiError {
    let code = match error.kind {
        OpenErrorKind::NotFound => ErrorCode::DiskNotFound,
        OpenErrorKind::InUse => ErrorCode::DiskBusy,
        OpenErrorKind::TooSmall(_) => ErrorCode::DiskTooSmall,
        OpenErrorKind::Io => ErrorCode::DiskFailed,
        _ => ErrorCode::DiskUnusable,
    };
    ApiError::new(code, error.to_string())
}

fn spare_open(error: &holdfast_store::OpenError) -> ApiError {
    let refusal = disk(error);
    let message = format!("the spare of a disk cannot be used: {}", refusal.message);
    ApiError { message, ..refusal }.hint(
        "without it old data would be read; bring it back, then try again. One whose adding or \
             removing was cut off is forgotten with `holdfast spare remove NAME PATH`",
    )
}

/// Why a disk cannot be used with its spares, or a spare cannot be made.
pub(crate) fn spares(error: &SparesError) -> ApiError {
    use SpareErrorKind as K;
    let code = match error {
        SparesError::Open { error, .. } => return spare_open(error),
        SparesError::Unknown(_) | SparesError::NotMarked { .. } | SparesError::Older { .. } => {
            ErrorCode::DiskUnusable
        }
        SparesError::Io { .. } => ErrorCode::MetadataInvalid,
        SparesError::Spare(error) => match error.kind {
            K::Layout(_) => ErrorCode::DiskTooSmall,
            K::NotEmpty(_) => ErrorCode::DiskHoldsData,
            K::NoRoom(_) => ErrorCode::NoSpace,
            K::Disk(_) => ErrorCode::DiskFailed,
            _ => ErrorCode::DiskUnusable,
        },
    };
    let refusal = ApiError::new(code, error.to_string());
    match error {
        SparesError::Unknown(_) => refusal.hint(
            "bring the state directory of this node back; or give up this copy of the data and fill \
             it from a peer: `holdfast leave` and `holdfast join`",
        ),
        SparesError::Older { noted, .. } => refusal.hint(format!(
            "if it is lost and another member has the data, `holdfast leave` and `holdfast join`; if \
             the disk and all its spares were put back as they were at one moment, remove {} and \
             attach the disk again",
            noted.display()
        )),
        SparesError::NotMarked { .. } => {
            refusal.hint("give the disk that the spare was used with, or take the spare away")
        }
        SparesError::Spare(SpareError { kind: K::NotEmpty(_), .. }) => {
            refusal.hint("choose another; if nobody needs what is on it, add --force")
        }
        SparesError::Spare(SpareError { kind: K::NoHeader(_), .. }) => refusal.hint(
            "one whose adding was cut off is forgotten with `holdfast spare remove NAME PATH`, if the \
             disk's other spares say that it does without it",
        ),
        SparesError::Spare(SpareError { kind: K::Missing(_), .. }) => {
            refusal.hint("bring the missing device or file back")
        }
        _ => refusal,
    }
}

/// Why a journal cannot be made or used.
pub(crate) fn journal(error: &JournalError) -> ApiError {
    use JournalError as E;
    let code = match error {
        E::Missing { .. } | E::Foreign { .. } | E::Damaged { .. } => ErrorCode::JournalUnusable,
        E::InUse(_) => ErrorCode::DiskBusy,
        E::Occupied(_) | E::Used(_) => ErrorCode::MetadataExists,
        E::NoPlace { .. } => ErrorCode::InvalidPath,
        E::NoRoom { .. } | E::TooShort { .. } => ErrorCode::NoSpace,
        E::Io { error, .. } if error.kind() == std::io::ErrorKind::StorageFull => {
            ErrorCode::NoSpace
        }
        E::Io { .. } => ErrorCode::JournalUnusable,
    };
    let lost = "if it is lost, `holdfast attach-disk NAME --discard-journal` goes on without what \
                was only in it";
    let hint = match error {
        E::Missing { .. } => format!("mount or bring back its filesystem or device; {lost}"),
        E::Foreign { .. } => format!("put the right directory or device there; {lost}"),
        E::Damaged { .. } => format!("restore it from a copy; {lost}"),
        E::InUse(_) => "stop whoever uses it first, or choose another directory".to_owned(),
        E::Occupied(_) => {
            "choose another directory, or remove its files if nobody needs them".to_owned()
        }
        E::Used(_) => {
            "choose another device, or wipe it if nobody needs what is there (`wipefs -a`, or zeroes \
             over its first and last 128 KiB)"
                .to_owned()
        }
        E::NoPlace { .. } => {
            "give a directory, a block device or a file of a fixed size (`fallocate -l`)".to_owned()
        }
        E::TooShort { .. } => "give a smaller --journal-size, or leave it out".to_owned(),
        E::NoRoom { .. } => {
            "make room, give a smaller --journal-size, or choose another".to_owned()
        }
        E::Io { .. } => "check the directory and its filesystem, or the device".to_owned(),
    };
    ApiError::new(code, error.to_string()).hint(hint)
}

/// Why a local device cannot be made or taken away.
pub(crate) fn device(error: &holdfast_device::DeviceError) -> ApiError {
    use holdfast_device::DeviceError as E;
    let code = match error {
        E::Busy { .. } => ErrorCode::InUse,
        E::Exists { .. } => ErrorCode::AlreadyExists,
        E::Name(_) => ErrorCode::InvalidName,
        E::Flush { .. } => ErrorCode::DiskFailed,
        _ => ErrorCode::DeviceUnavailable,
    };
    let refusal = ApiError::new(code, error.to_string());
    match error.hint() {
        Some(hint) => refusal.hint(hint),
        None => refusal,
    }
}

/// What should not happen.
pub(crate) fn internal(what: &str, error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("{what}: {error}"))
        .hint("the log of the daemon has more")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_core_names_node_and_way_out() {
        let node = NodeId::new(1).unwrap();
        let error =
            core("primary was refused", "r0", Refusal::PeerIsPrimary(node), |_| "beta".to_owned());
        assert_eq!(error.code, ErrorCode::OtherPrimary);
        assert_eq!(error.message, "primary was refused for r0: node beta is Primary");
        assert_eq!(error.hint.unwrap(), "run `holdfast secondary r0` on beta first");
    }

    #[test]
    fn a_refusal_of_invalidate_says_where_it_can_be_done() {
        let [alpha, beta] = [0, 1].map(|number| NodeId::new(number).unwrap());
        let name = |node| if node == alpha { "alpha".to_owned() } else { "beta".to_owned() };
        let hint = |peer, refusal| invalidate("r0", peer, refusal, name).hint.unwrap();
        let primary = Refusal::PeerIsPrimary(alpha);
        let there =
            "run `holdfast invalidate r0 --peer beta` on alpha, which has the data that count";
        assert_eq!(hint(Some(beta), primary), there);
        assert_eq!(hint(Some(alpha), primary), "run `holdfast secondary r0` on alpha first");
        let attach = "run `holdfast attach-disk r0` on beta first";
        assert_eq!(hint(Some(beta), Refusal::Diskless), attach);
        let error = invalidate("r0", Some(beta), Refusal::Diskless, name);
        assert_eq!(
            error.message,
            "invalidate was refused for r0: node beta has no disk of it in use"
        );
        assert!(hint(None, Refusal::Diskless).contains("starts to use its disk"));
    }
}
