//! Commands that take several resources: `NAME`, `NAME,NAME`, or `all`.

use crate::parse::name;
use crate::session::Session;
use holdfast_api::status::NodeStatus;
use holdfast_api::{ApiError, ErrorCode, routes};

/// The resources that a command is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// All that this node is a member of.
    All,
    /// These, in this order, each once.
    These(Vec<String>),
}

/// Reads `all`, or names with commas between them.
pub(crate) fn names(text: &str) -> Result<Names, String> {
    if text == routes::ALL {
        return Ok(Names::All);
    }
    let mut these = Vec::new();
    for part in text.split(',') {
        let part = name(part)?;
        if !these.contains(&part) {
            these.push(part);
        }
    }
    Ok(Names::These(these))
}

impl Names {
    async fn resolve(&self, session: &Session) -> Result<Vec<String>, ApiError> {
        match self {
            Self::These(names) => Ok(names.clone()),
            Self::All => {
                let status: NodeStatus = session.get(routes::STATUS).await?;
                Ok(status.resources.into_iter().map(|resource| resource.name).collect())
            }
        }
    }
}

/// Does something for each of them, one after the other, also when one fails: it is told of at once, and
/// the error at the end says for which it failed.
pub(crate) async fn each(
    session: &Session,
    names: &Names,
    act: impl AsyncFn(&str) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let names = names.resolve(session).await?;
    if let [only] = &names[..] {
        return act(only).await;
    }
    let mut failed: Vec<&str> = Vec::new();
    let mut first: Option<ErrorCode> = None;
    for name in &names {
        if let Err(error) = act(name).await {
            session.ui.error(&error);
            failed.push(name);
            first.get_or_insert(error.code);
        }
    }
    let Some(code) = first else { return Ok(()) };
    let message = format!(
        "{} of {} resources were not changed: {}",
        failed.len(),
        names.len(),
        failed.join(", ")
    );
    Err(ApiError::new(code, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let these =
            |names: &[&str]| Ok(Names::These(names.iter().map(ToString::to_string).collect()));
        assert_eq!(names("all"), Ok(Names::All));
        assert_eq!(names("r0"), these(&["r0"]));
        assert_eq!(names("b,a,b"), these(&["b", "a"]));
        for wrong in ["", "a,", ",a", "a,,b", "a b", "all,a", "a,none"] {
            assert!(names(wrong).is_err(), "{wrong}");
        }
    }
}
