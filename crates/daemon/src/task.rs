//! Tasks that end with whoever started them.

use std::future::Future;
use tokio::task::AbortHandle;

/// A task that is aborted when this is dropped.
#[derive(Debug)]
pub(crate) struct Task(AbortHandle);

impl Task {
    /// Starts it.
    pub(crate) fn spawn<F>(work: F) -> Self
    where
        F: Future<Output: Send> + Send + 'static,
    {
        Self(tokio::spawn(work).abort_handle())
    }

    /// Whether it has ended by itself.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::Task;

    #[tokio::test]
    async fn it_ends_with_its_owner_and_with_those_it_started() {
        let (alive, mut ended) = tokio::sync::mpsc::channel::<()>(1);
        let outer = Task::spawn(async move {
            let _inner = Task::spawn(async move {
                let _alive = alive;
                std::future::pending::<()>().await;
            });
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert!(!outer.is_finished());
        drop(outer);
        assert_eq!(ended.recv().await, None);
    }
}
