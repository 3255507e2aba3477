/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameError {
    name: String,
    why: &'static str,
}

impl std::fmt::Display for NameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the name {:?} cannot be used: {}", self.name, self.why)
    }
}

impl std::error::Error for NameError {}

/// Checks the name of a resource, node or cluster: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`, and none of
/// `all`, `none`, `.`, `..`, which commands use for themselves.
///
/// # Errors
/// [`NameError`] says in one sentence what is wrong with it.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let refuse = |why| {
        let shown: String = name.chars().take(80).collect();
        Err(NameError { name: shown, why })
    };
    if name.is_empty() {
        return refuse("it is empty");
    }
    if name.len() > 64 {
        return refuse("it is longer than 64 characters");
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return refuse("it must start with a letter or a digit");
    }
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')) {
        return refuse("only letters, digits, '.', '_' and '-' are allowed");
    }
    if matches!(name, "all" | "none") {
        return refuse("this word has a meaning of its own in commands");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn names_of_the_contract() {
        for good in ["r0", "a", "Db.main_1-x", &"x".repeat(64), "0"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "all", "none", "-a", "_a", "a b", "a/b", "ä", "a\n"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name(&"x".repeat(65)).is_err());
    }
}
