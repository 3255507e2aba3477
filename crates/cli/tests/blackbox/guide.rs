//! The commands that the documentation shows are run as they stand there. What the notes above the blocks
//! mean is in `holdfast_testkit::guide`, which worlds there are in `guide/world.rs`.
//!
//! * `# on beta` on a line of its own: what follows is typed there. So is `beta$ COMMAND`.
//! * A line must succeed, unless a comment behind it says `# fails`, or `error:` is printed below it.
//! * A line with `Ctrl-C` in the comment behind it is interrupted as soon as it has printed something.
//! * `hf1-...` is the token that was printed last.
//! * In a block `console`, what is printed must be what stands there, but for numbers and spaces; `...`
//!   stands for any lines. Commands that only look are asked again until it is so, a minute at most.
//! * Files are below the directory of the node: `/dev/vg0/db`, `/srv`, `/mnt` and so on are no others'.
//!
//! `HOLDFAST_GUIDE` is a part of the path of the pages to run, for one who writes a page. With
//! `HOLDFAST_WRITE_GUIDE` what commands print is written into the page, where it differs.

mod text;
mod world;

use holdfast_testkit::guide::{
    Block, Note, Page, command_lines, pages, simple_commands, without_comment,
};
use holdfast_testkit::{Output, devices_unavailable, holds_within};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use world::World;

/// How long what a command that only looks prints may take to be as the page says.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many pages are run at a time.
const AT_A_TIME: usize = 4;

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("this crate lies two levels below the root").to_path_buf()
}

#[test]
fn the_commands_of_the_guide_do_what_it_says() {
    let wanted = std::env::var("HOLDFAST_GUIDE").unwrap_or_default();
    let mut pages = pages(&root()).expect("the documentation can be read");
    pages.retain(|page| page.path.contains(&wanted));
    assert!(!pages.is_empty(), "no page has {wanted} in its path");
    let faults = Mutex::new(Vec::new());
    let left = Mutex::new(pages.iter());
    let next = || left.lock().expect("nobody panics with it").next();
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(page) = next() {
                    let begin = Instant::now();
                    let mut run = Run::new(page);
                    let ended = catch_unwind(AssertUnwindSafe(|| run.page()));
                    let of_page = ended.unwrap_or_else(|_| Err(vec![run.panicked()]));
                    if run.lines > 0 {
                        let took = begin.elapsed().as_secs_f32();
                        println!("{}: {} commands in {took:.1} s", page.path, run.lines);
                    }
                    let of_page = of_page.err().unwrap_or_default();
                    faults.lock().expect("nobody panics with it").extend(of_page);
                }
            });
        }
    });
    let faults = faults.into_inner().expect("nobody panics with it");
    assert!(faults.is_empty(), "{} places:\n\n{}", faults.len(), faults.join("\n\n"));
}

/// A page that is being run.
struct Run<'a> {
    page: &'a Page,
    /// The world that the last block was in.
    world: Option<World>,
    /// The line that is run.
    line: usize,
    /// How many commands were run.
    lines: usize,
    /// Lines of the page, from and to, in whose place others come.
    rewritten: Vec<(usize, usize, Vec<String>)>,
}

/// A line to type, and what is printed then.
struct Typed {
    /// Counted from 1, in the page.
    line: usize,
    /// On which node; as before when left out.
    node: Option<String>,
    command: String,
    /// What is printed; `None` when the page does not show it.
    printed: Option<Vec<String>>,
}

impl<'a> Run<'a> {
    fn new(page: &'a Page) -> Self {
        Self { page, world: None, line: 0, lines: 0, rewritten: Vec::new() }
    }

    fn panicked(&self) -> String {
        format!("{}:{}: see above", self.page.path, self.line)
    }

    /// Runs all its blocks; after a fault, those of another world.
    fn page(&mut self) -> Result<(), Vec<String>> {
        let mut faults = Vec::new();
        // The world in which something went wrong: what follows there would tell nothing.
        let mut spoilt = None;
        for block in self.page.blocks() {
            let Ok(Note::Run { world, anew, happenings }) = block.parsed_note() else { continue };
            if !anew && spoilt.as_ref() == Some(&world) {
                continue;
            }
            self.line = block.line;
            let there = self.world.as_ref().is_some_and(|now| now.kind() == world);
            if anew || !there {
                self.world = None;
                spoilt = None;
                self.world = Some(World::new(&world));
            }
            let at = self.world.as_mut().expect("it was made");
            let happened = happenings.iter().try_for_each(|what| at.happens(what));
            if let Err(why) = happened.and_then(|()| self.block(&block)) {
                faults.push(format!("{}:{}: {why}", self.page.path, self.line));
                spoilt = Some(world);
                self.world = None;
            }
        }
        if writes() {
            self.rewrite();
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn block(&mut self, block: &Block) -> Result<(), String> {
        for typed in typed(block) {
            self.line = typed.line;
            if let Some(node) = &typed.node {
                self.at().go_to(node)?;
            }
            if !typed.command.is_empty() {
                self.lines += 1;
                self.command(&typed)?;
            }
        }
        Ok(())
    }

    fn at(&mut self) -> &mut World {
        self.world.as_mut().expect("a block is run in a world")
    }

    fn command(&mut self, typed: &Typed) -> Result<(), String> {
        let (command, comment) = without_comment(&typed.command);
        let comment = comment.unwrap_or_default();
        if needs_devices(command) && devices_unavailable().is_some() {
            return Ok(());
        }
        if comment.contains("Ctrl-C") || command.ends_with('&') {
            let output = self.at().begin(command, comment.contains("Ctrl-C"))?;
            return self.compare(typed, &output).or(Err(format!("{output}")));
        }
        let error = |line: &String| line.starts_with("error:");
        let refused = typed.printed.as_ref().is_some_and(|lines| lines.iter().any(error));
        let fails = comment.starts_with("fails") || (refused && is_own(command));
        if !only_looks(command) || typed.printed.is_none() {
            let output = self.at().run(command);
            return self.judge(typed, fails, &output);
        }
        let patience = if writes() { PATIENCE / 15 } else { PATIENCE };
        let mut result = Ok(());
        holds_within(patience, || {
            let output = self.at().run(command);
            result = self.judge(typed, fails, &output);
            result.is_ok()
        });
        if writes() { Ok(()) } else { result }
    }

    /// Whether a command ended as the page says, and printed that.
    fn judge(&mut self, typed: &Typed, fails: bool, output: &Output) -> Result<(), String> {
        if writes() && typed.printed.is_some() {
            let same = self.compare(typed, output);
            return if only_looks(&typed.command) { same } else { Ok(()) };
        }
        match output.status {
            0 if fails => Err(format!("it should fail: {output}")),
            0 => self.compare(typed, output),
            _ if fails => self.compare(typed, output),
            _ => Err(output.to_string()),
        }
    }

    /// Whether what is printed is what the page says.
    fn compare(&mut self, typed: &Typed, output: &Output) -> Result<(), String> {
        let Some(due) = &typed.printed else { return Ok(()) };
        let both = format!("{}{}", output.stderr, output.stdout);
        let both: Vec<String> = both.lines().map(|line| line.trim_end().to_owned()).collect();
        self.rewritten.retain(|(first, _, _)| *first != typed.line);
        if text::alike(due, &both) {
            return Ok(());
        }
        if writes() && both.is_empty() && due.is_empty() {
            return Ok(());
        }
        self.rewritten.push((typed.line, typed.line + due.len(), both.clone()));
        let shown = |lines: &[String]| lines.join("\n  ");
        Err(format!(
            "`{}` does not print what the page says\nthe page:\n  {}\nit prints:\n  {}",
            typed.command,
            shown(due),
            shown(&both)
        ))
    }

    /// Writes what was printed into the page.
    fn rewrite(&mut self) {
        if self.rewritten.is_empty() {
            return;
        }
        let mut lines: Vec<String> = self.page.text.lines().map(str::to_owned).collect();
        self.rewritten.sort();
        for (first, end, printed) in self.rewritten.drain(..).rev() {
            lines.splice(first..end, printed);
        }
        let path = root().join(&self.page.path);
        std::fs::write(path, lines.join("\n") + "\n").expect("the page can be written");
    }
}

/// Whether the pages are brought in line with what is printed.
fn writes() -> bool {
    std::env::var_os("HOLDFAST_WRITE_GUIDE").is_some()
}

/// What is to be typed in a block.
fn typed(block: &Block) -> Vec<Typed> {
    let mut all: Vec<Typed> = Vec::new();
    if block.language == "sh" {
        for (number, text) in command_lines(&block.lines) {
            let line = block.line + 1 + number;
            let (command, comment) = without_comment(&text);
            let comment = comment.unwrap_or_default();
            let place = comment.strip_prefix("on ").filter(|_| command.is_empty());
            let node = place.and_then(|place| place.split([' ', ':', ',']).next());
            let node = node.filter(|node| world::is_node(node)).map(str::to_owned);
            let command = if command.is_empty() { String::new() } else { text.clone() };
            all.push(Typed { line, node, command, printed: None });
        }
        return all;
    }
    for (index, text) in block.lines.iter().enumerate() {
        let line = block.line + 1 + index;
        let prompt =
            text.split_once("$ ").filter(|(node, _)| node.is_empty() || world::is_node(node));
        match (prompt, all.last_mut()) {
            (Some((node, command)), _) => {
                let node = (!node.is_empty()).then(|| node.to_owned());
                let command = command.to_owned();
                all.push(Typed { line, node, command, printed: Some(Vec::new()) });
            }
            (None, Some(last)) => last.printed.get_or_insert_default().push(text.clone()),
            (None, None) => panic!("the block in line {} begins with output", block.line),
        }
    }
    all
}

/// Commands that change nothing: they may be run again.
const LOOKS: [&str; 12] = [
    "status",
    "cluster status",
    "cluster get",
    "attachments",
    "health",
    "get",
    "log ls",
    "badblocks ls",
    "spare ls",
    "events",
    "archive ls",
    "doctor",
];

/// Whether how it ends is how this command ends, and not that of a program behind it.
fn is_own(line: &str) -> bool {
    let commands = simple_commands(line).unwrap_or_default();
    commands.last().and_then(|words| words.first()).is_some_and(|program| program == "holdfast")
}

fn only_looks(line: &str) -> bool {
    let commands = simple_commands(line).unwrap_or_default();
    commands.iter().all(|words| {
        let rest = words.get(1..).unwrap_or_default().join(" ");
        words.first().is_some_and(|program| program != "holdfast")
            || LOOKS.iter().any(|look| rest == *look || rest.starts_with(&format!("{look} ")))
    })
}

/// Whether it can be done only where local block devices can be made.
fn needs_devices(line: &str) -> bool {
    ["/dev/holdfast", "/mnt", "holdfast device ", "holdfast attach ", "holdfast detach "]
        .iter()
        .any(|part| line.contains(part))
}
