//! Whether a command prints what a page says that it does.

/// Whether the lines are those that are due, but for numbers, sizes, times, and how many spaces there
/// are. A due line `...` stands for any number of lines.
pub(super) fn alike(due: &[String], printed: &[String]) -> bool {
    let plain = |lines: &[String]| {
        let lines = lines.iter().map(|line| plain(line));
        lines.filter(|line| !line.is_empty()).collect::<Vec<_>>()
    };
    fits(&plain(due), &plain(printed))
}

fn fits(due: &[String], printed: &[String]) -> bool {
    match (due.split_first(), printed.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "..." => {
            (0..=printed.len()).any(|skipped| fits(rest, &printed[skipped..]))
        }
        (Some((first, rest)), Some((line, others))) => line_fits(first, line) && fits(rest, others),
        _ => false,
    }
}

/// A due line may have `...` in it, too.
fn line_fits(due: &str, line: &str) -> bool {
    let Some((before, after)) = due.split_once("...") else { return due == line };
    let Some(rest) = line.strip_prefix(before) else { return false };
    let ends: Vec<usize> = (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).collect();
    ends.into_iter().any(|at| line_fits(after, &rest[at..]))
}

/// Units that a number can have.
const UNITS: [&str; 16] = [
    "B", "KiB", "MiB", "GiB", "TiB", "B/s", "KiB/s", "MiB/s", "GiB/s", "us", "µs", "ms", "s",
    "min", "h", "d",
];

/// A line without what differs from run to run.
fn plain(line: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        let inner = word.trim_matches(|c: char| !c.is_alphanumeric());
        let follows_number = words.last().is_some_and(|last| last.ends_with('0'));
        if follows_number && UNITS.contains(&inner) {
            words.push(word.replacen(inner, "unit", 1));
        } else if is_identifier(inner) {
            words.push(word.replacen(inner, "0", 1));
        } else {
            words.push(without_numbers(word));
        }
    }
    words.join(" ")
}

/// A UUID, a generation, a fingerprint.
fn is_identifier(word: &str) -> bool {
    let digits = word.chars().filter(char::is_ascii_digit).count();
    word.len() >= 8
        && digits > 0
        && digits < word.len()
        && word.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, '-' | ':'))
}

/// Each number in it is 0, with what belongs to it: `12.5`, `10:30:01.123Z`.
fn without_numbers(word: &str) -> String {
    let mut out = String::new();
    let mut rest = word.strip_prefix(['+', '-']).unwrap_or(word);
    if !rest.starts_with(|c: char| c.is_ascii_digit()) {
        rest = word;
    }
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        out.push_str(&rest[..at]);
        out.push('0');
        rest = rest[at..].trim_start_matches(|c: char| c.is_ascii_digit());
        while let Some(behind) = rest.strip_prefix(['.', ':', ','])
            && behind.starts_with(|c: char| c.is_ascii_digit())
        {
            rest = behind.trim_start_matches(|c: char| c.is_ascii_digit());
        }
    }
    out + rest
}

#[test]
fn numbers_and_spaces_make_no_difference() {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    for (due, printed) in [
        ("db  10 GiB", "db 64 MiB"),
        ("+0.003 s ahead", "-0.1 s ahead"),
        ("3.2 s behind, 40 % done", "120 ms behind, 7 % done"),
        ("cluster 0a1b2c3d-4e5f", "cluster ffff0000-1234"),
        ("a\n...\nd", "a\nb\nc\nd"),
        ("a\n...", "a"),
        ("since ... now", "since 10:30 until now"),
        ("at 127.0.0.1:7850", "at 127.22.3.4:40001"),
    ] {
        assert!(alike(&lines(due), &lines(printed)), "{due} / {printed}");
    }
    for (due, printed) in
        [("a", "b"), ("a", "a\nb"), ("a\nb", "a"), ("10 peers", "10 GiB"), ("x ... y", "x z")]
    {
        assert!(!alike(&lines(due), &lines(printed)), "{due} / {printed}");
    }
}
