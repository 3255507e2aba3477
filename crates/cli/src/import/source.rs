//! Files of other systems: bounded reading, places in them, errors.

use holdfast_api::{ApiError, ErrorCode};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// No such file is longer, in bytes.
const LONGEST: u64 = 1 << 20;

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The file.
    pub(super) file: Rc<PathBuf>,
    /// The line, from 1.
    pub(super) line: usize,
    /// The column in characters, from 1.
    pub(super) column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// The refusal of a file at a place.
pub(super) fn wrong(place: &Place, why: &str) -> ApiError {
    let message = format!("the import was not made: {place}:{}: {why}", place.column);
    ApiError::new(ErrorCode::InvalidRequest, message)
}

/// The text of a file.
pub(super) fn read(path: &Path) -> Result<String, ApiError> {
    let refuse = |why: String| {
        let message = format!("the import was not made: {} cannot be read: {why}", path.display());
        ApiError::new(ErrorCode::InvalidPath, message)
    };
    let file = std::fs::File::open(path).map_err(|why| refuse(why.to_string()))?;
    let mut bytes = Vec::new();
    let length = file.take(LONGEST + 1).read_to_end(&mut bytes);
    if length.map_err(|why| refuse(why.to_string()))? as u64 > LONGEST {
        return Err(refuse("it is longer than 1 MiB".to_owned()));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let before =
                String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
            let line = before.matches('\n').count() + 1;
            Err(refuse(format!("line {line} is no UTF-8")))
        }
    }
}
