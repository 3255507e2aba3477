use crate::nbd_netlink::NbdNetlink;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
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

/// The way that was picked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The way.
    pub kind: Kind,
    /// Each way that is better, and why it cannot be used.
    pub passed_over: Vec<(Kind, String)>,
    /// Whether it was the only one that was wanted.
    pub wanted: bool,
}

impl fmt::Display for Choice {
    /// Why it was picked, as a phrase: `nbd, because ublk cannot be used: ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        match &self.passed_over[..] {
            [] if self.wanted => f.write_str(", as asked for"),
            [] => f.write_str(", the best way that there is"),
            passed_over => {
                for (at, (kind, reason)) in passed_over.iter().enumerate() {
                    let before = if at == 0 { ", because" } else { ", and" };
                    write!(f, "{before} {kind} cannot be used: {reason}")?;
                }
                Ok(())
            }
        }
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
pub fn choose(via: Via) -> Result<Choice, Refusal> {
    let wanted: &[Kind] = match via {
        Via::Auto => &Kind::ORDER,
        Via::Ublk => &[Kind::Ublk],
        Via::Nbd => &[Kind::Nbd],
        Via::Fuse => &[Kind::Fuse],
    };
    let mut choice = choose_among(wanted, obstacle)?;
    choice.wanted = via != Via::Auto;
    Ok(choice)
}

fn choose_among(
    wanted: &[Kind],
    obstacle: impl Fn(Kind) -> Option<String>,
) -> Result<Choice, Refusal> {
    let mut reasons = Vec::new();
    for &kind in wanted {
        match obstacle(kind) {
            None => return Ok(Choice { kind, passed_over: reasons, wanted: false }),
            Some(reason) => reasons.push((kind, reason)),
        }
    }
    Err(Refusal { reasons })
}

/// What stands against this way; `None` when it can be used.
fn obstacle(kind: Kind) -> Option<String> {
    match kind {
        Kind::Ublk => not_root().or_else(ublk_obstacle),
        Kind::Nbd => not_root().or_else(nbd_obstacle),
        Kind::Fuse => {
            cannot_open("/dev/fuse", "fuse").or_else(|| cannot_open("/dev/loop-control", "loop"))
        }
    }
}

fn not_root() -> Option<String> {
    (!rustix::process::geteuid().is_root()).then(|| "only root can use it".to_owned())
}

fn ublk_obstacle() -> Option<String> {
    if !Path::new("/dev/ublk-control").exists()
        && let Err(why) = load_module("ublk_drv")
    {
        return Some(why);
    }
    holdfast_ublk::obstacle()
}

/// The first kernel whose NBD devices carry a word by which they are known again.
const NBD_SINCE: (u32, u32) = (5, 14);

fn nbd_obstacle() -> Option<String> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if version_of(&release).is_none_or(|version| version < NBD_SINCE) {
        return Some(format!("it needs Linux 5.14, and this is {release}"));
    }
    if let Err(error) = NbdNetlink::open() {
        if error.kind() != io::ErrorKind::NotFound {
            return Some(format!("its netlink cannot be used: {error}"));
        }
        if let Err(why) = load_module("nbd") {
            return Some(why);
        }
        if let Err(error) = NbdNetlink::open() {
            return Some(format!("its module is loaded, but its netlink cannot be used: {error}"));
        }
    }
    match fs::metadata("/sys/block") {
        Ok(_) => None,
        Err(error) => Some(format!("/sys is not there to tell of its devices: {error}")),
    }
}

/// The first two numbers of a kernel's release.
fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Has the kernel's module loaded; tried once for each process.
///
/// # Errors
/// Why it is not there, as the end of a sentence.
fn load_module(name: &'static str) -> Result<(), String> {
    static TRIED: Mutex<BTreeMap<&str, Result<(), String>>> = Mutex::new(BTreeMap::new());
    let mut tried = TRIED.lock().unwrap_or_else(PoisonError::into_inner);
    tried.entry(name).or_insert_with(|| modprobe(name)).clone()
}

/// Runs modprobe, and waits for it a few seconds.
fn modprobe(name: &str) -> Result<(), String> {
    let failed = |why: &str| Err(format!("the module {name} is not loaded, and {why}"));
    match run_modprobe(name) {
        Ok(true) => Ok(()),
        Ok(false) => failed(&format!("`modprobe {name}` does not load it")),
        Err(error) => failed(&format!("`modprobe {name}` cannot be run: {error}")),
    }
}

fn run_modprobe(name: &str) -> io::Result<bool> {
    // The program by which the kernel itself loads modules, where there is one.
    let kernels = fs::read_to_string("/proc/sys/kernel/modprobe").unwrap_or_default();
    let program = Some(kernels.trim()).filter(|path| Path::new(path).exists());
    let mut modprobe = Command::new(program.unwrap_or("modprobe"));
    modprobe.args(["-q", "--", name]);
    modprobe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = modprobe.spawn()?;
    let deadline = Instant::now() + MODPROBE_LIMIT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn cannot_open(node: &str, module: &'static str) -> Option<String> {
    if let Some(reason) = not_root() {
        return Some(reason);
    }
    if !Path::new(node).exists()
        && let Err(why) = load_module(module)
    {
        return Some(format!("{node} does not exist, {why}"));
    }
    let error = OpenOptions::new().read(true).write(true).open(node).err()?;
    Some(format!("{node} cannot be opened: {error}"))
}

#[cfg(test)]
mod tests {
    use super::{Choice, Kind, NBD_SINCE, Refusal, Via, choose_among, load_module, version_of};

    #[test]
    fn the_best_way_that_is_there_wins() {
        let only = |there: Kind| move |kind: Kind| (kind != there).then(|| format!("no {kind}"));
        let best = choose_among(&Kind::ORDER, |_| None).unwrap();
        assert_eq!(best.to_string(), "ublk, the best way that there is");
        let wanted = Choice { wanted: true, ..best };
        assert_eq!(wanted.to_string(), "ublk, as asked for");
        let last = choose_among(&Kind::ORDER, only(Kind::Fuse)).unwrap();
        assert_eq!(last.kind, Kind::Fuse);
        assert_eq!(
            last.to_string(),
            "fuse, because ublk cannot be used: no ublk, and nbd cannot be used: no nbd"
        );
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
    }

    #[test]
    fn the_release_of_a_kernel_is_read() {
        assert_eq!(version_of("6.1.0-50-amd64"), Some((6, 1)));
        assert_eq!(version_of("5.14-rc1"), Some((5, 14)));
        assert_eq!(version_of("linux"), None);
        assert!(version_of("5.9.1").unwrap() < NBD_SINCE);
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let why = load_module("no_such_module_of_holdfast").unwrap_err();
        assert!(why.starts_with("the module no_such_module_of_holdfast is not loaded, and "));
    }

    #[test]
    fn words_are_those_of_the_command_line() {
        assert_eq!("fuse".parse(), Ok(Via::Fuse));
        assert_eq!("auto".parse(), Ok(Via::Auto));
        assert!("FUSE".parse::<Via>().is_err());
        assert_eq!(Kind::Fuse.to_string(), "fuse");
    }
}
