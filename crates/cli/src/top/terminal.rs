//! The terminal while it shows a whole screen: raw input, the alternate screen, keys.
//!
//! Whatever ends the command, the terminal is as it was before: at the end, with the first `Drop`; in a
//! panic before its message is printed; a signal ends the loop of `top`, and with it this.

use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::fs::File;
use std::future::pending;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The alternate screen without a cursor.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[2J";
/// The screen that was there before, with its cursor.
const LEAVE: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1049l";
/// After an escape that no more follows within this time, it was the key.
const ESCAPE_TIME: Duration = Duration::from_millis(50);

/// What standard input was like; `None` while nothing is to be put right.
static BEFORE: Mutex<Option<Option<Termios>>> = Mutex::new(None);

/// A key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    Char(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Backspace,
    /// Ctrl-C.
    Interrupt,
}

/// Whether a whole screen can be shown.
pub(super) fn is_capable() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stdout().is_terminal() && !dumb
}

/// A terminal that shows a screen.
pub(super) struct Screen {
    typed: UnboundedReceiver<Vec<u8>>,
    decoder: Decoder,
}

impl Screen {
    /// Takes the terminal over.
    pub(super) fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).ok();
        *lock() = Some(before.clone());
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            usual(panic);
        }));
        let (keyboard, typed) = unbounded_channel();
        let screen = Self { typed, decoder: Decoder::default() };
        if let Some(mut raw) = before {
            raw.make_raw();
            tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
            // It waits for the next key when the command ends, and goes with the process.
            std::thread::spawn(move || listen(&keyboard));
        }
        out(ENTER)?;
        Ok(screen)
    }

    /// Columns and rows.
    pub(super) fn size() -> (usize, usize) {
        let size = tcgetwinsize(io::stdout());
        let size = size.ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        size.map_or((80, 24), |size| (usize::from(size.ws_col), usize::from(size.ws_row)))
    }

    /// Shows lines, from the top, without flicker.
    pub(super) fn draw(&self, lines: &[String]) -> io::Result<()> {
        let mut frame = String::from("\x1b[H");
        frame.push_str(&lines.join("\x1b[K\r\n"));
        frame.push_str("\x1b[K\x1b[J");
        out(frame.as_bytes())
    }

    /// The next keys. Never ends when there are none any more. May be dropped while it waits.
    pub(super) async fn keys(&mut self) -> Vec<Key> {
        loop {
            let typed = self.typed.recv();
            let typed = if self.decoder.waits() {
                match tokio::time::timeout(ESCAPE_TIME, typed).await {
                    Ok(typed) => typed,
                    Err(_) => return self.decoder.end(),
                }
            } else {
                typed.await
            };
            let Some(bytes) = typed else { return pending().await };
            let found = self.decoder.feed(&bytes);
            if !found.is_empty() {
                return found;
            }
        }
    }
}

/// Reads what is typed until the terminal is gone.
fn listen(keyboard: &UnboundedSender<Vec<u8>>) {
    let mut bytes = [0; 64];
    loop {
        match rustix::io::read(io::stdin(), &mut bytes) {
            Err(Errno::INTR) => {}
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if keyboard.send(bytes[..read].to_vec()).is_err() {
                    return;
                }
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Option<Termios>>> {
    BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Makes the terminal what it was before; once.
fn restore() {
    let Some(before) = lock().take() else { return };
    // Where the terminal is gone, nothing is to be put right.
    let _ = out(LEAVE);
    if let Some(before) = before {
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &before);
    }
}

/// Writes past the buffer of standard output, whose lock a panic may hold.
fn out(bytes: &[u8]) -> io::Result<()> {
    File::from(io::stdout().as_fd().try_clone_to_owned()?).write_all(bytes)
}

/// Makes keys of bytes.
#[derive(Default)]
struct Decoder {
    /// The beginning of a sequence.
    begun: Vec<u8>,
}

impl Decoder {
    /// Whether more may belong to what has come.
    fn waits(&self) -> bool {
        !self.begun.is_empty()
    }

    /// Nothing more came.
    fn end(&mut self) -> Vec<Key> {
        let begun = std::mem::take(&mut self.begun);
        if begun == [0x1b] { vec![Key::Escape] } else { Vec::new() }
    }

    fn feed(&mut self, bytes: &[u8]) -> Vec<Key> {
        bytes.iter().filter_map(|byte| self.byte(*byte)).collect()
    }

    fn byte(&mut self, byte: u8) -> Option<Key> {
        match (&self.begun[..], byte) {
            ([], 0x1b) => {
                self.begun.push(byte);
                None
            }
            ([], _) => plain(byte),
            // Twice: the first one was the key.
            ([0x1b], 0x1b) => Some(Key::Escape),
            ([0x1b], b'[' | b'O') => {
                self.begun.push(byte);
                None
            }
            ([0x1b], _) => {
                self.begun.clear();
                None
            }
            (_, 0x40..=0x7e) => {
                let begun = std::mem::take(&mut self.begun);
                sequence(begun.get(2..).unwrap_or_default(), byte)
            }
            // No sequence is that long.
            (begun, _) if begun.len() > 16 => {
                self.begun.clear();
                None
            }
            _ => {
                self.begun.push(byte);
                None
            }
        }
    }
}

fn plain(byte: u8) -> Option<Key> {
    match byte {
        3 => Some(Key::Interrupt),
        b'\r' | b'\n' => Some(Key::Enter),
        8 | 0x7f => Some(Key::Backspace),
        b' '..=b'~' => Some(Key::Char(char::from(byte))),
        _ => None,
    }
}

fn sequence(numbers: &[u8], end: u8) -> Option<Key> {
    match (numbers, end) {
        (_, b'A') => Some(Key::Up),
        (_, b'B') => Some(Key::Down),
        (_, b'H') | (b"1" | b"7", b'~') => Some(Key::Home),
        (_, b'F') | (b"4" | b"8", b'~') => Some(Key::End),
        (b"5", b'~') => Some(Key::PageUp),
        (b"6", b'~') => Some(Key::PageDown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_keys_however_they_come() {
        let all = b"q\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b[H\x1b[4~\r\x7f\x03 \x1b[1;5A\xc3\xa4\x1b[99~/";
        let due = [
            Key::Char('q'),
            Key::Up,
            Key::Down,
            Key::PageUp,
            Key::PageDown,
            Key::Home,
            Key::End,
            Key::Enter,
            Key::Backspace,
            Key::Interrupt,
            Key::Char(' '),
            Key::Up,
            Key::Char('/'),
        ];
        assert_eq!(Decoder::default().feed(all), due);
        let mut slow = Decoder::default();
        let one_by_one: Vec<Key> = all.iter().flat_map(|byte| slow.feed(&[*byte])).collect();
        assert_eq!(one_by_one, due);
        assert!(!slow.waits());
    }

    #[test]
    fn an_escape_alone_is_a_key_when_nothing_follows() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.feed(b"\x1b"), []);
        assert!(decoder.waits());
        assert_eq!(decoder.end(), [Key::Escape]);
        assert_eq!(decoder.feed(b"\x1b\x1b"), [Key::Escape]);
        assert_eq!(decoder.end(), [Key::Escape]);
        // The rest of a sequence never came.
        assert_eq!(decoder.feed(b"\x1b[1"), []);
        assert_eq!(decoder.end(), []);
        assert_eq!(decoder.feed(b"j"), [Key::Char('j')]);
        // Endless ones are given up.
        assert_eq!(decoder.feed(&[b"\x1b[".as_slice(), &[b'1'; 40]].concat()).len(), 24);
    }
}
