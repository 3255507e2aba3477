//! Repository chores: `cargo xtask tidy`, `test`, `packages`, `package` and `guide`.

mod debian;
mod guide;
mod package;
mod test_run;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND
  tidy              check the rules of the repository: rooms, sources, lints, licences
  test [ARGS]       install what the tests need (as root on Debian), run `cargo test` for the whole
                    workspace (or with ARGS), and print how many tests passed and failed
  packages          install what the tests need (as root on Debian), or say what is missing
  package FORMAT    make a release: deb, rpm, tar or all; `package --help` tells the options
  guide [PART]      write into docs/guide what is made from the grammar of the commands, and what
                    commands print that are shown with their output; PART is in the paths of
                    the pages whose commands are run";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next();
    let done = match command.as_deref() {
        Some("tidy") => tidy(),
        Some("test") => test_run::run(&args.collect::<Vec<_>>()),
        Some("packages") => debian::install_missing().map(|()| true),
        Some("package") => match package(args) {
            Ok(done) => done,
            Err(wrong) => {
                eprintln!("error: {wrong:#}\n{}", package::USAGE);
                return ExitCode::from(2);
            }
        },
        Some("guide") => guide::write(args.next().as_deref()),
        Some("help" | "-h" | "--help") => {
            println!("{USAGE}");
            Ok(true)
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Makes packages; the outer error is one of usage.
fn package(args: impl Iterator<Item = String>) -> anyhow::Result<anyhow::Result<bool>> {
    let args: Vec<String> = args.collect();
    if matches!(args.first().map(String::as_str), Some("help" | "-h" | "--help")) {
        println!("{}", package::USAGE);
        return Ok(Ok(true));
    }
    let options = package::Options::parse(args)?;
    Ok(package::run(&options).map(|()| true))
}

fn tidy() -> anyhow::Result<bool> {
    let faults = xtask::tidy(&xtask::root())?;
    for fault in &faults {
        eprintln!("error: {fault}");
    }
    match faults.len() {
        0 => println!("tidy: nothing to complain about"),
        count => eprintln!("tidy: {count} to put right"),
    }
    Ok(faults.is_empty())
}
