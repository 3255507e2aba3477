//! The program: built, stripped, and what it needs of a system.

use super::tool;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

/// Where cargo builds.
pub(crate) fn target_dir(root: &Path) -> Result<PathBuf> {
    let metadata = xtask::metadata(root)?;
    let dir = metadata["target_directory"].as_str().context("metadata without target_directory")?;
    Ok(PathBuf::from(dir))
}

/// Builds the program; where it is.
pub(crate) fn build(root: &Path, profile: &str) -> Result<PathBuf> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--bin", "holdfast", "--profile", profile])
        .current_dir(root)
        .status()
        .context("cargo does not start")?;
    if !status.success() {
        bail!("cargo build failed: {status}");
    }
    let dir = if profile == "dev" { "debug" } else { profile };
    Ok(target_dir(root)?.join(dir).join("holdfast"))
}

/// A copy without debugging information, below `work`.
pub(crate) fn strip(program: &Path, work: &Path) -> Result<PathBuf> {
    let stripped = work.join("holdfast");
    let mut strip = Command::new("strip");
    strip.args(["--strip-all", "--remove-section=.comment", "-o"]).arg(&stripped).arg(program);
    tool::output(&mut strip, "binutils")?;
    Ok(stripped)
}

/// A version of numbers, as `2.34`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(Vec<u32>);

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers: Result<Vec<u32>, _> = text.split('.').map(str::parse).collect();
        numbers.map(Self).with_context(|| format!("{text:?} is no version"))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&numbers.join("."))
    }
}

/// What a program is linked to.
#[derive(Debug)]
pub(crate) struct Needs {
    /// The architecture in the words of Debian and of rpm.
    pub(crate) architecture: (&'static str, &'static str),
    /// Its shared libraries, each with the names of the versions of symbols that are used.
    libraries: BTreeMap<String, BTreeSet<String>>,
}

impl Needs {
    /// Looks into an ELF file.
    ///
    /// # Errors
    /// When it is none, or for an architecture that nobody has named here.
    pub(crate) fn of(program: &Path) -> Result<Self> {
        let said = tool::output(Command::new("objdump").arg("-p").arg(program), "binutils")?;
        Self::parse(&said).with_context(|| program.display().to_string())
    }

    /// Reads what `objdump -p` prints.
    fn parse(said: &str) -> Result<Self> {
        let format = said.lines().find_map(|line| line.split_once("file format ")).map(|(_, f)| f);
        let architecture = match format.map(str::trim) {
            Some("elf64-x86-64") => ("amd64", "x86_64"),
            Some("elf64-littleaarch64") => ("arm64", "aarch64"),
            Some("elf64-littleriscv") => ("riscv64", "riscv64"),
            Some("elf64-powerpcle") => ("ppc64el", "ppc64le"),
            Some("elf64-s390") => ("s390x", "s390x"),
            other => bail!("packages for {} are not known", other.unwrap_or("this file")),
        };
        let mut libraries: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut of = None;
        for line in said.lines() {
            if let Some(name) = line.trim().strip_prefix("NEEDED") {
                libraries.entry(name.trim().to_owned()).or_default();
            } else if let Some(name) = line.trim().strip_prefix("required from ") {
                of = Some(name.trim_end_matches(':').to_owned());
            } else if let Some(library) = &of {
                match line.split_whitespace().collect::<Vec<_>>()[..] {
                    [_, _, _, symbols] => {
                        libraries.entry(library.clone()).or_default().insert(symbols.to_owned());
                    }
                    _ => of = None,
                }
            }
        }
        Ok(Self { architecture, libraries })
    }

    /// The newest version of symbols with this prefix, of all libraries.
    fn newest(&self, prefix: &str) -> Option<Version> {
        let symbols = self.libraries.values().flatten();
        symbols.filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).max()
    }

    /// The C library that it needs at least; none when it is linked statically.
    pub(crate) fn glibc(&self) -> Option<Version> {
        self.newest("GLIBC_")
    }

    /// Refuses a program that needs a newer C library.
    pub(crate) fn check_glibc(&self, limit: &Version) -> Result<()> {
        match self.glibc() {
            Some(needed) if needed > *limit => bail!(
                "the program needs glibc {needed}, and should run with {limit}\n\
                 hint: build it on a system that is no newer than Debian 12, or allow it with --glibc {needed}"
            ),
            _ => Ok(()),
        }
    }

    /// The Debian packages of the libraries.
    ///
    /// # Errors
    /// When there is a library whose package is not known here.
    pub(crate) fn debian_depends(&self) -> Result<String> {
        let mut packages = BTreeSet::new();
        for library in self.libraries.keys() {
            let (package, version) = match library.as_str() {
                name if name.starts_with("ld-linux") || name.starts_with("ld64") => continue,
                "libc.so.6" | "libm.so.6" => ("libc6", self.newest("GLIBC_")),
                "libgcc_s.so.1" => {
                    let symbols = self.newest("GCC_");
                    ("libgcc-s1", symbols.map(|v| Version(v.0.into_iter().take(2).collect())))
                }
                other => bail!("which Debian package has {other} is not known"),
            };
            packages.insert(match version {
                Some(version) => format!("{package} (>= {version})"),
                None => package.to_owned(),
            });
        }
        Ok(packages.into_iter().collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "
/work/holdfast:     file format elf64-x86-64

Program Header:
    LOAD off    0x0 vaddr 0x0

Dynamic Section:
  NEEDED               libgcc_s.so.1
  NEEDED               libm.so.6
  NEEDED               libc.so.6
  NEEDED               ld-linux-x86-64.so.2
  FLAGS                0x8

Version References:
  required from libm.so.6:
    0x09691a75 0x00 05 GLIBC_2.2.5
  required from libc.so.6:
    0x06969194 0x00 07 GLIBC_2.34
    0x0d696919 0x00 09 GLIBC_2.9
  required from libgcc_s.so.1:
    0x0b792655 0x00 08 GCC_4.2.0

";

    #[test]
    fn what_a_program_needs() {
        let needs = Needs::parse(SAID).unwrap();
        assert_eq!(needs.architecture, ("amd64", "x86_64"));
        assert_eq!(needs.debian_depends().unwrap(), "libc6 (>= 2.34), libgcc-s1 (>= 4.2)");
        assert!(needs.check_glibc(&"2.34".parse().unwrap()).is_ok());
        let refused = needs.check_glibc(&"2.28".parse().unwrap()).unwrap_err().to_string();
        assert!(refused.contains("glibc 2.34"), "{refused}");
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let other = SAID.replace("libm.so.6", "libssl.so.3");
        let refused = Needs::parse(&other).unwrap().debian_depends().unwrap_err();
        assert!(refused.to_string().contains("libssl.so.3"));
        assert!(Needs::parse("a: file format elf32-i386\n").is_err());
        assert!(Needs::parse("").is_err());
    }

    #[test]
    fn versions_are_ordered_by_number() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(version("2.9") < version("2.34"));
        assert!(version("2.2.5") > version("2.2"));
        assert!("2.x".parse::<Version>().is_err());
    }
}
