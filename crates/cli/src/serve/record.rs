//! What the files of a mirror remember of each other: which of them has everything.
//!
//! The record is an extended attribute of each file. Block devices and some filesystems have none;
//! a mirror with such a part is compared from start to end whenever it is served.

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

const NAME: &str = "user.holdfast.mirror";
/// Longer ones are not ours.
const MAX_LEN: usize = 256;

/// What one file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Which mirror it belongs to.
    pub(super) set: String,
    /// The files with the highest generation have everything.
    pub(super) generation: u64,
    /// When the file was last changed before its server ended in good order; `None` while one
    /// runs, or after it was killed.
    pub(super) clean: Option<i128>,
}

impl Record {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (version, set) = (words.next()?, words.next()?);
        let generation = words.next()?.parse().ok()?;
        let clean = match words.next()? {
            "open" => None,
            time => Some(time.parse().ok()?),
        };
        let fits = version == "1" && !set.is_empty() && words.next().is_none();
        fits.then(|| Self { set: set.to_owned(), generation, clean })
    }

    fn text(&self) -> String {
        let clean = self.clean.map_or_else(|| "open".to_owned(), |time| time.to_string());
        format!("1 {} {} {clean}", self.set, self.generation)
    }

    /// Reads the record of a file; `None` when it has none that can be read. One whose file was
    /// changed since its server ended counts as open.
    pub(super) fn read(file: &File) -> Option<Self> {
        let mut text = [0; MAX_LEN];
        let len = fgetxattr(file, NAME, &mut text[..]).ok()?;
        let mut record = Self::parse(std::str::from_utf8(text.get(..len)?).ok()?)?;
        record.clean = record.clean.filter(|time| changed(file).ok() == Some(*time));
        Some(record)
    }

    /// Whether a file without a record could have one.
    pub(super) fn probe(file: &File) -> io::Result<()> {
        // Empty, it is read as none.
        fsetxattr(file, NAME, b"", XattrFlags::CREATE).or_else(|error| {
            if error == rustix::io::Errno::EXIST { Ok(()) } else { Err(error.into()) }
        })
    }

    /// Writes the record, durably.
    pub(super) fn write(&self, file: &File) -> io::Result<()> {
        fsetxattr(file, NAME, self.text().as_bytes(), XattrFlags::empty())?;
        file.sync_all()
    }

    /// The same after a good end: the file must be flushed and at rest.
    pub(super) fn closed(&self, file: &File) -> io::Result<Self> {
        Ok(Self { clean: Some(changed(file)?), ..self.clone() })
    }
}

/// When a file was last changed, in nanoseconds.
fn changed(file: &File) -> io::Result<i128> {
    let metadata = file.metadata()?;
    Ok(i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()))
}

/// What is to be done with the parts of a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// Whether each part has everything. At least one has.
    pub(super) good: Vec<bool>,
    /// The mirror that they belong to; `None` for a new one.
    pub(super) set: Option<String>,
    /// The highest generation so far.
    pub(super) generation: u64,
}

/// Why nobody can know which part has everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// This part belongs to another mirror than one before it.
    OtherMirror(usize),
    /// The first part belongs to no mirror, and this one does.
    FirstIsNew(usize),
}

/// Decides by what the parts say, in the order in which they were named.
pub(super) fn decide(found: &[Option<Record>]) -> Result<Decision, Doubt> {
    let known = || found.iter().enumerate().filter_map(|(at, record)| Some((at, record.as_ref()?)));
    let Some((at, any)) = known().next() else {
        // A new mirror: the first part is what the others are made equal to.
        let good = (0..found.len()).map(|part| part == 0).collect();
        return Ok(Decision { good, set: None, generation: 0 });
    };
    if let Some((other, _)) = known().find(|(_, record)| record.set != any.set) {
        return Err(Doubt::OtherMirror(other));
    }
    if at > 0 {
        return Err(Doubt::FirstIsNew(at));
    }
    let generation = known().map(|(_, record)| record.generation).max().unwrap_or(0);
    let is_newest = |record: &Record| record.generation == generation;
    let newest: Vec<bool> =
        found.iter().map(|record| record.as_ref().is_some_and(is_newest)).collect();
    let mut candidates = found.iter().zip(&newest).filter(|(_, newest)| **newest);
    let all_clean =
        candidates.all(|(record, _)| record.as_ref().is_some_and(|record| record.clean.is_some()));
    let good = if all_clean {
        newest
    } else {
        // A server was killed, or somebody else has written: they may differ where it was at.
        let source = newest.iter().position(|newest| *newest);
        (0..found.len()).map(|part| Some(part) == source).collect()
    };
    Ok(Decision { good, set: Some(any.set.clone()), generation })
}

#[cfg(test)]
mod tests {
    use super::{Decision, Doubt, Record, decide};
    use std::fs::File;
    use std::io::Write;

    fn record(set: &str, generation: u64, clean: bool) -> Option<Record> {
        Some(Record { set: set.into(), generation, clean: clean.then_some(5) })
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for clean in [None, Some(-1), Some(1_700_000_000_123_456_789)] {
            let record = Record { set: "0a1b".into(), generation: 7, clean };
            assert_eq!(Record::parse(&record.text()), Some(record));
        }
        for bad in ["", "1", "1 a", "1 a b open", "1 a 1 x", "2 a 1 open", "1 a 1 open more"] {
            assert_eq!(Record::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_file_that_was_changed_since_is_not_clean() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("part");
        let mut file = File::options().create_new(true).write(true).read(true).open(path).unwrap();
        assert_eq!(Record::read(&file), None);
        let open = Record { set: "s".into(), generation: 1, clean: None };
        if open.write(&file).is_err() {
            println!("skipped: there are no extended attributes here");
            return;
        }
        assert_eq!(Record::read(&file).as_ref(), Some(&open));
        open.closed(&file).unwrap().write(&file).unwrap();
        assert!(Record::read(&file).unwrap().clean.is_some());
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        file.write_all(b"x").unwrap();
        assert_eq!(Record::read(&file), Some(open));
    }

    #[test]
    fn the_newest_parts_have_everything() {
        let cases = [
            // what is found, who is good, the generation
            (vec![None, None], vec![true, false], 0),
            (vec![record("a", 3, true), record("a", 3, true)], vec![true, true], 3),
            (vec![record("a", 3, true), record("a", 4, true)], vec![false, true], 4),
            (vec![record("a", 3, false), record("a", 3, true)], vec![true, false], 3),
            (vec![record("a", 3, true), record("a", 3, false)], vec![true, false], 3),
            (vec![record("a", 3, false), record("a", 4, true)], vec![false, true], 4),
            (vec![record("a", 3, true), None, record("a", 3, true)], vec![true, false, true], 3),
        ];
        for (found, good, generation) in cases {
            let set = found.iter().flatten().next().map(|record| record.set.clone());
            assert_eq!(decide(&found), Ok(Decision { good, set, generation }), "{found:?}");
        }
        let other = [record("a", 3, true), None, record("b", 3, true)];
        assert_eq!(decide(&other), Err(Doubt::OtherMirror(2)));
        assert_eq!(decide(&[None, record("a", 1, true)]), Err(Doubt::FirstIsNew(1)));
    }
}
