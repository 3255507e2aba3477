use tokio::sync::watch;

/// Tells connections to end. Dropping it without [`ShutdownHandle::request`] tells them nothing.
#[derive(Debug)]
pub struct ShutdownHandle(watch::Sender<bool>);

/// What a connection listens to. Clones hear the same; it may move between threads.
#[derive(Clone, Debug)]
pub struct Shutdown(Option<watch::Receiver<bool>>);

impl Shutdown {
    /// A signal and the handle that gives it.
    #[must_use]
    pub fn new() -> (ShutdownHandle, Self) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownHandle(sender), Self(Some(receiver)))
    }

    /// A signal that never comes.
    #[must_use]
    pub const fn never() -> Self {
        Self(None)
    }

    /// Waits until the end is asked for; for ever, when nobody can ask any more.
    pub async fn requested(&mut self) {
        if let Some(receiver) = &mut self.0
            && receiver.wait_for(|requested| *requested).await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

impl ShutdownHandle {
    /// Asks all connections to end: new requests are refused, those under way are finished.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}
