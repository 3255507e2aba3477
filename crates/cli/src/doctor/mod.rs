//! `doctor`: looks at the machine, the daemon and the cluster for what is in the way or will be.
//!
//! It changes nothing: no module is loaded, no file is written, no option is set.

mod cluster;
mod disks;
mod finding;
mod kernel;
mod limits;
pub(crate) mod machine;
mod ports;
mod resources;
mod space;
mod speed;
mod tls;

use crate::args::{Doctor, Global, NodeFiles};
use crate::output::Ui;
use crate::session::Session;
pub(crate) use finding::Findings;
use finding::Severity;
use holdfast_api::daemon::DaemonInfo;
use holdfast_api::error::without_numbers;
use holdfast_api::status::NodeStatus;
use holdfast_api::{ApiError, ErrorCode, routes};
use holdfast_daemon::DaemonOptions;
use jiff::Timestamp;
use machine::Machine;
use serde::de::DeserializeOwned;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

/// How long the daemon may take to answer when nobody says.
const ANSWER: Duration = Duration::from_secs(10);
/// The files of an archive of `support` with what the daemon said.
pub(crate) const INFO_FILE: &str = "daemon.json";
pub(crate) const STATUS_FILE: &str = "status.json";

/// What findings are made of.
#[derive(Debug)]
pub(crate) struct Facts {
    /// The machine.
    pub(crate) machine: Machine,
    /// What the daemon uses, or would use if it ran; `None` when its configuration is refused.
    pub(crate) info: Option<DaemonInfo>,
    /// What the daemon says; `None` when none answers.
    pub(crate) status: Option<NodeStatus>,
    /// Why no daemon answers, or what is wrong with its configuration.
    pub(crate) silent: Option<ApiError>,
}

/// Runs the command; its exit code is 1 when there is an error among the findings.
///
/// # Errors
/// When the archive that `--root` names is none.
pub(crate) async fn run(ui: &Ui, global: &Global, args: &Doctor) -> Result<ExitCode, ApiError> {
    let facts = match &args.root {
        Some(root) => of_archive(Machine::below(root), &root.display().to_string())?,
        None => of_here(ui, global, &args.files).await,
    };
    let findings = examine(&facts);
    if ui.json {
        let node = facts.info.as_ref().map(|info| info.node.clone()).unwrap_or_default();
        ui.json(&findings.json(&node));
    } else {
        let least = if ui.quiet { Severity::Warning } else { Severity::Ok };
        ui.text(&findings.text(least, ui.color));
    }
    let limit = if args.strict { Severity::Warning } else { Severity::Error };
    Ok(ExitCode::from(u8::from(findings.worst() >= limit)))
}

/// Asks the daemon of this machine, and reads its files when it does not answer.
pub(crate) async fn of_here(ui: &Ui, global: &Global, files: &NodeFiles) -> Facts {
    let offline = holdfast_daemon::inventory(&DaemonOptions {
        config: files.config.clone(),
        state_dir: files.state_dir.clone(),
        socket: global.socket.clone(),
        ..DaemonOptions::default()
    });
    let socket = global.socket.clone().or_else(|| {
        let socket = offline.as_ref().ok().map(|info| info.socket.clone());
        socket.map(Into::into)
    });
    let timeout = global.timeout.unwrap_or(ANSWER);
    let global = Global { socket, timeout: Some(timeout), ..global.clone() };
    let session = Session::new(ui, &global);
    let asked = async {
        let info: DaemonInfo = session.get(routes::DAEMON).await?;
        let status: NodeStatus = session.get(routes::STATUS).await?;
        Ok::<_, ApiError>((info, status))
    };
    let machine = Machine::here();
    match (asked.await, offline) {
        (Ok((info, status)), _) => {
            Facts { machine, info: Some(info), status: Some(status), silent: None }
        }
        (Err(silent), Ok(info)) => {
            Facts { machine, info: Some(info), status: None, silent: Some(silent) }
        }
        (Err(_), Err(refused)) => {
            Facts { machine, info: None, status: None, silent: Some(refused) }
        }
    }
}

fn of_archive(machine: Machine, root: &str) -> Result<Facts, ApiError> {
    if machine.release().is_none() {
        let message = format!("{root} was not looked at: it has no file proc/sys/kernel/osrelease");
        return Err(ApiError::new(ErrorCode::InvalidPath, message)
            .hint("--root takes the directory that an archive of `holdfast support` unpacks to"));
    }
    Ok(Facts {
        info: read_json(&machine, INFO_FILE),
        status: read_json(&machine, STATUS_FILE),
        machine,
        silent: None,
    })
}

fn read_json<T: DeserializeOwned>(machine: &Machine, name: &str) -> Option<T> {
    serde_json::from_slice(&machine.bytes(name)?).ok()
}

/// Makes all findings.
pub(crate) fn examine(facts: &Facts) -> Findings {
    let mut findings = Findings::default();
    kernel::look(&facts.machine, &mut findings);
    daemon(facts, &mut findings);
    limits::look(facts, &mut findings);
    ports::look(facts, &mut findings);
    cluster::look(facts, &mut findings);
    resources::look(facts, &mut findings);
    disks::look(facts, &mut findings);
    space::look(facts, &mut findings);
    tls::look(facts, Timestamp::now(), &mut findings);
    if facts.machine.is_here() {
        speed::look(&mut findings);
    }
    findings
}

fn daemon(facts: &Facts, findings: &mut Findings) {
    if let Some(status) = &facts.status {
        let what = format!("the daemon of node {} runs, version {}", status.node, status.version);
        findings.ok("daemon.answers", what);
        let own = env!("CARGO_PKG_VERSION");
        if status.version.split(' ').next() != Some(own) && facts.machine.is_here() {
            findings.note(
                "daemon.version",
                format!("this command is version {own}"),
                "the daemon is the one that was started, also after the package was updated",
                "restart it when it suits: devices wait meanwhile",
            );
        }
        return;
    }
    let Some(error) = &facts.silent else { return };
    let used = facts.info.as_ref().is_some_and(|info| !info.nodes.is_empty());
    match &facts.info {
        None => findings.error(
            "daemon.configuration",
            &error.message,
            "the daemon does not start with it",
            error.hint.clone().unwrap_or_default(),
        ),
        Some(_) if error.code != ErrorCode::NotReachable => findings.error(
            "daemon.answers",
            &error.message,
            "commands are not answered",
            error.hint.clone().unwrap_or_default(),
        ),
        Some(_) if error.message.contains("permission denied") => findings.note(
            "daemon.answers",
            &error.message,
            "what only the daemon knows is not looked at",
            "run doctor as root, or as the user of the daemon",
        ),
        Some(_) if used => findings.warning(
            "daemon.answers",
            &error.message,
            "this node belongs to a cluster: its resources are not replicated, and its devices \
             wait",
            "systemctl start holdfast; `journalctl -u holdfast` says why it ended",
        ),
        Some(_) => findings.note(
            "daemon.answers",
            &error.message,
            "every other command needs it",
            "systemctl start holdfast, or `holdfast daemon`",
        ),
    }
}

/// An error of the system without its number.
fn plain(error: &io::Error) -> String {
    without_numbers(&error.to_string()).to_lowercase()
}
