//! The keys of the configuration file as text: the commented default file, and the parts of the manual.

use holdfast_api::options::{Kind, NO_DIRECTORY, OPTIONS, OptionSpec, Unit};
use holdfast_daemon::config::{CONFIG_KEYS, RESOURCE, RESOURCE_DEFAULTS};

/// How wide comments are.
const WIDTH: usize = 100;

const HEAD: &str = "\
Configuration of the Holdfast daemon, read by `holdfast daemon`. The manual: `man holdfast.toml`.

A line with # before a key, without a blank between them, is an option that nobody has set: it \
shows the default, or an example where the default is no value. To set it, take the # away. Then
  holdfast config check       says whether the file can be used, and what is wrong in it
  systemctl restart holdfast  has the daemon use it; for the tables at the end, SIGHUP is enough
What the daemon is given on its command line goes before this file.";

const RESOURCES: &str = "\
Defaults for the options of resources.

`holdfast create` and `holdfast join` on this node use them for what is made from now on. create \
copies them into the cluster's records, as if they were given by --set, which goes before them; \
join uses only checksums, the one option that each node has for itself. Resources that exist are \
never changed by this file: `holdfast set` does that, on all members at once. SIGHUP is enough \
after a change.

Times take also ms, s, m, h and d behind the number, sizes K, M, G and T.";

const NAMED: &str = "\
The same for the resource of one name; they go before those for all. There can be as many of \
these tables as there are names.";

/// The commented default file.
pub(crate) fn template() -> String {
    let mut text = comment(HEAD);
    for key in CONFIG_KEYS {
        let about = format!("{}\n{}. Default: {}.", key.about, key.form, key.default);
        text.push('\n');
        text.push_str(&comment(&about));
        text.push_str(&format!("#{} = {}\n", key.name, key.sample));
    }
    text.push_str(&format!("\n\n{}#[{RESOURCE_DEFAULTS}]\n", comment(RESOURCES)));
    for option in OPTIONS {
        text.push('\n');
        text.push_str(&comment(&about(option)));
        text.push_str(&format!("#{} = {}\n", option.name, sample(option)));
    }
    text.push_str(&format!(
        "\n\n{}#[{RESOURCE}.\"NAME\"]\n#resync-rate = \"50M\"\n",
        comment(NAMED)
    ));
    text
}

/// `What it does. Range: ... Default: ...`, with the unit of plain numbers.
fn about(option: &OptionSpec) -> String {
    let mut chars = option.description.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    let rest = chars.as_str();
    let unit = match option.unit() {
        "" => String::new(),
        "ds" => " Unit: tenths of a second.".to_owned(),
        "ms" => " Unit: milliseconds.".to_owned(),
        "s" => " Unit: seconds.".to_owned(),
        unit => format!(" Unit: {unit}."),
    };
    let default = option.show(&option.default_value());
    format!("{first}{rest}.\nRange: {}. Default: {default}.{unit}", option.range())
}

/// The default of an option in TOML.
fn sample(option: &OptionSpec) -> String {
    match option.kind {
        Kind::Number { unit: Unit::Bytes | Unit::BytesPerSecond, default, .. } => {
            let suffix = [(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
            let found =
                suffix.iter().find(|(size, _)| default >= *size && default.is_multiple_of(*size));
            found.map_or_else(
                || default.to_string(),
                |(size, suffix)| format!("\"{}{suffix}\"", default / size),
            )
        }
        Kind::Number { default, .. } => default.to_string(),
        Kind::Directory => format!("{NO_DIRECTORY:?}"),
        Kind::Word { .. } | Kind::Window => format!("{:?}", option.default_value()),
    }
}

/// Text as comments, its lines broken at blanks; those that are indented stay.
fn comment(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        if line.starts_with(' ') {
            out.push_str(&format!("# {line}\n"));
            continue;
        }
        let mut broken = String::new();
        for word in line.split(' ') {
            let length = broken.chars().count();
            if length > 0 && length + 1 + word.chars().count() > WIDTH - 2 {
                out.push_str(&format!("# {broken}\n"));
                broken.clear();
            } else if length > 0 {
                broken.push(' ');
            }
            broken.push_str(word);
        }
        out.push_str(format!("# {broken}").trim_end());
        out.push('\n');
    }
    out
}

/// The keys as the manual lists them, in roff.
pub(crate) fn manual_of_keys() -> String {
    let entry = |name: &str, form: &str, text: &str| {
        format!(".TP\n\\fB{}\\fR = \\fI{}\\fR\n{}\n", roff(name), roff(form), roff(text))
    };
    let keys = CONFIG_KEYS
        .iter()
        .map(|key| entry(key.name, key.form, &format!("{}\nDefault: {}.", key.about, key.default)));
    keys.collect()
}

/// The options of resources, in the same form.
pub(crate) fn manual_of_options() -> String {
    let entry = |option: &OptionSpec| {
        let (name, sample) = (roff(option.name), roff(&sample(option)));
        format!(".TP\n\\fB{name}\\fR = \\fI{sample}\\fR\n{}\n", roff(&about(option)))
    };
    OPTIONS.iter().map(entry).collect()
}

fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let guarded = |line: &str| match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line.to_owned(),
    };
    text.lines().map(guarded).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_daemon::config::ConfigFile;
    use std::collections::BTreeSet;

    fn shipped() -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/holdfast.toml");
        std::fs::read_to_string(path).expect("the default file is there")
    }

    /// A line that is an option, or the head of a table, behind its `#`.
    fn option_of(line: &str) -> Option<&str> {
        let rest = line.strip_prefix('#')?;
        rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()).then_some(rest)
    }

    #[test]
    fn the_file_that_is_shipped_is_the_template() {
        let remedy = "write it anew: holdfast config template > packaging/holdfast.toml";
        assert!(shipped() == template(), "packaging/holdfast.toml is not up to date; {remedy}");
    }

    #[test]
    fn the_file_that_is_shipped_says_nothing_and_can_be_used() {
        assert_eq!(ConfigFile::parse(&shipped()), Ok(ConfigFile::default()));
    }

    #[test]
    fn with_every_option_set_it_can_be_used_too_and_has_every_option_and_no_other() {
        let text: String = shipped()
            .lines()
            .map(|line| format!("{}\n", option_of(line).unwrap_or(line)))
            .collect();
        let file = ConfigFile::parse(&text).unwrap_or_else(|faults| panic!("{faults:?}"));
        for key in CONFIG_KEYS {
            assert!(file.value(key.name).is_some(), "{}", key.name);
        }
        let options: BTreeSet<&str> = OPTIONS.iter().map(|option| option.name).collect();
        let there: BTreeSet<&str> = file.resource_defaults.all.keys().map(String::as_str).collect();
        assert_eq!(there, options);
        for option in OPTIONS {
            let shown = &file.resource_defaults.all[option.name];
            assert_eq!(*shown, option.default_value(), "{}", option.name);
        }
        assert_eq!(file.resource_defaults.named.len(), 1);
        let lines = shipped().lines().filter_map(option_of).filter(|l| !l.starts_with('[')).count();
        assert_eq!(lines, CONFIG_KEYS.len() + OPTIONS.len() + 1);
    }

    #[test]
    fn each_line_alone_can_be_set() {
        let all = shipped();
        let mut table = "";
        for line in all.lines().filter_map(option_of) {
            if line.starts_with('[') {
                table = line;
            } else {
                let text = format!("{table}\n{line}\n");
                assert!(ConfigFile::parse(&text).is_ok(), "{text}");
            }
        }
        assert!(all.lines().all(|line| line.chars().count() <= WIDTH));
    }
}
