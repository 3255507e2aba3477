//! `cargo xtask package`: a release as .deb, .rpm and .tar.gz. All three hold the same tree of files.

mod args;
mod binary;
mod changelog;
mod content;
mod deb;
mod rpm;
mod tar;
mod template;
mod tool;
mod tree;

use anyhow::{Context, Result};
use args::Format;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use args::{Options, USAGE};

/// What all formats are made of.
struct Release {
    /// The version of the workspace, as `0.1.0`.
    version: String,
    /// Which package of this version, from 1.
    revision: u32,
    /// The repository.
    root: PathBuf,
    /// Every file with this time, in seconds since 1970, so that the same sources give the same packages.
    time: u64,
    /// What the program is for and needs.
    needs: binary::Needs,
    /// All files.
    tree: tree::Tree,
    changes: changelog::Changelog,
    /// Whether to compress less.
    quick: bool,
}

impl Release {
    fn packaging(&self) -> PathBuf {
        self.root.join("packaging")
    }

    /// A script of `packaging`, with what it shares with others, and with these words put in.
    fn script(&self, path: &str, words: &[(&str, &str)]) -> Result<String> {
        let functions = template::read(&self.packaging().join("functions.sh"))?;
        let text = template::read(&self.packaging().join(path))?;
        template::fill(&text, &[&[("FUNCTIONS", functions.trim_end())], words].concat())
            .with_context(|| format!("packaging/{path}"))
    }
}

/// Makes the packages that are asked for and prints their paths.
///
/// # Errors
/// When the program does not build, needs a newer system than was allowed, or a tool is missing or
/// fails. What a failed run leaves is in `work` below the output directory.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = xtask::root();
    let time = changelog::source_time(&root)?;
    let out = match &options.out {
        Some(out) => out.clone(),
        None => binary::target_dir(&root)?.join("packages"),
    };
    let work = out.join("work");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("cannot empty {}", work.display()))?;
    }
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let work = work.canonicalize()?;
    let built = match &options.binary {
        Some(path) => path.clone(),
        None => binary::build(&root, &options.profile)?,
    };
    let program = binary::strip(&built, &work)?;
    let needs = binary::Needs::of(&program)?;
    needs.check_glibc(&options.glibc)?;
    let changes = changelog::Changelog::read(&root, options.revision, time)?;
    let release = Release {
        version: changes.version().to_owned(),
        revision: options.revision,
        time,
        tree: content::tree(&root, &program, &work, &changes)?,
        needs,
        changes,
        quick: options.quick,
        root,
    };
    for format in &options.formats {
        let path = match format {
            Format::Deb => deb::make(&release, &work, &out)?,
            Format::Rpm => rpm::make(&release, &work, &out)?,
            Format::Tar => tar::make(&release, &work, &out)?,
        };
        println!("{}", path.display());
    }
    remove(&work)
}

fn remove(work: &Path) -> Result<()> {
    fs::remove_dir_all(work).with_context(|| format!("cannot remove {}", work.display()))
}
