//! What the service manager is told, and asked to keep: readiness, how it stands, that everything
//! goes on, and the sockets that outlive a restart (`sd_notify(3)`).
//!
//! Nothing here is an error for anybody: without a service manager nobody listens.

mod summary;

use crate::node::Node;
use crate::status;
use holdfast_api::{Client, ClientError, routes};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};
use sd_notify::NotifyState;
use std::env;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

/// Where the service manager listens.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";
/// The word for the state is renewed no oftener.
const STATUS_PAUSE: Duration = Duration::from_millis(500);

/// Whether there is a service manager. It keeps the sockets of a daemon that ends.
pub(crate) fn is_managed() -> bool {
    env::var_os(SOCKET_VARIABLE).is_some_and(|place| !place.is_empty())
}

/// Says that the daemon can be used.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that the configuration is read again; [`ready`] ends it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the clock cannot be read"),
    }
}

/// Says that the daemon ends.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// Asks the service manager to keep a socket for the next start, under this name.
pub(crate) fn keep(name: &str, socket: BorrowedFd<'_>) {
    log(send(&format!("FDSTORE=1\nFDNAME={name}\n"), &[socket]));
}

/// Asks the service manager to keep no socket of this name any more.
pub(crate) fn forget(name: &str) {
    log(send(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), &[]));
}

fn tell(states: &[NotifyState<'_>]) {
    let text: String = states.iter().map(|state| format!("{state}\n")).collect();
    log(send(&text, &[]));
}

fn log(sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "the service manager was not told something");
    }
}

/// One message. Never waits for a service manager that does not read.
fn send(text: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let Some(place) = env::var_os(SOCKET_VARIABLE).filter(|place| !place.is_empty()) else {
        return Ok(());
    };
    let address = match place.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(place.as_bytes())?,
    };
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !with.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("too many sockets for one message"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg_addr(&socket, &address, &[IoSlice::new(text.as_bytes())], &mut with, flags)?;
    Ok(())
}

/// How long the service manager waits for a sign of life; `None` when it does not.
pub(crate) fn watchdog_limit() -> Option<Duration> {
    let variable = |name| env::var(name).ok();
    limit_of(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id())
}

/// Without a process that it is for it is for everybody.
fn limit_of(micros: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    let is_own = pid.is_none_or(|pid| pid.parse() == Ok(own));
    let micros = micros?.parse().ok().filter(|micros| *micros > 0)?;
    is_own.then_some(Duration::from_micros(micros))
}

/// Gives signs of life for the service manager as long as the daemon runs: only while the thread that
/// the resources live on does its work and the control API answers. What hangs for `limit` is
/// ended from outside; the devices wait for the next start.
pub(crate) async fn watch(node: Arc<Node>, limit: Duration, sign: impl Fn()) {
    // Looked at, and said, often enough that one slow answer costs nothing.
    let pause = limit / 4;
    loop {
        wait_for(shard_works(&node), pause, "the thread of the resources").await;
        wait_for(control_works(&node, pause), pause, "the control API").await;
        sign();
        tokio::time::sleep(pause).await;
    }
}

/// Gives the service manager one.
pub(crate) fn sign_of_life() {
    tell(&[NotifyState::Watchdog]);
}

/// Waits as long as it takes, and says in the log that it takes long.
async fn wait_for(proof: impl Future<Output = ()>, usual: Duration, what: &str) {
    let mut proof = std::pin::pin!(proof);
    if tokio::time::timeout(usual, &mut proof).await.is_err() {
        tracing::error!(
            "{what} has not answered for {:.1} s: the service manager gets no sign of life until \
             it does",
            usual.as_secs_f64()
        );
        proof.await;
        tracing::warn!("{what} answers again");
    }
}

async fn shard_works(node: &Node) {
    // One that has ended, when the daemon stops, has nothing to do. Nothing of it is held meanwhile.
    let done = node.shard().map(|shard| shard.run(|| ()));
    if let Ok(done) = done {
        done.await;
    }
}

/// Calls the control API as a command does. Only no answer at all is a bad sign: somebody may have
/// removed the socket, and a daemon that stops, which it does in bounded time, takes no calls.
async fn control_works(node: &Node, patience: Duration) {
    let client = Client::new(node.settings.socket.clone()).with_timeout(patience);
    let answered = async {
        while let Err(ClientError::TimedOut { .. }) =
            client.get::<serde_json::Value>(routes::VERSION).await
        {}
    };
    tokio::select! {
        () = answered => {}
        () = node.stopped() => {}
    }
}

/// Tells the service manager in a few words how it stands, whenever that changes, until the daemon
/// stops.
pub(crate) async fn tell_state(node: Arc<Node>) {
    let (_, mut changes) = node.hub.subscribe(None);
    let mut told = String::new();
    loop {
        let now = summary(&node);
        if now != told {
            tell(&[NotifyState::Status(&now)]);
            told = now;
        }
        tokio::select! {
            changed = changes.recv() => {
                if matches!(changed, Err(RecvError::Closed)) {
                    return;
                }
            }
            () = node.stopped() => return,
        }
        tokio::time::sleep(STATUS_PAUSE).await;
        // What came together is one change.
        changes = changes.resubscribe();
    }
}

/// How it stands, in a few words.
pub(crate) fn summary(node: &Arc<Node>) -> String {
    let resources: Vec<_> =
        node.resources().iter().map(|one| status::resource(node, one)).collect();
    summary::of(node.view().membership.is_some(), &resources, node.attachments.all().len())
}

#[cfg(test)]
mod tests {
    use super::limit_of;
    use std::time::Duration;

    #[test]
    fn the_watchdog_is_for_the_process_that_is_named() {
        let some = |text: &str| Some(text.to_owned());
        let second = Some(Duration::from_secs(1));
        assert_eq!(limit_of(some("1000000"), None, 7), second);
        assert_eq!(limit_of(some("1000000"), some("7"), 7), second);
        assert_eq!(limit_of(some("1000000"), some("8"), 7), None);
        assert_eq!(limit_of(some("1000000"), some("x"), 7), None);
        for nonsense in [None, some(""), some("0"), some("-1"), some("1s")] {
            assert_eq!(limit_of(nonsense, None, 7), None);
        }
    }
}
