use std::thread;
use std::time::{Duration, Instant};

/// How long to pause between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Whether `condition` comes true within `limit`. It is looked at at least twice.
pub fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return condition();
        }
        thread::sleep(PAUSE); // bounded poll
    }
}

/// Waits until `condition` comes true; panics with `what` when it did not within `limit`.
#[track_caller]
pub fn wait_until(limit: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(limit, condition), "{what}: not so after {limit:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_as_soon_as_it_holds_and_at_the_limit() {
        let mut looks = 0;
        assert!(holds_within(Duration::from_secs(10), || {
            looks += 1;
            looks == 3
        }));
        assert_eq!(looks, 3);
        assert!(!holds_within(Duration::ZERO, || false));
    }
}
