use super::*;
use holdfast_api::options::OPTIONS;

#[track_caller]
fn faults(text: &str) -> Vec<String> {
    let faults = ConfigFile::parse(text).expect_err(text);
    faults.iter().map(|fault| fault.shown(Path::new("f"))).collect()
}

#[test]
fn everything_that_is_wrong_is_said_at_once_with_its_place() {
    let text = "name = \"a\"\n  listne = \"x\"\nlisten = 7\nnbd-tls = \"maybe\"\n\
                nbd-allow = [\"10.0.0.0/8\", \"10.0.0.1/8\"]\n\
                [resource-defaults]\nping-int = 0\nresync-rat = \"1M\"\nprotocol = true\n\
                [resource.\"a/b\"]\nping-int = 3\n[colour]\n";
    assert_eq!(
        faults(text),
        [
            "f:2:3: there is no key listne: did you mean listen?",
            "f:3:10: listen cannot be a number: write it as listen = \"ADDR:PORT\"",
            "f:4:11: nbd-tls cannot be \"maybe\": it is \"required\" or \"optional\"",
            "f:5:28: nbd-allow cannot be \"10.0.0.1/8\": nbd-allow cannot hold \"10.0.0.1/8\": the \
             address is inside the network: write 10.0.0.0/8",
            "f:7:12: ping-int cannot be \"0\": ping-int must be between 1 and 120 seconds; 0 was \
             given",
            "f:8:1: there is no option resync-rat: did you mean resync-rate?",
            "f:9:12: protocol cannot be true or false: write a number or a text, of C",
            "f:10:11: there is no resource \"a/b\": the name \"a/b\" cannot be used: only letters, \
             digits, '.', '_' and '-' are allowed",
            &format!(
                "f:12:2: there is no key colour: the keys are {}, resource-defaults, resource",
                CONFIG_KEYS.iter().map(|key| key.name).collect::<Vec<_>>().join(", ")
            ),
        ]
    );
}

#[test]
fn what_is_no_toml_is_said_with_its_place_too() {
    for (text, place) in [
        ("name = \"a\"\nname = \"b\"\n", "f:2:1: this cannot be read as TOML: duplicate key"),
        ("name = \"a\nb", "f:1:"),
        ("name = \n", "f:1:"),
        ("[resource\n", "f:1:"),
        ("name = \"all\"", "f:1:8: name cannot be \"all\": "),
        ("http = \"127.0.0.1:x\"", "f:1:8: http cannot be \"127.0.0.1:x\": "),
        ("resource = 3", "f:1:1: resource cannot be a number: write [resource.\"NAME\"]"),
        ("[resource]\nr0 = 1", "f:2:1: r0 cannot be a number: it is a table of options"),
        ("state-dir = \"\"", "f:1:13: state-dir cannot be \"\": the path is empty"),
        ("state-dir = \"s\"", "f:1:13: state-dir cannot be \"s\": write the whole path, with a /"),
        ("socket = \"./s\"", "f:1:10: socket cannot be \"./s\": write the whole path"),
        ("nbd-tls-certificates = \"c\"", "f:1:24: nbd-tls-certificates cannot be \"c\": write"),
        ("journal-budget = \"1M\"", "f:1:18: journal-budget cannot be \"1M\": 1048576 bytes are"),
        ("# ä\nname = \"ä\"", "f:2:8: name cannot be \"ä\""),
    ] {
        let said = faults(text);
        assert!(said[0].starts_with(place), "{text:?}: {said:?}");
        assert!(said.iter().all(|line| !line.contains('\n')), "{said:?}");
    }
    let fault = read::not_utf8(b"# x\nname = \"\xff\"", 12);
    assert_eq!((fault.line, fault.column), (2, 9));
}

#[test]
fn a_file_that_is_wrong_everywhere_is_not_told_in_full() {
    let text: String = (0..100_000).map(|n| format!("k{n} = 1\n")).collect();
    let said = faults(&text);
    assert_eq!(said.len(), 100);
    assert!(said[0].starts_with("f:1:1: there is no key k0: "), "{}", said[0]);
    let long = "x".repeat(1 << 16);
    assert!(faults(&format!("{long} = 1")).iter().all(|line| line.len() < 1000));
    assert!(faults(&format!("name = \"{long}\"")).iter().all(|line| line.len() < 1000));
    assert!(!faults(&format!("name = {}", "[".repeat(1 << 16))).is_empty());
}

#[test]
fn values_are_kept_with_their_lines_and_options_in_canonical_text() {
    let text = "\nname = \"a\"\nadvertise = [\"h\", \"i:1\"]\n\
                [resource-defaults]\nresync-rate = \"50M\"\nping-int = 3\n\
                [resource.db]\nresync-rate = \"1G\"\n";
    let file = ConfigFile::parse(text).unwrap();
    assert_eq!(file.value("name"), Some((&Setting::Text("a".into()), 2)));
    assert_eq!(file.list("advertise"), ["h", "i:1"]);
    assert_eq!(file.value("listen"), None);
    let of = |name: &str, key: &str| file.resource_defaults.of(name).get(key).cloned();
    assert_eq!(of("db", "resync-rate").as_deref(), Some("1073741824"));
    assert_eq!(of("other", "resync-rate").as_deref(), Some("52428800"));
    assert_eq!(of("db", "ping-int").as_deref(), Some("3"));
}

#[test]
fn every_key_takes_its_sample_and_refuses_another_type() {
    for key in CONFIG_KEYS {
        let text = format!("{} = {}", key.name, key.sample);
        assert!(ConfigFile::parse(&text).is_ok(), "{text}");
        assert!(ConfigFile::parse(&format!("{} = 1979-05-27", key.name)).is_err(), "{text}");
        assert!(!key.about.is_empty() && key.about.ends_with('.'), "{}", key.name);
        assert!(OPTIONS.iter().all(|option| option.name != key.name), "{}", key.name);
    }
}

mod any_text {
    use super::*;
    use proptest::prelude::*;

    /// What such files are made of, so that the texts come near to real ones.
    fn piece() -> impl Strategy<Value = String> {
        let keys: Vec<&str> = CONFIG_KEYS.iter().map(|key| key.name).collect();
        let options: Vec<&str> = OPTIONS.iter().map(|option| option.name).collect();
        let marks = [
            "=",
            "\n",
            "[",
            "]",
            "\"",
            "'",
            "{",
            "}",
            ",",
            ".",
            "#",
            "[[",
            "\"\"\"",
            "\\u",
            "0x",
            "1979-05-27",
            "true",
            "\r",
            "\0",
            "ä",
            "resource",
            "resource-defaults",
            " = ",
            "off",
        ];
        prop_oneof![
            prop::sample::select(keys).prop_map(str::to_owned),
            prop::sample::select(options).prop_map(str::to_owned),
            prop::sample::select(marks.to_vec()).prop_map(str::to_owned),
            any::<u64>().prop_map(|number| number.to_string()),
            ".{0,6}",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn is_read_without_a_panic_and_faults_lie_inside_it(
            pieces in prop::collection::vec(piece(), 0..60)
        ) {
            let text = pieces.concat();
            if let Err(faults) = ConfigFile::parse(&text) {
                prop_assert!(!faults.is_empty());
                let lines = text.matches('\n').count() + 1;
                for fault in faults {
                    prop_assert!((1..=lines).contains(&fault.line));
                    prop_assert!(fault.column >= 1 && fault.column <= text.chars().count() + 1);
                }
            }
        }
    }
}
