//! Configuration of DRBD: `drbd.conf` and the `.res` files that it includes.

mod files;
mod option;
mod resource;
mod steps;
mod syntax;
#[cfg(test)]
mod tests;

use super::ledger::{Ledger, Outcome};
use super::plan::Plan;
use holdfast_api::ApiError;
use resource::{Layer, Resource};
use std::path::PathBuf;
use syntax::Statement;

/// Reads the files and makes the plan.
///
/// # Errors
/// What cannot be read, with its place; a node that is to be the first and is in no resource.
pub(super) fn import(files: &[PathBuf], first: Option<&str>) -> Result<Plan, ApiError> {
    let mut ledger = Ledger::default();
    let (statements, read) = files::load(files, &mut ledger)?;
    let mut common = Layer::default();
    for statement in statements.iter().filter(|s| s.keyword() == "common") {
        common.take(statement, &mut ledger);
    }
    let mut resources: Vec<Resource> = Vec::new();
    for statement in &statements {
        match statement.keyword() {
            "common" => {}
            "resource" => resources.extend(resource::read(statement, &mut ledger)),
            "global" => global(statement, &mut ledger),
            "skip" => skipped(statement, &mut ledger),
            word if word.starts_with("require-drbd-module-version") => {
                let why = "no kernel module is needed";
                ledger.settle(statement.id, Outcome::needless(why));
            }
            _ => {}
        }
    }
    let made = steps::make(&resources, &common, first, &mut ledger)?;
    Ok(Plan {
        kind: "drbd",
        files: read,
        steps: made.steps,
        remarks: made.remarks,
        statements: ledger.close(),
    })
}

fn global(statement: &Statement, ledger: &mut Ledger) {
    let why = "it is about DRBD's own tools";
    ledger.settle(statement.id, Outcome::needless(why));
    for inner in statement.body() {
        settle_all(inner, ledger, &Outcome::needless(why));
    }
}

fn skipped(statement: &Statement, ledger: &mut Ledger) {
    settle_all(statement, ledger, &Outcome::needless("the file says that it is to be skipped"));
}

/// The same for a statement and all inside of it.
fn settle_all(statement: &Statement, ledger: &mut Ledger, outcome: &Outcome) {
    ledger.settle(statement.id, outcome.clone());
    for inner in statement.body() {
        settle_all(inner, ledger, outcome);
    }
}
