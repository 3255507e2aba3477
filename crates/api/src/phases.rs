//! What a command tells of itself while it runs: the lines of an answer of the kind [`KIND`].

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The content type of an answer in lines; a call that accepts it gets one.
pub const KIND: &str = "application/x-ndjson";

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// The last one.
    End {
        /// The HTTP status that the answer would have had.
        status: u16,
        /// Its body.
        answer: Value,
    },
    /// A phase that begins, in words.
    #[serde(with = "phase")]
    Phase(String),
}

/// `{"phase": "..."}`
mod phase {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Phase {
        phase: String,
    }

    pub(super) fn serialize<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
        Phase { phase: text.to_owned() }.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        Phase::deserialize(from).map(|line| line.phase)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_objects() {
        let phase = Line::Phase("telling".into());
        assert_eq!(serde_json::to_string(&phase).unwrap(), r#"{"phase":"telling"}"#);
        let end = Line::End { status: 409, answer: Value::Null };
        for line in [phase, end] {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
        }
    }
}
