use super::*;
use proptest::prelude::*;
use std::path::Path;

fn plan_of(text: &str, first: Option<&str>) -> Result<Plan, ApiError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.res");
    std::fs::write(&path, text).unwrap();
    import(&[path], first)
}

fn commands(plan: &Plan) -> Vec<String> {
    let all = plan.steps.iter();
    all.flat_map(|step| step.commands.iter().map(|line| format!("{}: {line}", step.node))).collect()
}

#[track_caller]
fn told<'a>(plan: &'a Plan, statement: &str) -> (&'static str, &'a str) {
    let found = plan.statements.iter().find(|entry| entry.text == statement);
    let entry = found.unwrap_or_else(|| panic!("{statement} is not told"));
    (entry.outcome.word(), entry.outcome.text())
}

const EVERYDAY: &str = r#"
# Two nodes.
global { usage-count no; }
common {
    net { protocol C; ping-int 5; }
    handlers { split-brain "/usr/lib/drbd/notify-split-brain.sh root"; }
}
resource r0 {
    device    /dev/drbd0 minor 0;
    meta-disk internal;
    net { ping-int 3; shared-secret "geheim"; verify-alg sha256; after-sb-0pri discard-zero-changes; }
    disk { resync-rate 33M; c-plan-ahead 0; on-io-error detach; al-extents 6007; }
    startup { wfc-timeout 15; }
    on alpha { address 10.0.0.1:7788; disk /dev/vg0/r0; node-id 0; }
    on beta  { address ipv4 10.0.0.2:7788; disk /dev/sdb1; node-id 1; }
}
"#;

#[test]
fn an_everyday_resource_becomes_commands() {
    let plan = plan_of(EVERYDAY, None).unwrap();
    assert_eq!(
        commands(&plan),
        [
            "alpha: blockdev --getsize64 /dev/drbd0   # SIZE of r0",
            "alpha: drbdadm down r0",
            "alpha: systemctl restart holdfast",
            "beta: drbdadm down r0",
            "beta: systemctl restart holdfast",
            "alpha: holdfast cluster create",
            "alpha: holdfast cluster token   # TOKEN for beta",
            "beta: holdfast cluster join TOKEN",
            "alpha: holdfast create r0 --disk /dev/vg0/r0 --size SIZE --set al-extents=6007 --set \
             ping-int=3 --set protocol=C --set resync-rate=33M",
            "alpha: holdfast device r0   # prints /dev/holdfast/r0",
            "beta: holdfast join r0 --disk /dev/sdb1 --force",
            "beta: holdfast wait r0 --for uptodate --timeout 86400",
        ]
    );
    assert_eq!(plan.steps[0].config, ["listen = \"10.0.0.1:7850\""]);
    assert!(!plan.text().contains("geheim") && !plan.json().to_string().contains("geheim"));
    for (statement, word, part) in [
        ("ping-int 5", "needless", ":11 says otherwise"),
        ("shared-secret ...", "needless", "certificates"),
        ("wfc-timeout 15", "missing", "holdfast wait"),
        ("meta-disk internal", "needless", "260 MiB a TiB"),
        ("after-sb-0pri discard-zero-changes", "missing", "--discard-my-data"),
        ("node-id 0", "needless", "by themselves"),
        ("usage-count no", "needless", "own tools"),
        ("split-brain /usr/lib/drbd/notify-split-brain.sh root", "missing", "events --follow"),
        ("device /dev/drbd0 minor 0", "translated", "/dev/holdfast/r0"),
    ] {
        let (outcome, text) = told(&plan, statement);
        assert_eq!(outcome, word, "{statement}: {text}");
        assert!(text.contains(part), "{statement}: {text}");
    }
}

#[test]
fn the_node_with_the_data_comes_first() {
    let plan = plan_of(EVERYDAY, Some("beta")).unwrap();
    let text = plan.text();
    assert!(text.contains("On beta: make r0"), "{text}");
    assert!(text.contains("\nholdfast join r0 --disk /dev/vg0/r0 --force\n"), "{text}");
    let error = plan_of(EVERYDAY, Some("gamma")).unwrap_err();
    assert!(error.hint.unwrap().contains("alpha, beta"));
}

#[test]
fn three_nodes_a_mesh_volumes_and_a_client() {
    let text = r#"
    resource data {
        volume 0 { device minor 10; disk /dev/vg/a; meta-disk /dev/md [0]; }
        volume 1 { device /dev/drbd11; disk /dev/vg/b; meta-disk internal; disk { size 1G; } }
        on a { node-id 0; address ipv6 [fd00::1]:7789; }
        on b { node-id 1; address ipv6 [fd00::2]:7789; volume 1 { disk /dev/other; } }
        on c { node-id 2; address ipv6 [fd00::3]:7789; volume 0 { disk none; } volume 1 { disk none; } }
        connection-mesh { hosts a b c; net { timeout 50; } }
    }
    "#;
    let plan = plan_of(text, None).unwrap();
    let commands = commands(&plan).join("\n");
    for line in [
        "a: blockdev --getsize64 /dev/drbd10   # SIZE of data-0",
        "a: holdfast create data-0 --disk /dev/vg/a --size SIZE --set timeout=50",
        "a: holdfast create data-1 --disk /dev/vg/b --size 1073741824 --set timeout=50",
        "b: holdfast join data-1 --disk /dev/other --force",
        "c: holdfast join data-0 --diskless",
    ] {
        assert!(commands.contains(line), "{line}\n{commands}");
    }
    assert!(plan.remarks.iter().any(|remark| remark.contains("data-0, data-1")));
    assert_eq!(plan.steps[0].config, ["listen = \"[fd00::1]:7850\""]);
    assert_eq!(told(&plan, "meta-disk /dev/md [0]").0, "missing");
    assert_eq!(told(&plan, "hosts a b c").0, "needless");
}

#[test]
fn connections_paths_and_floating_nodes() {
    let text = r#"
    resource r {
        device /dev/drbd1; disk /dev/sda1; meta-disk internal;
        on a { address 10.0.0.1:7788; }
        on b { address 10.0.0.2:7788; }
        on c { address 10.0.0.3:7788; }
        connection a-b {
            path { host a address 10.1.0.1:7788; host b address 10.1.0.2:7788; }
            net { ping-int 3; }
        }
        connection { host a; host c port 7790; }
    }
    resource f {
        device /dev/drbd2; disk /dev/sda2; meta-disk internal;
        floating 10.0.0.1:7000 { node-id 0; }
        floating ipv4 10.0.0.2:7000 { node-id 1; }
    }
    "#;
    let plan = plan_of(text, None).unwrap();
    assert_eq!(
        plan.steps[0].config,
        ["listen = \"0.0.0.0:7850\"", "advertise = [\"10.0.0.1:7850\", \"10.1.0.1:7850\"]"]
    );
    assert_eq!(told(&plan, "ping-int 3").0, "missing");
    assert_eq!(told(&plan, "host c port 7790").0, "needless");
    assert!(commands(&plan).contains(&"the node at 10.0.0.2: drbdadm down f".to_owned()));
}

#[test]
fn files_are_included_by_pattern_and_not_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::create_dir_all(dir.path().join("drbd.d")).unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
    };
    write(
        "drbd.conf",
        "include \"drbd.d/global_common.conf\"; include \"drbd.d/*.res\"; include \"no/*.x\";",
    );
    write("drbd.d/global_common.conf", "common { protocol A; }");
    let on = |n: u8| format!("on a {{ address 10.0.0.1:{n}; }} device /dev/drbd{n}; disk /d{n};");
    write("drbd.d/b.res", &format!("resource b {{ {} }}", on(2)));
    write("drbd.d/a.res", &format!("resource a {{ {} }}", on(1)));
    write("drbd.d/a.res~", "nonsense");
    let plan = import(&[dir.path().join("drbd.conf")], None).unwrap();
    let names: Vec<&str> =
        plan.files.iter().filter_map(|file| file.file_name()?.to_str()).collect();
    assert_eq!(names, ["drbd.conf", "global_common.conf", "a.res", "b.res"]);
    assert!(told(&plan, "protocol A").1.contains("--protocol log"));
    write("loop", "include \"loop\";");
    let error = import(&[dir.path().join("loop")], None).unwrap_err();
    assert!(error.message.contains("more than 8 files include one another"), "{}", error.message);
    write("gone", "\n include nothing;");
    let error = import(&[dir.path().join("gone")], None).unwrap_err();
    assert!(error.message.contains("gone:2:2: there is no file nothing"), "{}", error.message);
    assert!(import(&[Path::new("/nowhere/x").to_owned()], None).is_err());
}

#[test]
fn what_is_no_configuration_is_refused_with_its_place() {
    let deep = "a {".repeat(40);
    for (text, place) in [
        ("resource r0 {\n  net { ping-int 3 }\n}", "x.res:2:20: a ; is missing before this }"),
        ("resource r0 {\n", "x.res:1:13: this { is not closed"),
        ("}\n", "x.res:1:1: this } closes nothing"),
        ("global { a; }\nresource", "x.res:2:1: this statement has no ; at its end"),
        ("a \"b\nc\";", "x.res:1:3: the quotes are not closed"),
        ("{ }", "x.res:1:1: a section must have a name"),
        ("include a b;", "x.res:1:1: include takes one file name"),
        (&deep, "more than 16 sections"),
        (&"a ".repeat(101), "x.res:1:201: the statement has more than 100 words"),
    ] {
        let error = plan_of(text, None).unwrap_err();
        assert!(error.message.contains(place), "{text:?}: {}", error.message);
    }
    let hosts: String = (0..1001).map(|n| format!("on h{n} {{ disk /d; }}")).collect();
    let error = plan_of(&format!("resource r {{ {hosts} }}"), None).unwrap_err();
    assert!(error.message.contains("more than 1000 nodes"), "{}", error.message);
    let long = "a;".repeat(20_001);
    assert!(plan_of(&long, None).unwrap_err().message.contains("more than 20000 statements"));
}

#[test]
fn a_stacked_resource_becomes_no_resource_of_its_own() {
    let text = "resource r0 { net { protocol C; } device /dev/drbd0; disk /dev/sda6; \
                meta-disk internal; on alice { address 10.0.0.1:7788; } \
                on bob { address 10.0.0.2:7788; } }\n\
                resource r0-U { net { protocol A; } stacked-on-top-of r0 { device /dev/drbd10; \
                address 192.168.42.1:7789; } on charlie { device /dev/drbd10; disk /dev/hda6; \
                address 192.168.42.2:7789; meta-disk internal; } }\n";
    let plan = plan_of(text, None).unwrap();
    let all = commands(&plan);
    assert_eq!(all[0], "the node on which r0-U is up: drbdadm --stacked down r0-U");
    assert_eq!(
        all[all.len() - 1],
        "charlie: # holdfast join r0 --disk /dev/hda6 --protocol log --force"
    );
    let made = all.iter().filter(|line| line.contains(": holdfast create "));
    assert_eq!(made.count(), 1, "{all:?}");
    assert!(plan.remarks.iter().any(|remark| remark.starts_with("r0-U is stacked on r0: ")));
    assert_eq!(told(&plan, "protocol A").0, "missing");
}

#[test]
fn an_include_of_nothing_is_told_and_so_are_two_resources_of_one_name() {
    let one = "resource r0 { device /dev/drbd0; disk /dev/sda; on a { address 10.0.0.1:1; } }\n";
    let plan = plan_of(&format!("include \"none.d/*.res\";\n{one}{one}"), None).unwrap();
    let include = plan.statements.iter().find(|entry| entry.text.starts_with("include")).unwrap();
    assert_eq!(include.outcome.word(), "missing");
    assert!(!plan.remarks.iter().any(|remark| remark.starts_with("The volumes of r0")));
    let renamed = "r0 cannot be a name here, or is taken: the resource becomes r0-2.";
    assert_eq!(plan.remarks.iter().filter(|remark| *remark == renamed).count(), 1);
}

#[test]
fn names_that_cannot_be_are_replaced_and_told() {
    let body = "{ device /dev/drbd1; disk /d; on a { address 1.1.1.1:1; } }";
    let text = format!("resource \"r 0\" {body} resource r+0 {body} resource all {body}");
    let plan = plan_of(&text, None).unwrap();
    let commands = commands(&plan).join("\n");
    for name in ["r-0", "r-0-2", "r-all"] {
        assert!(commands.contains(&format!("holdfast create {name} ")), "{commands}");
    }
    assert!(plan.remarks.iter().any(|remark| remark.contains("the resource becomes r-0-2")));
}

/// Statements as such files have them, and others.
fn statement() -> impl Strategy<Value = String> {
    let words = [
        "resource",
        "common",
        "global",
        "net",
        "disk",
        "options",
        "on",
        "floating",
        "volume",
        "connection",
        "connection-mesh",
        "path",
        "host",
        "hosts",
        "skip",
        "handlers",
        "startup",
        "proxy",
        "syncer",
        "address",
        "device",
        "meta-disk",
        "internal",
        "protocol",
        "ping-int",
        "3",
        "C",
        "no",
        "0",
        "a",
        "b",
        "10.0.0.1:7788",
        "/dev/sda",
        "\"two words\"",
        "resync-rate",
        "33M",
        "size",
        "node-id",
        "stacked-on-top-of",
        "template-file",
        "colour",
        "none",
        "minor",
    ];
    let line = prop::collection::vec(prop::sample::select(words.to_vec()), 1..4);
    let leaf = line.clone().prop_map(|words| format!("{};\n", words.join(" ")));
    leaf.prop_recursive(5, 60, 6, move |inner| {
        let body = prop::collection::vec(inner, 0..6);
        (line.clone(), body)
            .prop_map(|(words, body)| format!("{} {{\n{}}}\n", words.join(" "), body.concat()))
    })
}

/// How many statements a text has: each ends with `;` or begins with `{`.
fn statements_in(text: &str) -> usize {
    text.matches([';', '{']).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing is lost: every statement is told, with what became of it.
    #[test]
    fn every_statement_is_translated_or_listed(
        statements in prop::collection::vec(statement(), 0..12)
    ) {
        let text = statements.concat();
        let plan = plan_of(&text, None).expect("the statements are in order");
        prop_assert_eq!(plan.statements.len(), statements_in(&text));
        prop_assert!(plan.statements.iter().all(|entry| !entry.outcome.text().is_empty()));
        let printed = plan.text();
        for entry in plan.statements.iter().filter(|entry| entry.outcome.word() != "translated") {
            let line = format!("#   {}: {}\n", entry.place, entry.text);
            prop_assert!(printed.contains(&line), "{line} is not in {printed}");
        }
    }

    /// Any text is read or refused.
    #[test]
    fn any_text_is_taken_without_a_panic(text in "[a-z{};\"#\\\\ \n*0-9/:.\u{e4}\\[\\]]{0,200}") {
        let _ = plan_of(&format!("resource r {{ on a {{ {text}"), None);
        let _ = plan_of(&text.replace("include", ""), None);
    }
}
