//! The commands that the documentation shows: where they stand, and what is to be done with them.
//!
//! Every block of commands (```` ```sh ````, or ```` ```console ```` with what they print) has a note above
//! it, a comment that a reader of the page does not see:
//!
//! | note | what a test does |
//! |---|---|
//! | `<!-- test: run WORLD -->` | runs the block in a small world of real daemons |
//! | `<!-- test: run WORLD, kill alpha -->` | the same, after something has happened there |
//! | `<!-- test: lab SCRIPT -->` | nothing: `vmlab/SCRIPT` does it in a virtual machine |
//! | `<!-- test: no: REASON -->` | nothing, for this reason |
//!
//! The blocks of a page that name one world run in it one after the other; `run new WORLD` makes
//! another one. Whatever the note, the grammar of each `holdfast ...` is checked.

mod markdown;
mod shell;

pub use markdown::{Block, Happening, Note, Page, pages};
pub use shell::{command_lines, simple_commands, without_comment};
