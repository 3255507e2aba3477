//! The rules of the repository hold.

#[test]
fn the_repository_is_tidy() {
    let faults = xtask::tidy(&xtask::root()).unwrap();
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "put these right:\n{}", lines.join("\n"));
}
