//! Numbers in sentences for people.

/// `1 block`, `2 blocks`.
#[must_use]
pub fn counted(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

/// The word for one of something, or that for any other number: `is` or `are`.
#[must_use]
pub const fn agreed(count: u64, one: &'static str, more: &'static str) -> &'static str {
    if count == 1 { one } else { more }
}

#[cfg(test)]
mod tests {
    use super::{agreed, counted};

    #[test]
    fn one_is_one_and_all_else_is_more() {
        let sentence = |n| format!("{} {} bad", counted(n, "block"), agreed(n, "is", "are"));
        assert_eq!(sentence(1), "1 block is bad");
        assert_eq!(
            (sentence(0), sentence(21)),
            ("0 blocks are bad".into(), "21 blocks are bad".into())
        );
    }
}
