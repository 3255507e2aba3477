use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::Once;
use std::time::{Duration, Instant};

/// How long loading a kernel module is waited for.
const MODPROBE_LIMIT: Duration = Duration::from_secs(5);

/// By which way of the kernel a device shall be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Via {
    /// The best that there is.
    #[default]
    Auto,
    /// ublk, and nothing else.
    Ublk,
    /// The kernel's NBD client, and nothing else.
    Nbd,
    /// A FUSE file under a loop device, and nothing else.
    Fuse,
}

impl FromStr for Via {
    type Err = String;

    /// Reads `auto`, `ublk`, `nbd` or `fuse`; the error is a sentence.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "ublk" => Ok(Self::Ublk),
            "nbd" => Ok(Self::Nbd),
            "fuse" => Ok(Self::Fuse),
            _ => Err(format!("{text:?} is not a way to make a device: auto, ublk, nbd or fuse")),
        }
    }
}

/// By which way a device is made. Prints as `ublk`, `nbd` or `fuse`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// ublk.
    Ublk,
    /// The kernel's NBD client.
    Nbd,
    /// A FUSE file under a loop device.
    Fuse,
}

impl Kind {
    /// Best first: what [`Via::Auto`] takes.
    const ORDER: [Self; 3] = [Self::Ublk, Self::Nbd, Self::Fuse];

    /// The word that `status` prints.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ublk => "ublk",
            Self::Nbd => "nbd",
            Self::Fuse => "fuse",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why none of the wanted ways is there: one reason for each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Each way that was looked at, and why it cannot be used.
    pub reasons: Vec<(Kind, String)>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this machine cannot make a local block device")?;
        for (at, (kind, reason)) in self.reasons.iter().enumerate() {
            write!(f, "{} {kind}: {reason}", if at == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// Picks the way to make a device: the wanted one, or for [`Via::Auto`] the best that is there.
///
/// # Errors
/// [`Refusal`] with the reason for each way that was looked at.
pub fn choose(via: Via) -> Result<Kind, Refusal> {
    let wanted: &[Kind] = match via {
        Via::Auto => &Kind::ORDER,
        Via::Ublk => &[Kind::Ublk],
        Via::Nbd => &[Kind::Nbd],
        Via::Fuse => &[Kind::Fuse],
    };
    choose_among(wanted, obstacle)
}

fn choose_among(
    wanted: &[Kind],
    obstacle: impl Fn(Kind) -> Option<String>,
) -> Result<Kind, Refusal> {
    let mut reasons = Vec::new();
    for &kind in wanted {
        match obstacle(kind) {
            None => return Ok(kind),
            Some(reason) => reasons.push((kind, reason)),
        }
    }
    Err(Refusal { reasons })
}

/// What stands against this way; `None` when it can be used.
fn obstacle(kind: Kind) -> Option<String> {
    match kind {
        Kind::Ublk => not_root().or_else(|| {
            load_once("/dev/ublk-control", "ublk_drv", &UBLK_TRIED);
            holdfast_ublk::obstacle()
        }),
        Kind::Nbd => Some(format!("Holdfast {} has no driver for it", env!("CARGO_PKG_VERSION"))),
        Kind::Fuse => {
            cannot_open("/dev/fuse", "fuse").or_else(|| cannot_open("/dev/loop-control", "loop"))
        }
    }
}

fn not_root() -> Option<String> {
    (!rustix::process::geteuid().is_root()).then(|| "only root can use it".to_owned())
}

/// Whether loading the driver was tried.
static UBLK_TRIED: Once = Once::new();

/// Asks for a kernel module, once in the life of the process, when its node is not there.
fn load_once(node: &str, module: &str, tried: &Once) {
    if fs::symlink_metadata(node).is_ok() {
        return;
    }
    tried.call_once(|| {
        if let Err(error) = load(module) {
            tracing::debug!(module, %error, "a kernel module was not loaded");
        }
    });
}

/// Runs modprobe, and waits for it a few seconds.
fn load(module: &str) -> io::Result<()> {
    let mut modprobe = Command::new("modprobe");
    modprobe.arg(module).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = modprobe.spawn()?;
    let deadline = Instant::now() + MODPROBE_LIMIT;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn cannot_open(node: &str, module: &str) -> Option<String> {
    if let Some(reason) = not_root() {
        return Some(reason);
    }
    let error = OpenOptions::new().read(true).write(true).open(node).err()?;
    Some(match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{node} does not exist; `modprobe {module}` may bring it")
        }
        _ => format!("{node} cannot be opened: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::{Kind, Refusal, Via, choose, choose_among};

    #[test]
    fn the_best_way_that_is_there_wins() {
        let only = |there: Kind| move |kind: Kind| (kind != there).then(|| format!("no {kind}"));
        assert_eq!(choose_among(&Kind::ORDER, |_| None), Ok(Kind::Ublk));
        assert_eq!(choose_among(&Kind::ORDER, only(Kind::Fuse)), Ok(Kind::Fuse));
        let refusal = choose_among(&[Kind::Nbd], only(Kind::Fuse)).unwrap_err();
        assert_eq!(refusal, Refusal { reasons: vec![(Kind::Nbd, "no nbd".to_owned())] });
    }

    #[test]
    fn a_refusal_names_every_reason() {
        let refusal = choose_among(&Kind::ORDER, |kind| Some(format!("{kind} broke"))).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "this machine cannot make a local block device: ublk: ublk broke; nbd: nbd broke; \
             fuse: fuse broke"
        );
        assert!(choose(Via::Nbd).unwrap_err().to_string().contains("no driver"));
    }

    #[test]
    fn words_are_those_of_the_command_line() {
        assert_eq!("fuse".parse(), Ok(Via::Fuse));
        assert_eq!("auto".parse(), Ok(Via::Auto));
        assert!("FUSE".parse::<Via>().is_err());
        assert_eq!(Kind::Fuse.to_string(), "fuse");
    }
}
