//! The rules of the repository hold.

#[test]
fn the_repository_is_tidy() {
    let faults = xtask::tidy(&xtask::root()).unwrap();
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "put these right:\n{}", lines.join("\n"));
}

/// Every test that a design note names in its table of promises is there.
#[test]
fn the_tests_that_the_notes_name_exist() {
    let root = xtask::root();
    let mut code = String::new();
    let mut directories = vec![root.join("crates")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|name| name == "rs") {
                code += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let note = std::fs::read_to_string(root.join("docs/design/dm-remap.md")).unwrap();
    let rows: Vec<&str> = note.lines().filter(|line| line.starts_with("| ")).collect();
    let is_test = |word: &&str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        word.chars().all(plain) && word.matches('_').count() > 1
    };
    let names = |row: &&str| row.split('`').filter(is_test).map(str::to_owned).collect::<Vec<_>>();
    let named: Vec<String> = rows.iter().flat_map(names).collect();
    assert!(named.len() > 100, "only {} tests are named", named.len());
    let there = |name: &String| code.contains(&format!("fn {name}("));
    let missing: Vec<&String> = named.iter().filter(|name| !there(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
