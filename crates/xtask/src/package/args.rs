//! The command line of `package`.

use super::binary::Version;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// What `cargo xtask package --help` prints.
pub(crate) const USAGE: &str = "\
usage: cargo xtask package deb|rpm|tar|all [OPTIONS]
  --out DIR         where to put the packages [default: packages in the target directory]
  --profile NAME    which profile of cargo to build with [default: release]
  --binary PATH     pack this program instead of building one; it must run here
  --revision N      which package of this version it is [default: 1]
  --glibc VERSION   the newest C library that the program may need [default: 2.34]
  --quick           compress less";

/// The C library of the oldest distribution that is promised to work: EL 9. Ubuntu 22.04 has 2.35, Debian 12 2.36.
const OLDEST_GLIBC: &str = "2.34";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Deb,
    Rpm,
    Tar,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) formats: Vec<Format>,
    pub(crate) out: Option<PathBuf>,
    pub(crate) profile: String,
    pub(crate) binary: Option<PathBuf>,
    pub(crate) revision: u32,
    pub(crate) glibc: Version,
    pub(crate) quick: bool,
}

impl Options {
    /// Reads the words behind `package`.
    ///
    /// # Errors
    /// With what is wrong about them.
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut words = words.into_iter();
        let formats = match words.next().as_deref() {
            Some("deb") => vec![Format::Deb],
            Some("rpm") => vec![Format::Rpm],
            Some("tar") => vec![Format::Tar],
            Some("all") => vec![Format::Deb, Format::Rpm, Format::Tar],
            Some(other) => bail!("there is no package format {other:?}"),
            None => bail!("which package format?"),
        };
        let mut options = Self {
            formats,
            out: None,
            profile: "release".to_owned(),
            binary: None,
            revision: 1,
            glibc: OLDEST_GLIBC.parse()?,
            quick: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--out" => options.out = Some(value()?.into()),
                "--profile" => options.profile = value()?,
                "--binary" => options.binary = Some(value()?.into()),
                "--revision" => {
                    let text = value()?;
                    let number = text.parse().ok().filter(|number| *number > 0);
                    options.revision =
                        number.with_context(|| format!("--revision cannot be {text:?}"))?;
                }
                "--glibc" => options.glibc = value()?.parse()?,
                "--quick" => options.quick = true,
                _ => bail!("there is no option {word}"),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_and_their_defaults() {
        let plain = parse("deb").unwrap();
        assert_eq!(plain.formats, [Format::Deb]);
        assert_eq!((plain.profile.as_str(), plain.revision, plain.quick), ("release", 1, false));
        let full = "all --out o --profile dev --binary b --revision 2 --glibc 2.36 --quick";
        let full = parse(full).unwrap();
        assert_eq!(full.formats, [Format::Deb, Format::Rpm, Format::Tar]);
        assert_eq!((full.out, full.binary), (Some("o".into()), Some("b".into())));
        assert_eq!((full.profile.as_str(), full.revision, full.quick), ("dev", 2, true));
        assert!(full.glibc > plain.glibc);
    }

    #[test]
    fn what_is_refused() {
        for bad in
            ["", "apk", "deb --out", "deb --revision 0", "deb --glibc new", "deb rpm", "deb --fast"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
