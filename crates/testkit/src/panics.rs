use std::any::Any;
use std::io::Write;
use std::panic::{self, PanicHookInfo};
use std::sync::Once;
use std::thread;

/// So many characters of a message are shown.
const SHOWN: usize = 2000;

/// From now on a panic is also told at once, past the capture of what a test prints: the log of a run
/// has it where the test failed, not only at its end.
pub(crate) fn tell_at_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // Nobody may be reading.
            let _ = std::io::stderr().write_all(told(info).as_bytes());
            before(info);
        }));
    });
}

fn told(info: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let name = thread.name().unwrap_or("a thread");
    format!("panic in {name} at {place}: {}\n", shortened(message(info.payload())))
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

fn shortened(message: &str) -> &str {
    message.char_indices().nth(SHOWN).map_or(message, |(end, _)| &message[..end])
}

#[cfg(test)]
mod tests {
    use super::{SHOWN, message, shortened};

    #[test]
    fn what_is_said_of_a_panic() {
        assert_eq!(message(&"one"), "one");
        assert_eq!(message(&"two".to_owned()), "two");
        assert_eq!(message(&3), "without a message");
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"ä".repeat(SHOWN + 1)), "ä".repeat(SHOWN));
    }
}
